"""Which source tiles `conv_rows` loads at each step of its march, and which sums they belong to."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ....problem import ConvProblem, Pair


@dataclass(frozen=True)
class Schedule:
    """One step of the march.

    A load is ``(y, x, sum, tap, sum, tap, ...)``: at step ``row`` and each column, the source pixel
    at ``(row, column) * src_step + (y, x)`` times the weights of each tap goes to the sum that the
    tap comes with. There is one sum for each phase of the destination, ``dst_step[0] *
    dst_step[1]`` in rows, which is written at ``(row, column) * dst_step + phase``.

    With ``ring`` > 0, sums are for the rows ``row .. row + ring``: the first is finished and
    written at each step, and the march begins ``ring`` steps early. One image has ``size`` steps
    and columns.
    """

    loads: tuple[tuple[int, ...], ...]
    ring: int
    src_step: Pair
    dst_step: Pair
    size: Pair

    @property
    def record(self) -> int:
        """The length of the longest load."""
        return max(map(len, self.loads))

    @property
    def records(self) -> tuple[int, ...]:
        """All loads in one tuple, as kernels take it, each filled up with -1 to one length."""
        filled = (load + (-1,) * (self.record - len(load)) for load in self.loads)
        return tuple(itertools.chain.from_iterable(filled))

    @property
    def phases(self) -> int:
        """Sums that are written at each step."""
        return self.dst_step[0] * self.dst_step[1]

    @property
    def case(self) -> str:
        """Its class in the table of configurations."""
        if self.ring:
            return "ring"
        return "phases" if self.phases > 1 else "taps"


def fprop_schedule(problem: ConvProblem) -> Schedule:
    """``out[p, q] = sum over r, s of in[p*stride + r*dilation - padding, ...] * w[r, s]``."""
    (taps_r, taps_s), (top, left) = problem.kernel, problem.padding
    (stride_h, _), (dilation_h, dilation_w) = problem.stride, problem.dilation
    loads: list[tuple[int, ...]]
    if stride_h == 1 and dilation_h == 1:
        bottom = taps_r - 1
        loads = [
            (bottom - top, s * dilation_w - left,
             *_flat((later, (bottom - later) * taps_s + s) for later in range(taps_r)))
            for s in range(taps_s)
        ]  # fmt: skip
        return Schedule(tuple(loads), bottom, problem.stride, (1, 1), problem.out_size)
    loads = [
        (r * dilation_h - top, s * dilation_w - left, 0, r * taps_s + s)
        for r, s in itertools.product(range(taps_r), range(taps_s))
    ]
    return Schedule(tuple(loads), 0, problem.stride, (1, 1), problem.out_size)


def dgrad_schedule(problem: ConvProblem) -> Schedule:
    """``in[h, w] = sum of out[p, q] * w[r, s]`` where ``h = p*stride + r*dilation - padding``."""
    (taps_r, taps_s), (top, left) = problem.kernel, problem.padding
    (stride_h, stride_w), (dilation_h, dilation_w) = problem.stride, problem.dilation
    if problem.stride == (1, 1) and dilation_h == 1:
        loads = [
            (top, left - s * dilation_w,
             *_flat((later, later * taps_s + s) for later in range(taps_r)))
            for s in range(taps_s)
        ]  # fmt: skip
        return Schedule(tuple(loads), taps_r - 1, (1, 1), (1, 1), problem.in_size)
    uses: dict[Pair, list[Pair]] = defaultdict(list)
    for r, s in itertools.product(range(taps_r), range(taps_s)):
        # Tap (r, s) of source pixel (p, q) hits one phase of the destination.
        y, x = r * dilation_h - top, s * dilation_w - left
        phase = (y % stride_h) * stride_w + x % stride_w
        uses[-(y // stride_h), -(x // stride_w)].append((phase, r * taps_s + s))
    loads = [(y, x, *_flat(found)) for (y, x), found in sorted(uses.items())]
    height, width = problem.in_size
    size = (-(-height // stride_h), -(-width // stride_w))
    return Schedule(tuple(loads), 0, (1, 1), problem.stride, size)


def _flat(pairs: Iterable[Pair]) -> list[int]:
    return list(itertools.chain.from_iterable(pairs))
