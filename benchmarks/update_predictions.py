"""Writes the table of predictions in docs/cuda-kernels.md anew from predictions/*.json."""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[1]
DOCS = CHECKOUT / "docs" / "cuda-kernels.md"
PREDICTIONS = CHECKOUT / "benchmarks" / "predictions"
BEGIN, END = "<!-- predictions: python benchmarks/update_predictions.py -->", "<!-- end -->"
HEAD = (
    "| layer | direction | read | written | useful mma | limit | floor, us | predicted, us "
    "| share of copy |\n| --- | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |"
)


def main() -> None:
    DOCS.write_text(with_predictions(DOCS.read_text(), render(PREDICTIONS)))


def with_predictions(text: str, tables: str) -> str:
    """``text`` with ``tables`` between its two markers; ValueError where one is missing."""
    pattern = re.escape(BEGIN) + ".*" + re.escape(END)
    new, found = re.subn(pattern, lambda _: f"{BEGIN}\n{tables}\n{END}", text, flags=re.S)
    if found != 1:
        raise ValueError(f"{DOCS.name}: expected the markers {BEGIN} and {END}, once")
    return new


def render(folder: Path) -> str:
    """Markdown: a table for each card and file, bfloat16; traffic as multiples of the least."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        predictions = json.loads(path.read_text())["predictions"]
        for card, of_card in groupby(predictions, lambda p: p["card"]):
            rows = list(of_card)
            suite = path.stem.partition("-")[0]
            parts.append(f"{card}, {suite}, batch {rows[0]['batch']}:\n\n{HEAD}\n" + _rows(rows))
    return "\n\n".join(parts)


def _rows(predictions: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"| {p['layer']} | {p['direction']} | {p['read']:.2f} | {p['written']:.2f} "
        f"| {100 * p['useful']:.0f}% | {p['limit']} | {p['floor_us']:.1f} "
        f"| {p['predicted_us']:.1f} | {100 * p['share']:.0f}% |"
        for p in predictions
    )


if __name__ == "__main__":
    main()
