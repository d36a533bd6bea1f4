"""Tables from records, in plain text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..dispatch import AUTO
from .implementations import OURS, PEERS, label
from .overhead import TORCH
from .peaks import PeaksDict
from .runner import Record, Result
from .suites import WHOLE_MODELS

_FAR_APART = 1.3  # 80% over 20% quantile; on a quiet machine a few records in a hundred pass it
_DISTURBED = 1 / 3  # of the records so far apart: ratios of the medians can be wrong too
_NUMBER = re.compile(r"[\d.]+(e[-+]\d+)?[%x]?|-|failed")
_HEADERS = ("problem", "direction", "ms", "GFLOP/s", "roofline", "best peer", "ms", "speed-up")
_SUMMARY_HEADERS = (
    "implementation", "direction", "dtype", "batch", "layers",
    "speed-up", "lowest", "GFLOP/s", "of peak", "roofline",
)  # fmt: skip
_MODEL_HEADERS = ("model", "implementation", "ms", "images/s", "over best peer")


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

    rule = "  ".join("-" * width for width in widths).rstrip()
    return "\n".join([line(headers), rule, *(line(row) for row in table[1:])])


def report(result: Result) -> str:
    """The tables of all dtypes and batch sizes, then the summary and the peaks."""
    models, layers = split(result["records"])
    records = result["records"]
    titles = dict.fromkeys(_title_with_layout(r) for r in layers if r["implementation"] == AUTO)
    parts = [f"{heading}\n{table(layers, heading)}" for heading in titles]
    if layers:
        parts.append(f"Geometric means over distinct layers\n{summary_table(result)}")
    for heading in dict.fromkeys(map(title, models)):
        parts.append(f"{heading}\n{model_table(models, heading)}")
    parts.append(peaks_line(result["peaks"]))
    parts += scatter_line(records)
    if result.get("call_us"):
        parts.append(call_line(result["call_us"]))
    notes = [f"not measured: {name}: {reason}" for name, reason in result["skipped"].items()]
    notes += [red_line(record) for record in red(records)]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def split(records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    """The records of whole models, and those of layers."""
    kinds: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        kinds[record["suite"] != WHOLE_MODELS].append(record)
    return kinds


def title(record: Record) -> str:
    """What all rows of a table have in common."""
    return f"{record['suite']}, {record['dtype']}, batch {record['batch']}"


def _title_with_layout(record: Record) -> str:
    usual = record["layout"] == "channels_last"
    return title(record) + ("" if usual else f", {record['layout']} images")


def table(records: Sequence[Record], heading: str) -> str:
    """One row for each problem and direction, of what "auto" ran beside the best peer."""
    rows = []
    for record in records:
        if record["implementation"] != AUTO or _title_with_layout(record) != heading:
            continue
        peer = _best_peer_of(record, records)
        rows.append(
            (
                record["problem"],
                record["direction"],
                _milliseconds(record, ".3f"),
                number(record["gflops"], ".1f"),
                number(record["roofline_fraction"], ".0%"),
                peer["implementation"].removeprefix("torch:") if peer else "-",
                _milliseconds(peer, ".3f") if peer else "-",
                number(record["speedup_vs_best_peer"], ".2f", "x"),
            )
        )
    return aligned(_HEADERS, rows)


def model_table(records: Sequence[Record], heading: str) -> str:
    """One row for each whole model and implementation; "over best peer" is a ratio of times."""
    rows = [
        (
            r["problem"],
            r["implementation"],
            _milliseconds(r, ".2f"),
            number(r["ms_median"] and 1e3 * r["batch"] / r["ms_median"], ".1f"),
            number(r["speedup_vs_best_peer"], ".2f", "x"),
        )
        for r in records
        if title(r) == heading
    ]
    return aligned(_MODEL_HEADERS, rows)


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
    """One `Summary` for each group of this package's layers, in the records' order."""
    groups: dict[tuple[str, str, str, str, int], list[Record]] = {}
    for r in split(result["records"])[1]:
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
        peak_fraction=needed / total_ms / 1e6 / peak if timed and peak else None,
        roofline_fraction=floor_ms / total_ms if floor_ms else None,
    )


def summary_table(result: Result) -> str:
    """The summaries as a table in plain text."""
    rows = [
        (
            label(s.implementation, s.layout),
            s.direction,
            s.dtype,
            str(s.batch),
            f"{s.green} of {s.layers}" if s.green < s.layers else str(s.layers),
            number(s.speedup, ".2f", "x"),
            number(s.lowest, ".2f", "x"),
            number(s.gflops, ".1f"),
            number(s.peak_fraction, ".0%"),
            number(s.roofline_fraction, ".0%"),
        )
        for s in summarise(result)
    ]
    return aligned(_SUMMARY_HEADERS, rows)


def peaks_line(peaks: PeaksDict) -> str:
    """The measured peaks and how they were measured, in a few words each."""
    gflops = ", ".join(
        f"{dtype} {number(value or None, '.0f')} GFLOP/s"
        for dtype, value in peaks["gflops"].items()
    )
    return (
        f"Peaks, threads: {peaks['threads']}\n"
        f"  {gflops} ({peaks['method']['gflops']})\n"
        f"  {number(peaks['gbps'] or None, '.0f')} GB/s ({peaks['method']['gbps']})"
    )


def call_line(call_us: dict[str, float]) -> str:
    """What a call costs beside its arithmetic, in one line."""
    peer = call_us[TORCH]
    ours = (
        f"{name} {time:.1f} ({time - peer:+.1f})" for name, time in call_us.items() if name != TORCH
    )
    return f"A call beside its arithmetic, microseconds: F.conv2d {peer:.1f}, {', '.join(ours)}"


def scatter_line(records: Iterable[Record]) -> list[str]:
    """How far the repeats of a call lay apart, and advice where that is far; none without times."""
    spreads = sorted(
        record["ms_p80"] / record["ms_p20"]
        for record in records
        if record["ms_p20"] and record["ms_p80"]
    )
    if not spreads:
        return []
    far = sum(spread > _FAR_APART for spread in spreads)
    line = (
        f"Scatter of the repeats: 80% over 20% quantile {spreads[len(spreads) // 2]:.2f} in the "
        f"median record, above {_FAR_APART} in {far} of {len(spreads)}"
    )
    if far > _DISTURBED * len(spreads):
        line += ";\nsomething else kept this machine busy: run it again before you go by it"
    return [line]


def _milliseconds(record: Record, form: str) -> str:
    """The time, or that there was no result."""
    return "failed" if record["parity"] == "failed" else number(record["ms_median"], form)


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


def number(value: float | None, form: str, unit: str = "") -> str:
    """A cell of a table: the value, or "-" for None."""
    return "-" if value is None else f"{value:{form}}{unit}"
