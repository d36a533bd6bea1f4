"""The benchmark: its problems, the machine it tells of, and its parity gate."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_suite import FIELDS, LAYERS, break_auto, case

import resnext_kernels as rk
from resnext_kernels import machine
from resnext_kernels.bench import peaks, report, runner, suites, timing, work
from resnext_kernels.bench.implementations import (
    DEFAULT_OURS,
    DEFAULT_PEERS,
    OURS,
    PEERS,
    Implementation,
    Operands,
)
from resnext_kernels.bench.runner import Measurement
from resnext_kernels.bench.suites import Layer
from resnext_kernels.library import Library
from resnext_kernels.problem import DIRECTIONS, ConvProblem


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "_MAX_ROUNDS", 8)
    monkeypatch.setitem(peaks._SIZES, "cpu", peaks._Sizes(32, 1 << 16))


@pytest.mark.parametrize(
    "suite, build",
    [
        ("resnext50", rk.models.resnext50_32x4d),
        ("resnext101_32x8d", rk.models.resnext101_32x8d),
        ("resnext101_64x4d", rk.models.resnext101_64x4d),
    ],
)
def test_suite_is_the_models_grouped_layers(suite, build):
    found: Counter[tuple[int, ...]] = Counter()

    def note(module, inputs, output):
        _, channels, height, width = inputs[0].shape
        assert channels == module.out_channels and height == width
        assert module.kernel_size == (3, 3) and module.padding == (1, 1)
        found[channels, height, module.stride[0], module.groups] += 1

    with torch.device("meta"):
        model = build().eval()
        for module in model.modules():
            if isinstance(module, rk.GroupedConv2d):
                module.register_forward_hook(note)
        model(torch.empty(1, 3, 224, 224))
    layers = suites.SUITES[suite]
    assert found == {(x.channels, x.size, x.stride, x.groups): x.count for x in layers}


def test_cases_are_all_combinations_once():
    cases = suites.cases_of("resnext50", DIRECTIONS, suites.DTYPES.values(), [1, 8])
    assert len(set(cases)) == len(cases) == 7 * 3 * 2 * 2
    assert cases[0].problem.input_shape == (1, 128, 56, 56)
    assert cases[0].problem.output_shape == (1, 128, 56, 56)
    assert cases[1].problem.output_shape == (1, 256, 28, 28)


@pytest.mark.parametrize("seed", range(5))
def test_needed_flops_counts_products_within_the_image(seed):
    draw = random.Random(seed)
    kernel, stride, padding, dilation = (
        (draw.randint(1, top), draw.randint(1, top)) for top in (4, 3, 3, 2)
    )
    x = torch.ones(2, 6, draw.randint(7, 11), draw.randint(7, 11))
    w = torch.ones(4, 3, *kernel)
    problem = ConvProblem.of(x, w, stride, padding, dilation, 2)
    products = F.conv2d(x, w, None, stride, padding, dilation, 2).sum()
    assert work.needed_flops(problem) == 2 * products
    assert work.needed_flops(problem) <= problem.flops


def test_needed_flops_of_outputs_beyond_counting():
    """However far the padding goes, each of the 5x6 pixels meets each of the 3x3 taps once."""
    sizes = (1, 8, (5, 6), 8, (3, 3), (1, 1), (2**40, 2**40), (1, 1), 4)
    problem = ConvProblem(*sizes, torch.float32, "cpu", True)
    assert work.needed_flops(problem) == 2 * 8 * 2 * (5 * 6) * (3 * 3)


def test_implementations_of_a_layout_share_all_operands_never_in_the_same_round():
    seen: dict[str, list[int]] = {}

    def noting(name):
        def bind(problem, direction, x):
            return lambda: seen.setdefault(name, []).append(id(x.input))

        return dataclasses.replace(OURS["aten"], name=name, bind=bind)

    tiny = case()
    own = {noting(n): [Operands.random(tiny.problem) for _ in range(2)] for n in "abc"}
    calls = runner._in_turns(tiny, own)
    for turns in zip(*calls.values(), strict=True):
        for call in turns:
            call()
    everything = {id(x.input) for sets in own.values() for x in sets}
    assert all(set(ids) == everything for ids in seen.values())
    assert all(len(set(ids)) == 3 for ids in zip(*seen.values(), strict=True))


def test_peaks_keep_the_best_sample(monkeypatch):
    copies, flops = iter([3.0, 5.0, 4.0]), iter([7.0, 6.0, 9.0])
    monkeypatch.setattr(peaks, "_copy_gbps", lambda device: next(copies))
    monkeypatch.setattr(peaks, "_matmul_gflops", lambda dtype, device: next(flops))
    monkeypatch.setattr(peaks.cpu, "LIBRARY", Library("_cpu", False, "not built"))
    meter = peaks.Peaks([torch.float32])
    for _ in range(3):
        meter.sample()
    found = meter.as_dict()
    assert (found["gflops"], found["gbps"]) == ({"float32": 9.0}, 5.0)
    assert found["threads"] == torch.get_num_threads()
    assert found["method"]["gflops"].startswith("torch.mm")


def test_peaks_are_measured_with_and_without_the_library(monkeypatch):
    kinds = [peaks.cpu.LIBRARY, Library("_cpu", False, "not built")]
    for library in kinds:
        monkeypatch.setattr(peaks.cpu, "LIBRARY", library)
        meter = peaks.Peaks([torch.float32, torch.bfloat16])
        meter.sample()
        found = meter.as_dict()
        assert set(found["gflops"]) == {"float32", "bfloat16"}
        assert all(0 < value < 1e6 for value in (*found["gflops"].values(), found["gbps"]))
        assert found["method"]["gflops"].startswith("chains") == library.loaded


def test_machine_and_commit():
    found = machine.describe()
    assert json.loads(json.dumps(found)) == found
    assert found["threads"] == torch.get_num_threads() and found["processor"]
    commit = machine.commit()
    head = machine._git(Path(__file__).parent, "rev-parse", "HEAD")
    assert (commit or "").removesuffix("-dirty") == (head or "")
    assert machine._git(Path("/no such folder"), "status") is None


@pytest.mark.parametrize("dtype", suites.DTYPES.values(), ids=suites.DTYPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_run_measures_every_implementation(direction, dtype):
    cases = [case(direction, dtype, batch, x) for x in LAYERS for batch in (1, 3)]
    seen: list[list[Measurement]] = []
    result = runner.run(cases, seconds=0, progress=seen.append)
    assert [m[0].case for m in seen] == cases
    expected = {name for name in DEFAULT_OURS if name not in result["skipped"]}
    expected |= set(DEFAULT_PEERS)
    assert "auto" in expected
    for c in cases:
        key = (str(c.layer), c.batch)
        records = [r for r in result["records"] if (r["problem"], r["batch"]) == key]
        assert {r["implementation"] for r in records} == expected
        assert all(r["parity"] == "green" for r in records)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_run_measures_what_was_asked_for_in_every_layout():
    names, layouts = ("auto", "aten"), ("contiguous", "channels_last")
    result = runner.run([case()], [], ours=names, layouts=layouts, seconds=0)
    found = {(r["implementation"], r["layout"]) for r in result["records"]}
    assert found == {(name, layout) for name in names for layout in layouts}
    assert all(r["parity"] == "green" for r in result["records"])
    assert all(r["speedup_vs_best_peer"] is None for r in result["records"])
    text = report.report(result)
    assert "tiny, float32, batch 1\n" in text and "batch 1, contiguous images\n" in text


def test_an_interrupted_run_keeps_what_is_done():
    cases = [case(batch=batch) for batch in (1, 2, 3)]
    seen = []

    def progress(measurements):
        seen.append(measurements)
        if len(seen) == 2:
            raise KeyboardInterrupt

    result = runner.run(cases, ours=["aten"], seconds=0, progress=progress)
    assert {r["batch"] for r in result["records"]} == {1, 2}
    assert result["skipped"][runner.INTERRUPTED] == "the last 1 of 3 cases"
    assert "not measured: interrupted: the last 1 of 3 cases" in report.report(result)


def test_cudnn_is_at_its_best_while_it_is_measured(monkeypatch):
    """And enabled, which torch's own context manager for its flags is not by default."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    seen = []

    def bind(*args):
        flags = torch.backends.cudnn
        return lambda: seen.append((flags.benchmark, flags.enabled)) or torch.zeros(1)

    runner.measure(case(), [dataclasses.replace(OURS["aten"], bind=bind)], 0)
    assert set(seen) == {(True, True)} and not torch.backends.cudnn.benchmark


def test_operands_have_the_layout_that_the_record_tells():
    problem = case().problem
    turned = (i.in_layout("contiguous") for i in OURS.values())
    for implementation in (*OURS.values(), *turned, *PEERS.values()):
        x = implementation.copy_operands(runner.Operands.random(problem))
        last = implementation.layout == "channels_last"
        assert x.input.is_contiguous(memory_format=torch.channels_last) == last
        assert x.grad_output.is_contiguous(memory_format=torch.channels_last) == last
        assert x.input.is_contiguous() != last


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("value", [1.0, math.nan])
def test_a_wrong_implementation_gets_no_time_and_no_speedup(monkeypatch, direction, value):
    break_auto(monkeypatch, value)
    result = runner.run([case(direction)], seconds=0)
    wrong = [r for r in result["records"] if r["parity"] == "red"]
    assert [r["implementation"] for r in wrong] == ["auto"]
    numbers = FIELDS - {
        "count", "flops", "needed_flops", "bytes", "batch", "relative_error",
    }  # fmt: skip
    times = {k: v for k, v in wrong[0].items() if k in numbers and not isinstance(v, str)}
    assert len(times) == 7 and set(times.values()) == {None}
    assert (wrong[0]["relative_error"] is None) == math.isnan(value)
    json.dumps(result, allow_nan=False)
    text = report.report(result)
    assert f"PARITY RED: auto {LAYERS[0]} {direction} float32 batch 1" in text
    assert text.splitlines()[3].split()[-1] == "-"


def test_one_wrong_element_of_many_is_red():
    auto = OURS["auto"]

    def bind(*args):
        out = auto.bind(*args)().clone()
        out[0, 0, 0, 0] += out.float().std()
        return lambda: out

    wrong = dataclasses.replace(auto, bind=bind)
    many = case(dtype=torch.bfloat16, layer=Layer(128, 28, 1, 32, 1))
    right, found = runner.measure(many, [auto, wrong], 0)
    assert right.timing is not None and found.timing is None
    assert found.error == pytest.approx(1 / 30, rel=0.2)


def test_a_wrong_shape_is_red(monkeypatch):
    auto = OURS["auto"]
    short = dataclasses.replace(auto, bind=lambda *args: lambda: auto.bind(*args)()[..., :-1])
    (found,) = runner.measure(case(), [short], 0)
    assert found.timing is None and found.error == math.inf


def test_implementations_are_frozen_values():
    assert all(isinstance(i, Implementation) and i.name == n for n, i in {**OURS, **PEERS}.items())
    assert set(OURS) >= {"auto", "cpu", "aten"} and "aten" not in DEFAULT_OURS


def test_a_run_interrupted_before_a_case_is_done_keeps_nothing(monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "call_microseconds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run([case()], ours=["aten"], seconds=0)
