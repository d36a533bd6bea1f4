"""What is made of measurements: records, tables, the plot, and the README's table."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
from tiny_suite import FIELDS, LAYERS, PEAKS, case, measured, result_of

from resnext_kernels.bench import plot, report, runner, suites
from resnext_kernels.problem import DIRECTIONS

CHECKOUT = Path(__file__).parents[1]


def test_records_derive_from_medians_of_one_run():
    times: dict[str, float | None] = {
        "auto": 2.0, "torch:channels_last": 8.0, "torch:contiguous": 6.0,
    }  # fmt: skip
    c = case(batch=2)
    records = runner.records_of(measured(c, times), PEAKS)
    assert all(set(r) == FIELDS for r in records)
    flops, moved = c.problem.flops, c.problem.bytes_moved()
    needed = runner.needed_flops(c.problem)
    assert needed < flops
    floor = max(needed / 100e6, moved / 10e6)
    for r, ms in zip(records, times.values(), strict=True):
        assert (r["ms_median"], r["ms_p20"], r["ms_p80"]) == (ms, ms / 2, ms * 2)
        assert r["gflops"] == pytest.approx(flops / ms / 1e6, rel=1e-4)
        assert r["gbps"] == pytest.approx(moved / ms / 1e6, rel=1e-4)
        assert r["roofline_fraction"] == pytest.approx(floor / ms, rel=1e-4)
        assert r["speedup_vs_best_peer"] == pytest.approx(6.0 / ms, rel=1e-4)
        assert (r["count"], r["suite"], r["dtype"]) == (2, "tiny", "float32")


def test_a_red_peer_is_not_the_best_peer():
    records = runner.records_of(
        measured(case(), {"auto": 2.0, "torch:channels_last": None, "torch:contiguous": 6.0}),
        PEAKS,
    )
    assert records[0]["speedup_vs_best_peer"] == 3.0
    assert report._best_peer_of(records[0], records) is records[2]
    assert "torch:contiguous" in report.table(records, "tiny, float32, batch 1")


def test_contiguous_calls_are_compared_within_their_layout():
    auto, last, contiguous = measured(
        case(), {"auto": 2.0, "torch:channels_last": 3.0, "torch:contiguous": 6.0}
    )
    turned = dataclasses.replace(auto, implementation=auto.implementation.in_layout("contiguous"))
    records = runner.records_of([auto, turned, last, contiguous], PEAKS)
    assert [r["speedup_vs_best_peer"] for r in records] == [1.5, 3.0, 1.0, 0.5]
    assert [report._best_peer_of(r, records) for r in records[:2]] == [records[2], records[3]]
    summaries = report.summarise(result_of([auto, turned, last, contiguous]))
    assert [s.layout for s in summaries] == ["channels_last", "contiguous"]
    assert [s.speedup for s in summaries] == pytest.approx([1.5, 3.0])


def two_layers() -> runner.Result:
    first, second = case(layer=LAYERS[0]), case(layer=LAYERS[1])
    return result_of(
        measured(first, {"auto": 1.0, "torch:contiguous": 2.0})
        + measured(second, {"auto": 2.0, "torch:contiguous": 16.0})
    )


def test_summary_is_the_geometric_mean_and_the_models_flops():
    (found,) = report.summarise(two_layers())
    problems = [case(layer=x).problem for x in LAYERS]
    first, second = (p.flops for p in problems)
    needed = [runner.needed_flops(p) for p in problems]
    assert found.speedup == pytest.approx(4.0)
    assert (found.lowest, found.layers, found.green) == (2.0, 2, 2)
    assert found.gflops == pytest.approx((2 * first + second) / (2 * 1.0 + 2.0) / 1e6)
    peak_ms = (2 * needed[0] + needed[1]) / 100e6
    assert found.peak_fraction == pytest.approx(peak_ms / (2 * 1.0 + 2.0))
    floors = [max(n / 100e6, p.bytes_moved() / 10e6) for n, p in zip(needed, problems, strict=True)]
    least_ms = 2 * floors[0] + floors[1]
    assert found.roofline_fraction == pytest.approx(least_ms / (2 * 1.0 + 2.0), rel=1e-4)


def test_summary_leaves_red_layers_out_and_says_so():
    first, second = case(layer=LAYERS[0]), case(layer=LAYERS[1])
    result = result_of(
        measured(first, {"auto": 1.0, "torch:contiguous": 2.0})
        + measured(second, {"auto": None, "torch:contiguous": 16.0})
    )
    (found,) = report.summarise(result)
    assert (found.speedup, found.green, found.layers) == (2.0, 1, 2)
    assert "1 of 2" in report.summary_table(result)


def test_report_shows_each_problem_once_aligned():
    text = report.report(two_layers())
    lines = text.splitlines()
    assert lines[0] == "tiny, float32, batch 1"
    assert [line.split()[-1] for line in lines[3:5]] == ["2.00x", "8.00x"]
    assert len({len(line) for line in lines[2:5]}) == 1
    assert "not measured: cuda: no such device" in text
    assert "float32 100 GFLOP/s, bfloat16 200 GFLOP/s (a guess)" in text


def test_aligned_without_rows():
    assert report.aligned(("a", "bc"), []) == "a  bc\n-  --"


def test_plot_writes_a_figure(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    cases = [
        case(d, t, b, x) for d in DIRECTIONS for t in suites.DTYPES.values() for b in (1, 8)
        for x in LAYERS
    ]  # fmt: skip
    times = {"auto": 1.0, "torch:contiguous": 2.0}
    path = tmp_path / "plot.png"
    plot.plot(result_of([m for c in cases for m in measured(c, times)]), path)
    pixels = image.imread(path)
    assert pixels.shape[0] > 500 and pixels.shape[1] > 1000
    assert pixels[..., :3].std() > 0.05


def test_plot_of_red_records_says_that_there_is_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    result = result_of(measured(case(), {"auto": None, "torch:contiguous": 2.0}))
    with pytest.raises(ValueError, match="'auto'.*red"):
        plot.plot(result, tmp_path / "plot.png")


def update_readme():
    path = CHECKOUT / "benchmarks" / "update_readme.py"
    spec = importlib.util.spec_from_file_location("update_readme", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_agrees_with_the_committed_results():
    module = update_readme()
    text = module.README.read_text()
    assert text == module.with_results(text, module.render(module.load(module.RESULTS)))


def test_readme_table_is_made_from_the_results(tmp_path):
    module = update_readme()
    folder = tmp_path / "device"
    folder.mkdir()
    (folder / "tiny.json").write_text(json.dumps(two_layers()))
    table = module.render(module.load(tmp_path))
    assert "a processor, 2 threads" in table
    assert "| tiny | fprop | float32 | 4.00x (2.00x) |" in table
    on_gpu = two_layers()
    on_gpu["machine"] |= {"device": "cuda", "processor": "a GPU"}
    gpu_table = module.render({"gpu": [on_gpu]})
    assert "a GPU, torch" in gpu_table and "of roofline" in gpu_table
    (summary,) = report.summarise(on_gpu)
    assert f"| 4.00x (2.00x) | {summary.roofline_fraction:.0%} |" in gpu_table
    readme = f"head\n{module.BEGIN}\nold\n{module.END}\ntail\n"
    written = module.with_results(readme, table)
    assert "old" not in written and table in written
    assert written.startswith("head\n") and written.endswith("\ntail\n")
    assert module.with_results(written, table) == written
    with pytest.raises(ValueError, match="markers"):
        module.with_results("head", table)
