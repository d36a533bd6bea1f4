"""What is made of measurements: records and tables."""

from __future__ import annotations

import dataclasses

import pytest
from tiny_suite import (
    FIELDS,
    LAYERS,
    PEAKS,
    case,
    measured,
    model_result,
    result_of,
    two_layers,
)

from resnext_kernels.bench import report, runner, suites, work
from resnext_kernels.problem import DIRECTIONS


def test_records_derive_from_medians_of_one_run():
    times: dict[str, float | None] = {
        "auto": 2.0, "torch:channels_last": 8.0, "torch:contiguous": 6.0,
    }  # fmt: skip
    c = case(batch=2)
    records = runner.records_of(measured(c, times), PEAKS)
    assert all(set(r) == FIELDS for r in records)
    flops, moved = c.problem.flops, c.problem.bytes_moved()
    needed = work.needed_flops(c.problem)
    assert needed < flops
    floor = max(needed / 100e6, moved / 10e6)
    for r, ms in zip(records, times.values(), strict=True):
        assert (r["ms_median"], r["ms_p20"], r["ms_p80"]) == (ms, ms / 2, ms * 2)
        assert r["gflops"] == pytest.approx(flops / ms / 1e6, rel=1e-4)
        assert r["gbps"] == pytest.approx(moved / ms / 1e6, rel=1e-4)
        assert r["roofline_fraction"] == pytest.approx(floor / ms, rel=1e-4)
        assert r["speedup_vs_best_peer"] == pytest.approx(6.0 / ms, rel=1e-4)
        assert (r["count"], r["suite"], r["dtype"]) == (2, "tiny", "float32")


def test_scatter_is_told():
    def scattered(*spreads: float | None) -> list[str]:
        times = measured(case(), {"auto": 2.0})
        (record,) = runner.records_of(times, PEAKS)
        quantiles = [(2.0, 2.0 * spread) if spread else (None, None) for spread in spreads]
        return report.scatter_line(
            record | {"ms_p20": low, "ms_p80": high} for low, high in quantiles
        )

    assert scattered(None) == []
    (quiet,) = scattered(1.1, 1.2, 1.4, None)
    assert quiet.endswith("quantile 1.20 in the median record, above 1.3 in 1 of 3")
    (disturbed,) = scattered(1.1, 1.5, 1.4)
    assert "1.40 in the median record, above 1.3 in 2 of 3;\nsomething else" in disturbed


def test_a_red_peer_is_not_the_best_peer():
    records = runner.records_of(
        measured(case(), {"auto": 2.0, "torch:channels_last": None, "torch:contiguous": 6.0}),
        PEAKS,
    )
    assert records[0]["speedup_vs_best_peer"] == 3.0
    assert report._best_peer_of(records[0], records) is records[2]
    assert "  contiguous  6.000     3.00x" in report.table(records, "tiny, float32, batch 1")


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


def test_summary_is_the_geometric_mean_and_the_models_flops():
    (found,) = report.summarise(two_layers())
    problems = [case(layer=x).problem for x in LAYERS]
    first, second = (p.flops for p in problems)
    needed = [work.needed_flops(p) for p in problems]
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


@pytest.mark.parametrize("suite", suites.SUITES)
def test_tables_fit_100_columns(suite):
    """With the long names of contiguous images and the times of slow machines."""
    made = suites.cases_of(suite, DIRECTIONS, suites.DTYPES.values(), (1, 256))
    times = {"auto": 1234.5, "torch:channels_last": 2345.6, "torch:contiguous": 9876.5}
    measurements = [m for c in made for m in measured(c, times)]
    measurements += [
        dataclasses.replace(m, implementation=m.implementation.in_layout("contiguous"))
        for m in measurements
        if m.implementation.name == "auto"
    ]
    text = report.report(result_of(measurements))
    assert max(map(len, text.splitlines())) <= 100


def test_whole_models_have_a_table_of_their_own():
    result = model_result()
    text = report.report(result)
    assert text.startswith("model, float32, batch 2\n") and "Geometric means" not in text
    lines = [line.split() for line in text.splitlines()]
    assert ["resnext50_32x4d", "auto:optimized", "40.00", "50.0", "1.25x"] in lines
    assert ["resnext50_32x4d", "openvino", "-", "-", "-"] in lines
    assert "PARITY RED: openvino resnext50_32x4d" in text
    assert report.summarise(result) == []
