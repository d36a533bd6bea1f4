"""The benchmark on a GPU, with stand-ins for one: how it times, and what it compares with."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from tiny_suite import case

from resnext_kernels import machine
from resnext_kernels.bench import peaks, runner, timing
from resnext_kernels.bench.implementations import (
    PEERS,
)
from resnext_kernels.bench.timing import Timing
from resnext_kernels.problem import DIRECTIONS


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "_MAX_ROUNDS", 8)
    monkeypatch.setitem(peaks._SIZES, "cpu", peaks._Sizes(32, 1 << 16))


class StandInEvent:
    """A CUDA event of a machine without one: it notes when it was queued."""

    def __init__(self, log: list[object]) -> None:
        self.log = log
        self.time = 0

    def record(self) -> None:
        self.time = len(self.log)
        self.log.append("event")

    def elapsed_time(self, end: StandInEvent) -> float:
        return float(end.time - self.time)


@pytest.fixture
def stand_in_gpu(monkeypatch) -> list[object]:
    """The log of what is queued on a GPU that every access to torch.cuda finds."""
    log: list[object] = []
    properties = SimpleNamespace(
        name="a GPU", L2_cache_size=1000, multi_processor_count=3, total_memory=5 << 20
    )
    stand_ins = {
        "current_device": lambda: 0,
        "get_device_properties": lambda device: properties,
        "get_device_capability": lambda: (9, 0),
        "get_device_name": lambda: "a GPU",
        "Event": lambda enable_timing: StandInEvent(log),
        "_sleep": lambda cycles: log.append(("busy", cycles)),
        "synchronize": lambda: log.append("synchronize"),
    }
    for name, function in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, function)

    def on_cpu(function):
        return lambda *args, device="cpu", **options: function(*args, device="cpu", **options)

    for name in ("empty", "ones", "randn"):
        monkeypatch.setattr(torch, name, on_cpu(getattr(torch, name)))
    return log


def test_a_gpu_is_kept_busy_before_every_call_and_waited_for_once(stand_in_gpu):
    calls = {name: [lambda name=name: stand_in_gpu.append(name)] for name in "ab"}
    found = timing.run_rounds(calls, range(3), "cuda")
    assert stand_in_gpu.pop() == "synchronize"
    queued = [stand_in_gpu[i : i + 4] for i in range(0, len(stand_in_gpu), 4)]
    assert [(q[0], q[1], q[3]) for q in queued] == [
        (("busy", timing._HEAD_START), "event", "event")
    ] * 6
    assert [name for name, _ in found] == [q[2] for q in queued]
    assert {ns for _, ns in found} == {2_000_000}, "from event to event, in nanoseconds"
    times = timing.interleaved(calls, 0, "cuda")
    assert times == {name: Timing(2.0, 2.0, 2.0) for name in "ab"}


def test_peaks_and_machine_of_a_gpu(stand_in_gpu, monkeypatch):
    monkeypatch.setitem(peaks._SIZES, "cuda", peaks._Sizes(32, 1 << 16))
    meter = peaks.Peaks([torch.bfloat16], "cuda")
    meter.sample()
    ms = 1.0  # from one event to the next, with nothing of ours in the log between them
    found = meter.as_dict()
    assert found["gbps"] == pytest.approx(2 * (1 << 16) / ms / 1e6)
    assert found["gflops"] == pytest.approx({"bfloat16": 2 * 32**3 / ms / 1e6})
    assert found["method"]["gflops"].startswith("torch.mm of 32x32")
    about = machine.describe("cuda")
    assert about["processor"] == "a GPU" and about["kernel_isa"] == "sm_90 a GPU"
    assert json.loads(json.dumps(about)) == about


def test_inductor_is_a_peer(monkeypatch):
    """The call is compiled as a whole, and computes what torch does."""
    compiled = []

    def fake_compile(call, **options):
        compiled.append(options)
        return call

    monkeypatch.setattr(torch, "compile", fake_compile)
    for direction in DIRECTIONS:
        (found,) = runner.measure(case(direction), [PEERS["torch:inductor"]], 0)
        assert found.timing is not None
    assert all(options["mode"].startswith("max-autotune") for options in compiled)
    assert len(compiled) == 3 * runner._OPERAND_SETS
