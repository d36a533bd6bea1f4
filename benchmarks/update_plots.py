"""Draws docs/plots/DEVICE/SUITE.svg anew from every file in results/."""

from __future__ import annotations

import json
from pathlib import Path

from resnext_kernels.bench.plot import plot

CHECKOUT = Path(__file__).parents[1]
PLOTS = CHECKOUT / "docs" / "plots"
RESULTS = CHECKOUT / "benchmarks" / "results"


def main() -> None:
    write(RESULTS, PLOTS)


def write(results: Path, plots: Path) -> None:
    """A plot for each of ``results``; others that lie among the ``plots`` are removed."""
    wanted = {plot_of(path, plots): path for path in sorted(results.glob("*/*.json"))}
    for stale in set(plots.glob("*/*.svg")) - wanted.keys():
        stale.unlink()
    for target, source in wanted.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        plot(json.loads(source.read_text()), target)


def plot_of(result: Path, plots: Path) -> Path:
    """Where the plot of a file of results lies."""
    return plots / result.parent.name / f"{result.stem}.svg"


if __name__ == "__main__":
    main()
