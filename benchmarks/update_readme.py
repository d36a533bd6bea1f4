"""Writes the table of measured results in README.md anew from the JSON files in results/."""

from __future__ import annotations

import json
from pathlib import Path

from resnext_kernels.bench.report import Summary, summarise
from resnext_kernels.bench.runner import Result
from resnext_kernels.dispatch import AUTO

CHECKOUT = Path(__file__).parents[1]
README = CHECKOUT / "README.md"
RESULTS = CHECKOUT / "benchmarks" / "results"
BEGIN, END = "<!-- results: python benchmarks/update_readme.py -->", "<!-- end of results -->"


def main() -> None:
    README.write_text(with_results(README.read_text(), render(load(RESULTS))))


def load(folder: Path) -> dict[str, list[Result]]:
    """The results of every device, by the name of its folder."""
    results: dict[str, list[Result]] = {}
    for path in sorted(folder.glob("*/*.json")):
        results.setdefault(path.parent.name, []).append(json.loads(path.read_text()))
    return results


def with_results(readme: str, results: str) -> str:
    """``readme`` with ``results`` between its two markers; ValueError where one is missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{README.name}: expected the markers {BEGIN} and {END}, in this order")
    return f"{before}{BEGIN}\n{results}\n{END}{after}"


def render(devices: dict[str, list[Result]]) -> str:
    """Markdown for all devices: a line about each machine, then its table."""
    if not devices:
        return "No results are committed yet: `python -m resnext_kernels bench` measures them."
    return "\n\n".join(f"{_machine(r[0])}\n\n{_table(r)}" for r in devices.values())


def _machine(result: Result) -> str:
    machine, peaks = result["machine"], result["peaks"]
    gflops = ", ".join(f"{value:.0f} GFLOP/s {dtype}" for dtype, value in peaks["gflops"].items())
    threads = "" if _on_gpu(result) else f" {machine['threads']} threads,"
    return (
        f"{machine['processor']},{threads} torch {result['torch']}; "
        f"measured peaks: {gflops}, {peaks['gbps']:.0f} GB/s."
    )


def _on_gpu(result: Result) -> bool:
    return result["machine"].get("device") == "cuda"


def _table(results: list[Result]) -> str:
    """One row for a suite, direction and dtype; two columns for a batch size.

    The second tells the share of what bounds a grouped convolution: arithmetic on a CPU, on a GPU
    the least time by the roofline.
    """
    on_gpu = _on_gpu(results[0])
    rows: dict[tuple[str, str, str], dict[int, Summary]] = {}
    for result in results:
        suite = result["records"][0]["suite"]
        for summary in summarise(result):
            if summary.implementation == AUTO and summary.layout == "channels_last":
                key = (suite, summary.direction, summary.dtype)
                rows.setdefault(key, {})[summary.batch] = summary
    batches = sorted({batch for row in rows.values() for batch in row})
    headers = ["suite", "direction", "dtype"]
    bound = "of roofline" if on_gpu else "of FMA peak"
    for batch in batches:
        headers += [f"speed-up, batch {batch} (lowest layer)", bound]
    lines = [headers, ["---"] * 3 + ["---:"] * (2 * len(batches))]
    for key, row in rows.items():
        lines.append(
            [*key, *(cell for batch in batches for cell in _cells(row.get(batch), on_gpu))]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(summary: Summary | None, on_gpu: bool) -> tuple[str, str]:
    if summary is None or summary.speedup is None:
        return "-", "-"
    share = summary.roofline_fraction if on_gpu else summary.peak_fraction
    return f"{summary.speedup:.2f}x ({summary.lowest:.2f}x)", f"{share:.0%}"


if __name__ == "__main__":
    main()
