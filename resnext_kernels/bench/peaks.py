"""What this machine reaches at best: arithmetic and memory bandwidth, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter_ns
from typing import TypedDict

import torch

from ..backends import cpu

_MATRIX = 1024
_COPY_BYTES = 128 << 20  # far beyond the last-level cache of most processors
_REPEATS = 3


class PeaksDict(TypedDict):
    """The form of `Peaks` in JSON: GFLOP/s by name of dtype, GB/s, and how they were measured."""

    gflops: dict[str, float]
    gbps: float
    threads: int
    method: dict[str, str]


class Peaks:
    """The best of samples taken over a run.

    A neighbour on the machine only ever makes a sample worse, so the best one is nearest to what
    the hardware can do.
    """

    def __init__(self, dtypes: Iterable[torch.dtype]) -> None:
        self._gflops = dict.fromkeys(dtypes, 0.0)
        self._gbps = 0.0
        self._fma_chains = cpu.LIBRARY.loaded

    def sample(self) -> None:
        """Measure everything once more, which takes a fraction of a second."""
        for dtype, best in self._gflops.items():
            measure = _fma_gflops if self._fma_chains else _matmul_gflops
            self._gflops[dtype] = max(best, measure(dtype))
        self._gbps = max(self._gbps, _copy_gbps())

    def as_dict(self) -> PeaksDict:
        """The best so far; `sample` first."""
        matmul = f"torch.mm of {_MATRIX}x{_MATRIX} matrices"
        return {
            "gflops": {str(t).removeprefix("torch."): v for t, v in self._gflops.items()},
            "gbps": self._gbps,
            "threads": torch.get_num_threads(),
            "method": {
                "gflops": "chains of multiply-adds in registers" if self._fma_chains else matmul,
                "gbps": f"copy of {_COPY_BYTES >> 20} MiB, bytes read plus bytes written",
            },
        }


def _fma_gflops(dtype: torch.dtype) -> float:
    return torch.ops.resnext_kernels_cpu.peak_gflops(str(dtype).removeprefix("torch."))


def _matmul_gflops(dtype: torch.dtype) -> float:
    a, b = (torch.randn(_MATRIX, _MATRIX).to(dtype) for _ in range(2))
    return 2 * _MATRIX**3 / _fastest_ns(lambda: torch.mm(a, b))


def _copy_gbps() -> float:
    source = torch.ones(_COPY_BYTES // 4)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / _fastest_ns(lambda: target.copy_(source))


def _fastest_ns(call: Callable[[], object]) -> int:
    """The shortest of a few calls after a first one that touches the memory."""
    call()
    times = []
    for _ in range(_REPEATS):
        start = perf_counter_ns()
        call()
        times.append(perf_counter_ns() - start)
    return min(times)
