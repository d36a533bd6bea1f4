"""A run in one figure: of layers the speed-ups and the roofline, of whole models their speed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dispatch import AUTO
from .peaks import PeaksDict
from .report import split
from .runner import Record, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
_COLOURS = ("#1f5a94", "#b5541c", "#3a7d44", "#6b4c9a")
_OTHER_COLOURS = ("#c2a01e", "#5aa7a7", "#b04a6f", "#777777")  # where one figure needs more
_DIRECTIONS = ("fprop", "dgrad", "wgrad")
_COLUMN_INCHES = 4.4
_BAR_INCHES = 0.105
_ROOFLINE_INCHES = 3.6
_MARGIN_INCHES = 1.7  # titles, legend, ticks
_STYLE: dict[Any, Any] = {
    "font.sans-serif": ["DejaVu Sans"],
    "svg.fonttype": "none",  # text stays text, which is small
    "svg.hashsalt": "resnext_kernels",  # of random names otherwise
    "text.parse_math": False,  # a path may hold a "$"
}


def plot(result: Result, path: Path) -> None:
    """Draw a run to a file, of the type that its suffix says, one of `SUFFIXES`.

    Of layers: what "auto" ran, as speed-ups over the best peer and in the roofline; of several
    layouts, the first. Of whole models: every implementation, by its speed. An SVG is text, the
    same for the same result and version of matplotlib, and holds `digest` as its description.

    Raises:
        ImportError: without matplotlib.
        ValueError: there is nothing to draw, as "auto" has no time in any record.
    """
    import matplotlib

    models, layers = split(result["records"])
    with matplotlib.rc_context(_STYLE):
        figure = _of_models(models) if models else _of_layers(layers, result["peaks"])
        what = "whole models" if models else ", ".join(dict.fromkeys(r["suite"] for r in layers))
        machine = result["machine"]
        heading = f"{what} on {machine['processor']}, threads: {machine['threads']}"
        # A path may hold bytes that are no text, which no font and no encoding takes.
        figure.suptitle(heading.encode(errors="backslashreplace").decode())
        svg = {"Date": None, "Creator": None, "Description": digest(result)}
        figure.savefig(path, dpi=130, metadata=svg if path.suffix == ".svg" else None)


def digest(result: Result) -> str:
    """What tells from which result a figure was drawn."""
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def _of_layers(layers: Sequence[Record], peaks: PeaksDict) -> Figure:
    """A column for each direction: bars, a cluster a layer, above the roofline."""
    from matplotlib.figure import Figure

    records = [r for r in layers if r["implementation"] == AUTO and r["ms_median"]]
    if not records:
        raise ValueError(f"no times of {AUTO!r} to draw: not measured, or parity red everywhere")
    records = [r for r in records if r["layout"] == records[0]["layout"]]
    directions = [d for d in _DIRECTIONS if any(r["direction"] == d for r in records)]
    names = list(dict.fromkeys(r["problem"] for r in records))
    series = _Series(records)
    heights = (_BAR_INCHES * len(names) * (len(series.styles) + 1), _ROOFLINE_INCHES)
    size = (_COLUMN_INCHES * max(2, len(directions)), sum(heights) + _MARGIN_INCHES)
    figure = Figure(figsize=size, layout="constrained")
    upper, lower = figure.subplots(
        2, len(directions), sharex="row", sharey="row", height_ratios=heights, squeeze=False
    )
    for column, direction in enumerate(directions):
        chosen = [r for r in records if r["direction"] == direction]
        upper[column].set_title(f"{direction}: speed-up over the best peer", fontsize="medium")
        _speedups(upper[column], chosen, names, series)
        lower[column].set_title(f"{direction}: roofline", fontsize="medium")
        _roofline(lower[column], chosen, records, peaks, series)
    ratios = [1.0, *(r["speedup_vs_best_peer"] or 1.0 for r in records)]
    few = max(ratios) > 15 * min(ratios)  # numbers fit beside each other
    _plain_ticks(upper[0].xaxis, "{:g}x", (1, 2, 5) if few else (1, 1.5, 2, 3, 5, 7))
    upper[0].set_yticks(range(len(names)), names, fontsize="small")
    upper[0].set_ylim(len(names) - 0.5, -0.5)  # the first layer on top
    lower[0].set_ylabel("GFLOP/s")
    handles, labels = upper[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


class _Series:
    """Colours by dtype and opacity by batch, larger batches paler."""

    def __init__(self, records: Sequence[Record]) -> None:
        dtypes = list(dict.fromkeys(r["dtype"] for r in records))
        batches = sorted({r["batch"] for r in records})
        self.colours = dict(zip(dtypes, _COLOURS, strict=False))
        self.opacity = {batch: 1 - i / len(batches) for i, batch in enumerate(batches)}
        self.styles = [(dtype, batch) for dtype in dtypes for batch in batches]

    def of(self, records: Sequence[Record]) -> Iterator[tuple[str, int, list[Record]]]:
        """The records of each dtype and batch."""
        for dtype, batch in self.styles:
            yield dtype, batch, [r for r in records if (r["dtype"], r["batch"]) == (dtype, batch)]


def _speedups(axis: Axes, records: Sequence[Record], names: list[str], series: _Series) -> None:
    """Bars from 1, to the right where faster, to the left where slower than the best peer."""
    height = 1 / (len(series.styles) + 1)
    for index, (dtype, batch, chosen) in enumerate(series.of(records)):
        shift = (index - (len(series.styles) - 1) / 2) * height
        axis.barh(
            [names.index(r["problem"]) + shift for r in chosen],
            [(r["speedup_vs_best_peer"] or 1.0) - 1 for r in chosen],
            height,
            left=1,
            color=series.colours[dtype],
            alpha=series.opacity[batch],
            label=f"{dtype}, batch {batch}",
            clip_on=False,  # a third less of an SVG's text
        )
    axis.set_xscale("log")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.grid(axis="x", which="both", alpha=0.3)


def _roofline(
    axis: Axes,
    records: Sequence[Record],
    all_records: Sequence[Record],
    peaks: PeaksDict,
    series: _Series,
) -> None:
    """Achieved GFLOP/s against FLOP per byte under the measured roof, of needed FLOPs alone."""
    intensities = [_intensity(r) for r in all_records]
    low, high = min(intensities) / 2, max(intensities) * 2
    for dtype, colour in series.colours.items():
        peak = peaks["gflops"][dtype]
        if not (peak and peaks["gbps"]):
            axis.plot([], [], color=colour, label=f"{dtype}: peaks not measured")
            continue
        ridge = min(max(peak / peaks["gbps"], low), high)
        roof = [min(peak, x * peaks["gbps"]) for x in (low, ridge, high)]
        label = f"{dtype}: {peak:.0f} GFLOP/s, {peaks['gbps']:.0f} GB/s"
        axis.plot((low, ridge, high), roof, color=colour, label=label)
    for dtype, batch, chosen in series.of(records):
        achieved = [r["needed_flops"] / (r["ms_median"] or math.inf) / 1e6 for r in chosen]
        places = [_intensity(r) for r in chosen]
        colour, opacity = series.colours[dtype], series.opacity[batch]
        axis.scatter(places, achieved, s=22, c=colour, alpha=opacity, lw=0, clip_on=False)
    axis.set(xscale="log", yscale="log", xlabel="needed FLOP/byte", xlim=(low, high))
    for side in (axis.xaxis, axis.yaxis):
        _plain_ticks(side, "{:g}", (1, 2, 5))
    axis.grid(which="both", alpha=0.2)
    axis.legend(fontsize="x-small", loc="lower right")


def _intensity(record: Record) -> float:
    return record["needed_flops"] / record["bytes"]


def _plain_ticks(axis: Axis, form: str, places: Sequence[float]) -> None:
    """Numbers as they are spoken in place of powers of ten, at these multiples of a power."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=places))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: form.format(value)))


def _of_models(records: Sequence[Record]) -> Figure:
    """A column for each dtype and batch: bars, a cluster a model."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(r["problem"] for r in records))
    implementations = list(dict.fromkeys(r["implementation"] for r in records))
    columns = list(dict.fromkeys((r["dtype"], r["batch"]) for r in records))
    height = 1 / (len(implementations) + 1)
    bars = 1.6 * _BAR_INCHES * len(names) * (len(implementations) + 1)
    size = (0.8 * _COLUMN_INCHES * max(2, len(columns)), bars + _MARGIN_INCHES)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(columns), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (dtype, batch) in zip(axes, columns, strict=True):
        of_column = [r for r in records if (r["dtype"], r["batch"]) == (dtype, batch)]
        for index, implementation in enumerate(implementations):
            chosen = [r for r in of_column if r["implementation"] == implementation]
            shift = (index - (len(implementations) - 1) / 2) * height
            axis.barh(
                [names.index(r["problem"]) + shift for r in chosen],
                [r["speedup_vs_best_peer"] or 0.0 for r in chosen],
                height,
                color=(_COLOURS + _OTHER_COLOURS)[index % 8],
                label=implementation,
            )
        axis.set_title(f"{dtype}, batch {batch}", fontsize="medium")
        axis.set_xlabel("speed over the best peer's")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names, fontsize="small")
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(columns) + 1))
    return figure
