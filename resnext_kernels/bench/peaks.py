"""What this machine reaches at best: arithmetic and memory bandwidth, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypedDict

import torch

from ..backends import cpu
from ..problem import dtype_name
from .timing import run_rounds


class _Sizes(NamedTuple):
    """What is multiplied and copied: far beyond the last-level caches."""

    matrix: int  # rows and columns
    copy_bytes: int


_SIZES = {"cpu": _Sizes(1024, 128 << 20), "cuda": _Sizes(8192, 2 << 30)}
_REPEATS = 3


class PeaksDict(TypedDict):
    """The form of `Peaks` in JSON: GFLOP/s by name of dtype, GB/s, and how they were measured.

    0 is one that could not be measured.
    """

    gflops: dict[str, float]
    gbps: float
    threads: int
    method: dict[str, str]


class Peaks:
    """The best of samples taken over a run.

    A neighbour on the machine only ever makes a sample worse, so the best one is nearest to what
    the hardware can do.
    """

    def __init__(self, dtypes: Iterable[torch.dtype], device: str = "cpu") -> None:
        self._gflops = dict.fromkeys(dtypes, 0.0)
        self._gbps = 0.0
        self._device = device
        self._fma_chains = device == "cpu" and cpu.LIBRARY.loaded

    def sample(self) -> None:
        """Measure everything once more, which takes a fraction of a second."""
        for dtype, best in self._gflops.items():
            found = _fma_gflops(dtype) if self._fma_chains else _matmul_gflops(dtype, self._device)
            self._gflops[dtype] = max(best, found)
        self._gbps = max(self._gbps, _copy_gbps(self._device))

    def as_dict(self) -> PeaksDict:
        """The best so far; `sample` first."""
        sizes = _SIZES[self._device]
        matmul = f"torch.mm of {sizes.matrix}x{sizes.matrix} matrices"
        return {
            "gflops": {dtype_name(t): v for t, v in self._gflops.items()},
            "gbps": self._gbps,
            "threads": torch.get_num_threads(),
            "method": {
                "gflops": "chains of multiply-adds in registers" if self._fma_chains else matmul,
                "gbps": f"copy of {sizes.copy_bytes >> 20} MiB, bytes read plus bytes written",
            },
        }


def _fma_gflops(dtype: torch.dtype) -> float:
    return torch.ops.resnext_kernels_cpu.peak_gflops(dtype_name(dtype))


def _matmul_gflops(dtype: torch.dtype, device: str) -> float:
    side = _SIZES[device].matrix
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _fastest_ns(lambda: torch.mm(a, b), device)


def _copy_gbps(device: str) -> float:
    source = torch.ones(_SIZES[device].copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest_ns(lambda: target.copy_(source), device)


def _fastest_ns(call: Callable[[], object], device: str) -> int:
    """The shortest of a few calls after a first one that touches the memory."""
    call()
    return min(ns for _, ns in run_rounds({"call": [call]}, range(_REPEATS), device))
