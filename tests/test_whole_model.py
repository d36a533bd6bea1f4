"""Whole models beside their peers: parity, work, times, and peers that are not there."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from functools import partial

import pytest
import torch
from small_models import tiny
from tiny_suite import FIELDS
from torch.utils.flop_counter import FlopCounterMode

import resnext_kernels as rk
from resnext_kernels.bench import peaks, report, runner, subjects, timing, whole_model
from resnext_kernels.bench.model_implementations import (
    COMPILED,
    INDUCTOR,
    OURS,
    PEERS,
    NotAvailable,
)

EAGER = ("torch:channels_last", "torch:contiguous")
SIZES = subjects._SIZES


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A model and images that run in milliseconds, one round, and nothing compiled."""
    family = rk.models
    monkeypatch.setattr(family, "tiny", partial(tiny, layers=(1, 2), stem="cifar"), raising=False)
    monkeypatch.setattr(family, "__all__", [*family.__all__, "tiny"])
    monkeypatch.setattr(subjects, "_SIZES", {1: 17, 2: 17})
    monkeypatch.setattr(whole_model, "_REST", 0)
    monkeypatch.setattr(timing, "_MAX_ROUNDS", 1)
    monkeypatch.setitem(peaks._SIZES, "cpu", peaks._Sizes(32, 1 << 16))
    monkeypatch.delitem(OURS, COMPILED)


def run(dtypes=(torch.float32,), batches=(2,), peers=EAGER, **options):
    return whole_model.run(["tiny"], dtypes, batches, peers, **options)


def wrong(known, name: str, value: float):
    """An implementation that adds ``value`` to its logits."""
    right = known[name]

    def bind(*args):
        forward = right.bind(*args)
        return lambda: forward() + value

    return dataclasses.replace(right, bind=bind)


def bound(implementation, dtype=torch.float32):
    subject = subjects.Subject.make("tiny", 3, "cpu")
    return implementation.bind(subject.model.to(dtype), subject.images.to(dtype)), subject.logits


def test_run_measures_every_model_form_and_peer():
    dtypes, batches, said = (torch.float32, torch.bfloat16), (1, 3), []
    result = run(dtypes, batches, progress=said.append)
    assert len(said) == whole_model.steps(["tiny"], dtypes, batches, EAGER)
    assert json.loads(json.dumps(result, allow_nan=False)) == result and not result["skipped"]
    records = result["records"]
    keys = {(r["dtype"], r["batch"], r["implementation"]) for r in records}
    assert keys == {
        (t, n, i) for t in ("float32", "bfloat16") for n in batches for i in (*OURS, *EAGER)
    }
    for r in records:
        assert set(r) == FIELDS and r["parity"] == "green"
        assert (r["suite"], r["problem"], r["direction"], r["count"]) == (
            "model",
            "tiny",
            "fprop",
            1,
        )
        assert r["layout"] == {**OURS, **PEERS}[r["implementation"]].layout
        assert r["relative_error"] < {"float32": 1e-5, "bfloat16": 3e-2}[r["dtype"]]
        same = [p for p in records if (p["dtype"], p["batch"]) == (r["dtype"], r["batch"])]
        times = [p["ms_median"] for p in same if p["implementation"] in EAGER]
        assert r["speedup_vs_best_peer"] == pytest.approx(min(times) / r["ms_median"], rel=1e-3)
    one, three = (next(r for r in records if r["batch"] == n) for n in batches)
    assert three["flops"] == 3 * one["flops"] and one["bytes"] < three["bytes"] < 3 * one["bytes"]
    assert "auto:optimized" in report.report(result)


def test_what_inductor_compiles_is_measured_beside_its_peer(monkeypatch):
    monkeypatch.setitem(OURS, COMPILED, dataclasses.replace(OURS["auto"], name=COMPILED))
    for peers in ((), EAGER, (INDUCTOR,)):
        names = [i.name for i in whole_model._implementations(peers)]
        ours = ["auto", "auto:optimized", COMPILED]
        assert names == ours[: 3 if INDUCTOR in peers else 2] + list(peers)


@pytest.mark.parametrize(
    "name, size, gmac",
    [
        ("resnet50", 224, 4.09), ("resnext50_32x4d", 224, 4.23), ("resnext101_32x8d", 224, 16.41),
        ("resnext29_8x64d", 32, 5.39),
    ],
)  # fmt: skip
def test_work_is_the_models(monkeypatch, name, size, gmac):
    """torchvision publishes the multiply-adds of each model for ImageNet."""
    monkeypatch.setattr(subjects, "_SIZES", SIZES)
    layers = subjects.layers(name)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        getattr(rk.models, name)().eval()(torch.empty(1, 3, size, size))
    flops = sum(layer.flops for layer in layers)
    assert flops == counter.get_total_flops()
    assert flops / 2e9 == pytest.approx(gmac, abs=0.01)


@pytest.mark.parametrize("value", [1.0, math.nan])
def test_a_wrong_implementation_gets_no_time_and_is_no_rival(monkeypatch, value):
    monkeypatch.setitem(OURS, "auto", wrong(OURS, "auto", value))
    monkeypatch.setitem(PEERS, EAGER[0], wrong(PEERS, EAGER[0], value))
    result = run()
    records = {r["implementation"]: r for r in result["records"]}
    for name, r in records.items():
        red = name in ("auto", EAGER[0])
        assert r["parity"] == ("red" if red else "green")
        assert (r["ms_median"] is None) == (r["speedup_vs_best_peer"] is None) == red
        assert (r["relative_error"] is None) == (red and math.isnan(value))
    assert records[EAGER[1]]["speedup_vs_best_peer"] == 1.0
    assert "PARITY RED: auto tiny fprop float32 batch 2" in report.report(result)


def test_one_wrong_layer_is_red(monkeypatch):
    """In bfloat16 too, whose rounding errors reach the tolerance soonest."""
    auto = OURS["auto"]

    def bind(model, images):
        model.layer2[1].conv2.weight.zero_()
        return auto.bind(model, images)

    monkeypatch.setitem(OURS, "auto", dataclasses.replace(auto, bind=bind))
    records = run([torch.bfloat16], peers=[])["records"]
    assert records[0]["implementation"] == "auto" and records[0]["parity"] == "red"


def test_peers_that_are_not_installed_are_told_of(monkeypatch):
    missing = ("onnxruntime", "openvino")
    for module in missing:
        monkeypatch.setitem(sys.modules, module, None)
    result = run(peers=[*EAGER, *missing])
    assert {r["implementation"] for r in result["records"]} == {*OURS, *EAGER}
    assert set(result["skipped"]) == set(missing)
    for name in missing:
        assert name in result["skipped"][name] and "[peers]" in result["skipped"][name]


@pytest.mark.parametrize("known, name", [(OURS, "auto"), (PEERS, EAGER[0])])
def test_an_implementation_that_fails_is_recorded_so(monkeypatch, known, name):
    def fails(model, images):
        raise RuntimeError("no such\nlayer")

    monkeypatch.setitem(known, name, dataclasses.replace(known[name], bind=fails))
    result = run()
    assert result["skipped"] == {f"{name}, tiny float32 batch 2": "RuntimeError: no such layer"}
    for r in result["records"]:
        failed = r["implementation"] == name
        assert r["parity"] == ("failed" if failed else "green")
        assert (r["ms_median"] is None) == (r["relative_error"] is None) == failed
    assert set(result["records"][0]) == FIELDS
    assert "failed" in report.report(result)


def test_a_case_that_fails_as_a_whole_stops_no_other(monkeypatch):
    """And times that cannot be had make no result wrong."""
    make, interleaved = subjects.Subject.make, whole_model.interleaved
    makes = iter([RuntimeError("out of memory"), None])
    rounds = iter([RuntimeError("launch failed"), None])

    def failing_first(real, outcomes):
        def call(*args):
            if error := next(outcomes):
                raise error
            return real(*args)

        return call

    monkeypatch.setattr(subjects.Subject, "make", failing_first(make, makes))
    monkeypatch.setattr(whole_model, "interleaved", failing_first(interleaved, rounds))
    result = run(batches=(1, 2, 3))
    parity = {(r["batch"], r["parity"]) for r in result["records"]}
    assert parity == {(1, "failed"), (2, "failed"), (3, "green")}
    found = result["skipped"]
    assert found["auto, tiny float32 batch 1"] == "RuntimeError: out of memory"
    assert found["auto, tiny float32 batch 2"] == "RuntimeError: launch failed"


def test_peaks_that_cannot_be_measured_end_nothing(monkeypatch):
    def fails(device):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(peaks, "_copy_gbps", fails)
    result = run()
    assert result["skipped"] == {"peaks": "RuntimeError: out of memory"}
    assert all(r["ms_median"] and r["roofline_fraction"] is None for r in result["records"])


def test_an_interrupted_run_keeps_what_is_done():
    def progress(text):
        if text.startswith("tiny float32 batch 2: auto ready"):
            raise KeyboardInterrupt

    result = run(batches=(1, 2, 3), progress=progress)
    assert {r["batch"] for r in result["records"]} == {1}
    assert result["skipped"][runner.INTERRUPTED] == "the last 2 of 3 cases"


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="models: 'resnet5', expected some of .*resnet50"):
        whole_model.run(["resnet5"])
    with pytest.raises(ValueError, match="peers: 'jax', expected some of .*openvino"):
        run(peers=["jax"])
    with pytest.raises(ValueError, match="batches"):
        run(batches=())


def test_models_are_measured_as_they_are_given():
    """No implementation changes the model that the next one is given."""
    subject = subjects.Subject.make("tiny", 2, "cpu")
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    for implementation in (*OURS.values(), *(PEERS[name] for name in EAGER)):
        implementation.bind(subject.model, subject.images)
    after = subject.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    grouped = [m for m in subject.model.modules() if isinstance(m, rk.GroupedConv2d)]
    assert len(grouped) == 3


@torch.no_grad()
@pytest.mark.parametrize("name", [COMPILED, INDUCTOR])
def test_compiled_models_are_frozen(monkeypatch, name):
    monkeypatch.undo()
    monkeypatch.setattr(rk.models, "tiny", partial(tiny, layers=(1,), stem="cifar"), raising=False)
    monkeypatch.setattr(subjects, "_SIZES", {1: 17, 2: 17})
    forward, logits = bound({**OURS, **PEERS}[name])
    assert runner.relative_error(forward(), logits) < 1e-5
    stem = next(forward.func.parameters())
    assert stem.shape[1] == 3
    stem.zero_()  # of which the compiled code has a copy, laid out as oneDNN wants it
    assert runner.relative_error(forward(), logits) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    "name, modules", [("onnxruntime", ("onnxruntime", "onnxscript")), ("openvino", ("openvino",))]
)
def test_exported_models_are_right(name, modules):
    for module in modules:
        pytest.importorskip(module)
    forward, logits = bound(PEERS[name])
    assert runner.relative_error(torch.as_tensor(forward()), logits) < 1e-5


@torch.no_grad()
def test_openvino_computes_in_bfloat16():
    pytest.importorskip("openvino")
    subject = subjects.Subject.make("tiny", 3, "cpu")
    model, images = subject.model.bfloat16(), subject.images.bfloat16()
    try:
        forward = PEERS["openvino"].bind(model, images)
    except NotAvailable as reason:
        pytest.skip(str(reason))
    exact = model.double()(images.double())  # of the same rounded weights
    assert 1e-4 < runner.relative_error(torch.as_tensor(forward()), exact) < 3e-2


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_exported_models_are_for_the_cpu_alone(name):
    with pytest.raises(NotAvailable, match="CPU alone"):
        PEERS[name].bind(torch.nn.Identity(), torch.empty(1, device="meta"))


def test_onnxruntime_has_float32_alone():
    with pytest.raises(NotAvailable, match="float32 alone"):
        PEERS["onnxruntime"].bind(torch.nn.Identity(), torch.empty(1, dtype=torch.bfloat16))
