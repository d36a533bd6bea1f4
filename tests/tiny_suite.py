"""Cases small enough to measure in a test, and measurements and results made up from them."""

from __future__ import annotations

import dataclasses
import math

import torch

from resnext_kernels.bench import peaks, runner, suites
from resnext_kernels.bench.implementations import OURS, PEERS
from resnext_kernels.bench.runner import Measurement
from resnext_kernels.bench.suites import Case, Layer
from resnext_kernels.bench.timing import Timing

LAYERS = (Layer(16, 6, 1, 4, 2), Layer(32, 7, 2, 4, 1))
FIELDS = {
    "suite", "problem", "direction", "dtype", "layout", "batch", "implementation", "ms_median",
    "ms_p20", "ms_p80", "gflops", "gbps", "roofline_fraction", "speedup_vs_best_peer",
    "count", "flops", "needed_flops", "bytes", "parity", "relative_error",
}  # fmt: skip
PEAKS: peaks.PeaksDict = {
    "gflops": {"float32": 100.0, "bfloat16": 200.0},
    "gbps": 10.0,
    "threads": 2,
    "method": {"gflops": "a guess", "gbps": "another"},
}


def case(direction="fprop", dtype=torch.float32, batch=1, layer=LAYERS[0]) -> Case:
    return Case("tiny", layer, direction, dtype, batch)


def measured(c: Case, times: dict[str, float | None]) -> list[Measurement]:
    """Measurements with given milliseconds by implementation; None for a red one."""
    known = {**OURS, **PEERS}
    return [
        Measurement(c, known[name], 1e-7 if ms else math.nan, ms and Timing(ms, ms / 2, ms * 2))
        for name, ms in times.items()
    ]


def result_of(measurements: list[Measurement]) -> runner.Result:
    return {
        "machine": {"processor": "a processor", "threads": 2, "kernel_isa": "avx2"},
        "torch": torch.__version__,
        "commit": None,
        "peaks": PEAKS,
        "call_us": {"torch": 30.0, "cpu": 12.5},
        "skipped": {"cuda": "no such device"},
        "records": runner.records_of(measurements, PEAKS),
    }


def two_layers() -> runner.Result:
    first, second = case(layer=LAYERS[0]), case(layer=LAYERS[1])
    return result_of(
        measured(first, {"auto": 1.0, "torch:contiguous": 2.0})
        + measured(second, {"auto": 2.0, "torch:contiguous": 16.0})
    )


def model_result() -> runner.Result:
    """One whole model, in float32 at batch 2; OpenVINO was wrong."""
    result = result_of(measured(case(batch=2), {"auto": 1.0}))
    (record,) = result["records"]
    times = {
        "auto": 62.5, "auto:optimized": 40.0, "torch:channels_last": 50.0, "openvino": None,
    }  # fmt: skip
    result["records"] = [
        {
            **record,
            "suite": suites.WHOLE_MODELS,
            "problem": "resnext50_32x4d",
            "implementation": name,
            "ms_median": ms,
            "ms_p20": ms and ms * 0.9,
            "ms_p80": ms and ms * 1.1,
            "speedup_vs_best_peer": ms and 50.0 / ms,
            "parity": "green" if ms else "red",
        }
        for name, ms in times.items()
    ]
    return result


def break_auto(monkeypatch, value: float) -> None:
    """Make "auto" add ``value`` to every result."""
    auto = OURS["auto"]

    def bind(problem, direction, operands):
        call = auto.bind(problem, direction, operands)

        def wrong():
            returned = call()
            if isinstance(returned, torch.Tensor):
                return returned + value
            return tuple(None if t is None else t + value for t in returned)

        return wrong

    monkeypatch.setitem(OURS, "auto", dataclasses.replace(auto, bind=bind))
