"""What problems ask of the machine, and the numbers of a record that follow from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, TypedDict

from ..problem import ConvProblem, dtype_name
from .peaks import PeaksDict
from .timing import Timing


class Numbers(TypedDict):
    """The part of a `Record` that is measured, or follows from what is."""

    ms_median: float | None
    ms_p20: float | None
    ms_p80: float | None
    gflops: float | None
    gbps: float | None
    roofline_fraction: float | None
    speedup_vs_best_peer: float | None
    flops: int
    needed_flops: int
    bytes: int
    parity: str
    relative_error: float | None


class Work(NamedTuple):
    """Operations and least traffic of one call, or of one after another.

    ``floor_ms`` is the least time that a machine's peaks allow: for each call
    ``max(needed_flops / peak_flops, bytes / peak_bandwidth)``; 0 where a peak is not known.
    """

    flops: int
    needed_flops: int
    bytes: int
    floor_ms: float

    @classmethod
    def of(cls, problems: Iterable[ConvProblem], peaks: PeaksDict) -> Work:
        """The sums over at least one problem."""
        each = [_of_one(problem, peaks) for problem in problems]
        return cls(
            sum(work.flops for work in each),
            sum(work.needed_flops for work in each),
            sum(work.bytes for work in each),
            sum(work.floor_ms for work in each),
        )


def _of_one(problem: ConvProblem, peaks: PeaksDict) -> Work:
    needed, moved = needed_flops(problem), problem.bytes_moved()
    peak, bandwidth = peaks["gflops"][dtype_name(problem.dtype)], peaks["gbps"]
    floor = max(needed / peak, moved / bandwidth) / 1e6 if peak and bandwidth else 0.0
    return Work(problem.flops, needed, moved, floor)


def needed_flops(problem: ConvProblem) -> int:
    """Multiplications and additions of one direction, without the products with padding.

    A kernel may leave those out, so only this count bounds its time from below; the usual one,
    `ConvProblem.flops`, is 22% more for a 3x3 kernel on 7x7 pixels.
    """
    taps = 1
    for size, outputs, kernel, stride, padding, dilation in zip(
        problem.in_size, problem.out_size, problem.kernel,
        problem.stride, problem.padding, problem.dilation, strict=True,
    ):  # fmt: skip
        firsts = (k * dilation - padding for k in range(kernel))
        taps *= sum(_inside(first, stride, outputs, size) for first in firsts)
    return 2 * problem.batch * problem.out_channels * problem.in_width * taps


def _inside(first: int, step: int, count: int, size: int) -> int:
    """How many of ``count`` pixels, ``step`` apart from ``first`` on, lie in an image."""
    before, up_to_end = (min(max(-((first - end) // step), 0), count) for end in (0, size))
    return up_to_end - before


def numbers(
    work: Work, timing: Timing | None, best_peer_ms: float | None, error: float, failed: bool
) -> Numbers:
    """What a record says of a call: without ``timing``, which only a green parity has, no time."""

    def per_ms(quantity: float | None) -> float | None:
        return quantity / timing.median if timing and quantity else None

    return {
        "ms_median": _short(timing.median if timing else None),
        "ms_p20": _short(timing.p20 if timing else None),
        "ms_p80": _short(timing.p80 if timing else None),
        "gflops": _short(per_ms(work.flops / 1e6)),
        "gbps": _short(per_ms(work.bytes / 1e6)),
        "roofline_fraction": _short(per_ms(work.floor_ms)),
        "speedup_vs_best_peer": _short(per_ms(best_peer_ms)),
        "flops": work.flops,
        "needed_flops": work.needed_flops,
        "bytes": work.bytes,
        "parity": "green" if timing else "failed" if failed else "red",
        "relative_error": _short(error) if math.isfinite(error) else None,
    }


def _short(value: float | None) -> float | None:
    """Five significant digits: more would be noise."""
    return None if value is None else float(f"{value:.5g}")
