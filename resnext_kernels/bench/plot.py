"""Two views of one run in one figure: speed-ups as bars, and the roofline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from ..dispatch import AUTO
from .runner import Record, Result

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_COLOURS = ("#1f5a94", "#b5541c", "#3a7d44", "#6b4c9a")
_MARKERS = {"fprop": "o", "dgrad": "s", "wgrad": "^"}


def plot(result: Result, path: Path) -> None:
    """Write a PNG of what "auto" ran: speed-ups over the best peer, and the roofline.

    Of several layouts, the first is drawn.

    Raises:
        ImportError: without matplotlib.
        ValueError: "auto" has no time in any record.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    records = [r for r in result["records"] if r["implementation"] == AUTO and r["ms_median"]]
    if not records:
        raise ValueError(f"no times of {AUTO!r} to draw: not measured, or parity red everywhere")
    records = [r for r in records if r["layout"] == records[0]["layout"]]
    directions = [d for d in _MARKERS if any(r["direction"] == d for r in records)]
    figure = Figure(figsize=(13, 2.6 + 2.6 * len(directions)), layout="constrained")
    colours = dict(zip(result["peaks"]["gflops"], _COLOURS, strict=False))
    batches = sorted({r["batch"] for r in records})
    opacity = {batch: 1 - 0.6 * rank / len(batches) for rank, batch in enumerate(batches)}
    legend: dict[str, Artist] = {}
    grid = figure.add_gridspec(len(directions), 2, width_ratios=(3, 2))
    for row, direction in enumerate(directions):
        bars = figure.add_subplot(grid[row, 0])
        _bars(bars, [r for r in records if r["direction"] == direction], colours, opacity)
        handles, labels = bars.get_legend_handles_labels()
        legend |= zip(labels, handles, strict=True)
        bars.set_title(f"{direction}: speed-up over the best peer", fontsize="medium")
    figure.legend(list(legend.values()), list(legend), loc="outside lower left", ncols=4)
    roofline = figure.add_subplot(grid[:, 1])
    _roofline(roofline, records, result, colours)
    for axis in (roofline.xaxis, roofline.yaxis):
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter())
    suites = ", ".join(dict.fromkeys(r["suite"] for r in records))
    machine = result["machine"]
    figure.suptitle(f"{suites} on {machine['processor']}, threads: {machine['threads']}")
    figure.savefig(path, dpi=130)


def _bars(
    axis: Axes, records: list[Record], colours: dict[str, str], opacity: dict[int, float]
) -> None:
    """One cluster a layer, one bar for each dtype and batch size, larger batches paler."""
    layers = list(dict.fromkeys(r["problem"] for r in records))
    series = list(dict.fromkeys((r["dtype"], r["batch"]) for r in records))
    width = 0.8 / len(series)
    for index, (dtype, batch) in enumerate(series):
        chosen = [r for r in records if (r["dtype"], r["batch"]) == (dtype, batch)]
        shift = (index - (len(series) - 1) / 2) * width
        axis.bar(
            [layers.index(r["problem"]) + shift for r in chosen],
            [r["speedup_vs_best_peer"] or 0.0 for r in chosen],
            width,
            color=colours[dtype],
            alpha=opacity[batch],
            label=f"{dtype}, batch {batch}",
        )
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xticks(range(len(layers)), [layer.replace(" ", "\n", 1) for layer in layers])
    axis.tick_params(axis="x", labelsize="small")
    axis.grid(axis="y", alpha=0.3)


def _roofline(axis: Axes, records: list[Record], result: Result, colours: dict[str, str]) -> None:
    """Achieved GFLOP/s against FLOP per byte under the measured roof, of needed FLOPs alone."""
    peaks = result["peaks"]
    intensities = [r["needed_flops"] / r["bytes"] for r in records]
    low, high = min(intensities) / 2, max(intensities) * 2
    for dtype, peak in peaks["gflops"].items():
        ridge = min(max(peak / peaks["gbps"], low), high)
        roof = [min(peak, x * peaks["gbps"]) for x in (low, ridge, high)]
        label = f"{dtype} roof, {peak:.0f} GFLOP/s"
        axis.plot((low, ridge, high), roof, color=colours[dtype], label=label)
        for direction, marker in _MARKERS.items():
            chosen = [r for r in records if (r["dtype"], r["direction"]) == (dtype, direction)]
            places = [r["needed_flops"] / r["bytes"] for r in chosen]
            achieved = [r["needed_flops"] / (r["ms_median"] or math.inf) / 1e6 for r in chosen]
            name = f"{dtype} {direction}" if chosen else None
            axis.scatter(places, achieved, c=colours[dtype], marker=marker, alpha=0.7, label=name)
    axis.set(
        xscale="log", yscale="log", xlabel="needed FLOP/byte", ylabel="GFLOP/s", xlim=(low, high)
    )
    axis.set_title(f"roofline, {peaks['gbps']:.0f} GB/s")
    axis.grid(which="both", alpha=0.2)
    axis.legend(fontsize="small")
