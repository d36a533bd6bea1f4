"""Writes the measured results in README.md and docs/results.md anew from the files in results/."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from resnext_kernels.bench.report import Summary, call_line, split, summarise
from resnext_kernels.bench.runner import Record, Result
from resnext_kernels.bench.suites import SUITES
from resnext_kernels.dispatch import AUTO

CHECKOUT = Path(__file__).parents[1]
README = CHECKOUT / "README.md"
DOCS = CHECKOUT / "docs" / "results.md"
RESULTS = CHECKOUT / "benchmarks" / "results"
BEGIN, END = "<!-- results: python benchmarks/update_readme.py -->", "<!-- end of results -->"
NOTHING = "No results are committed yet: `python -m resnext_kernels bench` measures them."
LEGEND = (
    "In brackets: the speed-up of a suite's worst layer; of whole models, which form of ours and "
    "which peer was the fastest. Above 1 is faster. "
    "[Every figure, and plots](docs/results.md)."
)
HEAD = """<!-- written by python benchmarks/update_readme.py -->
# Measured results

Speed-ups are geometric means over the distinct layers of a suite, against the fastest peer of the
same run; the lowest layer's is in brackets. The share of the peak is of all layers together, each
counted as often as the model has it ([how it is measured](../benchmarks/README.md)).
"""
Devices = dict[str, list[Result]]  # by the name of the folder, in the order of the suites


def main() -> None:
    devices = load(RESULTS)
    README.write_text(with_results(README.read_text(), readme_block(devices)))
    DOCS.write_text(docs_page(devices))


def load(folder: Path) -> Devices:
    """The results of every device."""
    order = list(SUITES)
    devices: Devices = {}
    for path in sorted(folder.glob("*/*.json")):
        devices.setdefault(path.parent.name, []).append(json.loads(path.read_text()))
    for results in devices.values():
        results.sort(key=lambda r: order.index(_suite(r)) if _suite(r) in order else len(order))
    return devices


def _suite(result: Result) -> str:
    return result["records"][0]["suite"]


def with_results(readme: str, results: str) -> str:
    """``readme`` with ``results`` between its two markers; ValueError where one is missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{README.name}: expected the markers {BEGIN} and {END}, in this order")
    return f"{before}{BEGIN}\n{results}\n{END}{after}"


def readme_block(devices: Devices) -> str:
    """Markdown for all devices, one screen for each: how much faster layers and models are."""
    if not devices:
        return NOTHING
    parts = []
    for results in devices.values():
        parts.append(_machine(results))
        parts += filter(None, (_short_table(results), _short_model_table(results)))
        parts += filter(None, (_cardinality(results), _calls(results)))
    return "\n\n".join([*parts, LEGEND])


def docs_page(devices: Devices) -> str:
    """Markdown for all devices: every suite, every model, and the plots of each."""
    parts = [HEAD.strip() if devices else f"{HEAD}\n{NOTHING}"]
    for device, results in devices.items():
        parts += [f"## {device}", _machine(results)]
        parts += filter(None, (_table(results), _model_table(results), _calls(results)))
        for suite in map(_suite, results):
            parts.append(f"### {suite}\n\n![{suite} on {device}](plots/{device}/{suite}.svg)")
    return "\n\n".join(parts) + "\n"


def _machine(results: Sequence[Result]) -> str:
    """What was measured on, by which state of the package, and the peaks of the first run."""
    first = results[0]
    machine, peaks = first["machine"], first["peaks"]
    gflops = ", ".join(f"{value:.0f} GFLOP/s {dtype}" for dtype, value in peaks["gflops"].items())
    how = "" if _on_gpu(first) else f" {machine['threads']} threads, {machine['kernel_isa']},"
    commits = dict.fromkeys((result["commit"] or "unknown")[:7] for result in results)
    return (
        f"{machine['processor']},{how} torch {first['torch']}; commits {', '.join(commits)}; "
        f"peaks in the run of {_suite(first)}: {gflops}, {peaks['gbps']:.0f} GB/s."
    )


def _cardinality(results: Sequence[Result]) -> str | None:
    """How many times as long ResNeXt-50 takes as ResNet-50: our fastest forms, PyTorch's own."""
    found = _models(results)
    parts = []
    for (model, dtype, batch), resnet in found.items():
        resnext = found.get(("resnext50_32x4d", dtype, batch), {})
        if model == "resnet50":
            times = [_fastest(t, prefix) for prefix in (AUTO, "torch") for t in (resnext, resnet)]
            if all(times):
                ours, torchs = times[0] / times[1], times[2] / times[3]
                parts.append(f"{dtype}, batch {batch}: {ours:.2f} ({torchs:.2f})")
    if not parts:
        return None
    return (
        "Time of ResNeXt-50 over that of ResNet-50, which has as many FLOPs (in brackets: "
        f"PyTorch's own): {'; '.join(parts)}. The paper measured 1.36, training 101 layers."
    )


def _fastest(times: dict[str, Record], prefix: str) -> float:
    """Of the implementations whose names begin so; 0 where there is none."""
    of_these = (r["ms_median"] or 0.0 for n, r in times.items() if n.partition(":")[0] == prefix)
    return min(of_these, default=0.0)


def _calls(results: Sequence[Result]) -> str | None:
    """What a call costs beside its arithmetic, of the first result that tells."""
    return next((f"{call_line(r['call_us'])}." for r in results if r.get("call_us")), None)


def _on_gpu(result: Result) -> bool:
    return result["machine"].get("device") == "cuda"


def _markdown(headers: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    """A table whose first ``texts`` columns are text, the others numbers."""
    rules = ["---"] * texts + ["---:"] * (len(headers) - texts)
    return "\n".join(f"| {' | '.join(line)} |" for line in (headers, rules, *rows))


def _summaries(results: Sequence[Result]) -> dict[tuple[str, str, str, int], Summary]:
    """What "auto" did on channels_last images, by suite, direction, dtype and batch."""
    return {
        (_suite(result), s.direction, s.dtype, s.batch): s
        for result in results
        for s in summarise(result)
        if s.implementation == AUTO and s.layout == "channels_last"
    }


def _short_table(results: Sequence[Result]) -> str:
    """One row for a suite and dtype; a column for each batch size and direction."""
    found = _summaries(results)
    rows = dict.fromkeys((suite, dtype) for suite, _, dtype, _ in found)
    batches = sorted({batch for *_, batch in found})
    columns = [(b, d) for b in batches for d in dict.fromkeys(d for _, d, *_ in found)]
    headers = ["suite", "dtype", *(f"{d}, batch {b}" for b, d in columns)]
    lines = [
        [suite, dtype, *(_speedup(found.get((suite, d, dtype, b))) for b, d in columns)]
        for suite, dtype in rows
    ]
    return _markdown(headers, lines, 2) if lines else ""


def _speedup(summary: Summary | None) -> str:
    if summary is None or summary.speedup is None:
        return "-"
    return f"{summary.speedup:.2f}x ({summary.lowest:.2f}x)"


def _table(results: Sequence[Result]) -> str:
    """One row for a suite, direction and dtype; two columns for a batch size.

    The second tells the share of what bounds a grouped convolution: arithmetic on a CPU, on a GPU
    the least time by the roofline.
    """
    found, on_gpu = _summaries(results), _on_gpu(results[0])
    batches = sorted({batch for *_, batch in found})
    headers = ["suite", "direction", "dtype"]
    for batch in batches:
        headers += [f"batch {batch}", "of roofline" if on_gpu else "of FMA peak"]
    lines = []
    for key in dict.fromkeys((suite, direction, dtype) for suite, direction, dtype, _ in found):
        of_row = [found.get((*key, batch)) for batch in batches]
        lines.append([*key, *(c for s in of_row for c in (_speedup(s), _share(s, on_gpu)))])
    return _markdown(headers, lines, 3) if lines else ""


def _share(summary: Summary | None, on_gpu: bool) -> str:
    share = summary and (summary.roofline_fraction if on_gpu else summary.peak_fraction)
    return "-" if share is None else f"{share:.0%}"


def _models(results: Sequence[Result]) -> dict[tuple[str, str, int], dict[str, Record]]:
    """Records of whole models that were right: by model, dtype and batch, then implementation."""
    found: dict[tuple[str, str, int], dict[str, Record]] = {}
    for result in results:
        for r in split(result["records"])[0]:
            if r["ms_median"] is not None:
                key = (r["problem"], r["dtype"], r["batch"])
                found.setdefault(key, {})[r["implementation"]] = r
    return found


def _short_model_table(results: Sequence[Result]) -> str:
    """One row for a model and dtype; for each batch size our best time, and over which peer's."""
    found = _models(results)
    batches = sorted({batch for *_, batch in found})
    headers = ["model", "dtype"]
    for batch in batches:
        headers += [f"batch {batch}, ms", "over the best peer"]
    lines = [
        [*key, *(cell for b in batches for cell in _best(found.get((*key, b), {})))]
        for key in dict.fromkeys((model, dtype) for model, dtype, _ in found)
    ]
    return _markdown(headers, lines, 2) if lines else ""


def _best(times: dict[str, Record]) -> tuple[str, str]:
    ours = {n: r["ms_median"] or 0.0 for n, r in times.items() if n.partition(":")[0] == AUTO}
    peers = {n: r["ms_median"] or 0.0 for n, r in times.items() if n not in ours}
    if not ours or not peers:
        return "-", "-"
    mine, peer = min(ours, key=ours.__getitem__), min(peers, key=peers.__getitem__)
    return f"{ours[mine]:.1f} ({mine})", f"{peers[peer] / ours[mine]:.2f}x ({peer})"


def _model_table(results: Sequence[Result]) -> str:
    """One row for a model, dtype and batch size; the milliseconds of each implementation."""
    found = _models(results)
    names = dict.fromkeys(name for times in found.values() for name in times)
    lines = [
        [model, dtype, str(batch), *(_ms(times.get(name)) for name in names)]
        for (model, dtype, batch), times in found.items()
    ]
    return _markdown(["model, ms", "dtype", "batch", *names], lines, 2) if lines else ""


def _ms(record: Record | None) -> str:
    return f"{record['ms_median']:.1f}" if record else "-"


if __name__ == "__main__":
    main()
