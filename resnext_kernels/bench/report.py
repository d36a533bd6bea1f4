"""Tables from records, in plain text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..dispatch import AUTO
from .implementations import OURS, PEERS
from .peaks import PeaksDict
from .runner import Record, Result

_NUMBER = re.compile(r"[\d.]+(e[-+]\d+)?[%x]?|-")
_HEADERS = ("problem", "direction", "ms", "GFLOP/s", "roofline", "best peer", "ms", "speed-up")
_SUMMARY_HEADERS = (
    "implementation", "layout", "direction", "dtype", "batch", "layers",
    "speed-up", "lowest", "GFLOP/s", "of FLOP peak", "roofline",
)  # fmt: skip


def aligned(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in plain text: columns of numbers flush right, others flush left."""
    table = [headers, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(headers))]
    numeric = [all(_NUMBER.fullmatch(row[i]) for row in table[1:]) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(headers), rule, *(line(row) for row in table[1:])])


def report(result: Result) -> str:
    """The tables of all dtypes and batch sizes, then the summary and the peaks."""
    records = result["records"]
    titles = dict.fromkeys(_title(r) for r in records if r["implementation"] == AUTO)
    parts = [f"{title}\n{table(records, title)}" for title in titles]
    parts.append(f"Geometric means over distinct layers\n{summary_table(result)}")
    parts.append(peaks_line(result["peaks"]))
    notes = [f"not measured: {name}: {reason}" for name, reason in result["skipped"].items()]
    notes += [red_line(record) for record in red(records)]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def _title(record: Record) -> str:
    """What all rows of a table have in common."""
    parts = [record["suite"], record["dtype"], f"batch {record['batch']}"]
    if record["layout"] != "channels_last":
        parts.append(f"{record['layout']} images")
    return ", ".join(parts)


def table(records: Sequence[Record], title: str) -> str:
    """One row for each problem and direction, of what "auto" ran beside the best peer."""
    rows = []
    for record in records:
        if record["implementation"] != AUTO or _title(record) != title:
            continue
        peer = _best_peer_of(record, records)
        rows.append(
            (
                record["problem"],
                record["direction"],
                _number(record["ms_median"], ".3f"),
                _number(record["gflops"], ".1f"),
                _number(record["roofline_fraction"], ".0%"),
                peer["implementation"] if peer else "-",
                _number(peer["ms_median"] if peer else None, ".3f"),
                _number(record["speedup_vs_best_peer"], ".2f", "x"),
            )
        )
    return aligned(_HEADERS, rows)


def _best_peer_of(record: Record, records: Sequence[Record]) -> Record | None:
    """The peer that ``speedup_vs_best_peer`` of ``record`` is over."""

    def key(r: Record) -> tuple[object, ...]:
        return r["suite"], r["problem"], r["direction"], r["dtype"], r["batch"]

    peers = [
        r
        for r in records
        if r["implementation"] in PEERS
        and key(r) == key(record)
        and record["layout"] in ("channels_last", r["layout"])
    ]
    return min(peers, key=lambda r: r["ms_median"] or math.inf, default=None)


@dataclass(frozen=True)
class Summary:
    """All layers of one implementation, layout, direction, dtype and batch size together.

    ``speedup`` is the geometric mean over the distinct layers and ``lowest`` the least of them,
    both against the best peer. ``gflops`` counts each layer as often as the model has it:
    operations of all over time of all. ``peak_fraction`` is the share of the measured peak, of
    needed operations alone; ``roofline_fraction`` the least time of all over the time of all.
    ``green`` of ``layers`` passed parity; only those enter.
    """

    implementation: str
    layout: str
    direction: str
    dtype: str
    batch: int
    layers: int
    green: int
    speedup: float | None
    lowest: float | None
    gflops: float | None
    peak_fraction: float | None
    roofline_fraction: float | None


def summarise(result: Result) -> list[Summary]:
    """One `Summary` for each group of this package's records, in the records' order."""
    groups: dict[tuple[str, str, str, str, int], list[Record]] = {}
    for r in result["records"]:
        if r["implementation"] in OURS:
            key = (r["implementation"], r["layout"], r["direction"], r["dtype"], r["batch"])
            groups.setdefault(key, []).append(r)
    return [
        _summary(key, records, result["peaks"]["gflops"][key[3]]) for key, records in groups.items()
    ]


def _summary(key: tuple[str, str, str, str, int], records: list[Record], peak: float) -> Summary:
    timed = [(r, r["ms_median"]) for r in records if r["ms_median"] is not None]
    speedups = [r["speedup_vs_best_peer"] for r, _ in timed if r["speedup_vs_best_peer"]]
    total_ms = sum(r["count"] * ms for r, ms in timed)
    flops = sum(r["count"] * r["flops"] for r, _ in timed)
    needed = sum(r["count"] * r["needed_flops"] for r, _ in timed)
    floor_ms = sum(r["count"] * ms * (r["roofline_fraction"] or 0) for r, ms in timed)
    return Summary(
        *key,
        layers=len(records),
        green=len(timed),
        speedup=math.exp(sum(map(math.log, speedups)) / len(speedups)) if speedups else None,
        lowest=min(speedups, default=None),
        gflops=flops / total_ms / 1e6 if timed else None,
        peak_fraction=needed / total_ms / 1e6 / peak if timed else None,
        roofline_fraction=floor_ms / total_ms if timed else None,
    )


def summary_table(result: Result) -> str:
    """The summaries as a table in plain text."""
    rows = [
        (
            s.implementation,
            s.layout,
            s.direction,
            s.dtype,
            str(s.batch),
            f"{s.green} of {s.layers}" if s.green < s.layers else str(s.layers),
            _number(s.speedup, ".2f", "x"),
            _number(s.lowest, ".2f", "x"),
            _number(s.gflops, ".1f"),
            _number(s.peak_fraction, ".0%"),
            _number(s.roofline_fraction, ".0%"),
        )
        for s in summarise(result)
    ]
    return aligned(_SUMMARY_HEADERS, rows)


def peaks_line(peaks: PeaksDict) -> str:
    """The measured peaks and how they were measured, in a few words."""
    gflops = ", ".join(f"{dtype} {value:.0f} GFLOP/s" for dtype, value in peaks["gflops"].items())
    return (
        f"Peaks (threads: {peaks['threads']}): {gflops} ({peaks['method']['gflops']}); "
        f"{peaks['gbps']:.0f} GB/s ({peaks['method']['gbps']})"
    )


def red(records: Iterable[Record]) -> list[Record]:
    """The records whose parity failed."""
    return [record for record in records if record["parity"] == "red"]


def red_line(record: Record) -> str:
    """What went wrong, in one line."""
    error = record["relative_error"]
    found = "not finite" if error is None else f"{error:.1e}"
    return (
        f"PARITY RED: {record['implementation']} {record['problem']} {record['direction']} "
        f"{record['dtype']} batch {record['batch']} {record['layout']}: relative error {found}"
    )


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
