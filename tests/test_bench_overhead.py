"""What a call costs beside its arithmetic."""

import dataclasses

import torch

from resnext_kernels.backends import cpu
from resnext_kernels.bench import overhead, report
from resnext_kernels.bench.implementations import OURS


def test_calls_are_timed():
    threads = torch.get_num_threads()
    times = overhead.call_microseconds("cpu", 0.05, OURS, {})
    assert torch.get_num_threads() == threads
    assert list(times)[0] == overhead.TORCH and "aten" in times
    assert ("cpu" in times) == cpu.LIBRARY.loaded
    assert all(0.1 < time < 10_000 for time in times.values())


def test_only_named_backends_are_timed(monkeypatch):
    """The others might have to compile first."""
    monkeypatch.setattr(overhead, "reasons_against", lambda name, problem, direction: [])
    for name in ("cuda", "triton", "cpu"):
        monkeypatch.setitem(OURS, name, OURS["aten"])
    assert list(overhead.call_microseconds("cpu", 0, ["auto"], {})) == ["torch", "aten"]
    found = overhead.call_microseconds("cpu", 0, ["cuda", "aten", "auto"], {})
    assert list(found) == ["torch", "cuda", "aten"]


def test_one_backend_that_fails_leaves_the_times_of_the_others(monkeypatch):
    def broken():
        raise RuntimeError("no kernel image")

    broken_cpu = dataclasses.replace(OURS["cpu"], bind=lambda *args: broken)
    monkeypatch.setitem(OURS, "cpu", broken_cpu)
    monkeypatch.setattr(overhead, "reasons_against", lambda name, problem, direction: [])
    skipped = {}
    assert list(overhead.call_microseconds("cpu", 0, ["cpu"], skipped)) == ["torch", "aten"]
    assert skipped == {"call_us of cpu": "RuntimeError: no kernel image"}


def test_the_line_tells_the_difference():
    line = report.call_line({"torch": 30.0, "cpu": 12.5, "aten": 34.25})
    assert line.endswith("microseconds: F.conv2d 30.0, cpu 12.5 (-17.5), aten 34.2 (+4.2)")
