"""Times that can be compared: repeats interleaved, medians with quantiles."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)
_WARM_UP_ROUNDS = 2
_MIN_ROUNDS = 7
_MAX_ROUNDS = 1000
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


@dataclass(frozen=True)
class Timing:
    """Median and 20% and 80% quantiles of repeated calls, in milliseconds."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, nanoseconds: Sequence[int]) -> Timing:
        """Summarise at least one repeat; quantiles between two repeats are interpolated."""
        values = torch.tensor(nanoseconds, dtype=torch.float64) / 1e6
        p20, median, p80 = values.quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist()
        return cls(median, p20, p80)


def interleaved(
    calls: Mapping[Name, Sequence[Callable[[], object]]], seconds: float
) -> dict[Name, Timing]:
    """Time every entry of ``calls`` round by round: A B C, C A B, ...

    What disturbs the machine for a while disturbs all entries alike, so ratios of the medians
    hold on a noisy machine too. The order of every round is drawn anew, because an entry is faster
    after one that runs the same code. After two rounds of warm-up come at least seven timed
    rounds, and more until ``seconds`` have passed.

    Args:
        calls: by name, equivalent calls that take turns, one a round; several of them, each with
            its own operands, keep a round from finding the operands of the last one in cache.
            An entry's result is freed outside its time.
        seconds: aimed duration of all rounds together.
    """
    times: dict[Name, list[int]] = {name: [] for name in calls}
    for round in range(_WARM_UP_ROUNDS):
        _one_round(calls, round)
    deadline = perf_counter_ns() + int(seconds * 1e9)
    for round in range(_MAX_ROUNDS):
        if round >= _MIN_ROUNDS and perf_counter_ns() > deadline:
            break
        for name, elapsed in _one_round(calls, round).items():
            times[name].append(elapsed)
    return {name: Timing.of(values) for name, values in times.items()}


def _one_round(calls: Mapping[Name, Sequence[Callable[[], object]]], round: int) -> dict[Name, int]:
    elapsed = {}
    for name in random.sample(list(calls), len(calls)):
        call = calls[name][round % len(calls[name])]
        start = perf_counter_ns()
        result = call()
        elapsed[name] = perf_counter_ns() - start
        del result
    return elapsed


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the rest of the process; without glibc, do nothing.

    By default it returns large blocks to the system, depending on what else lies on the heap, and
    whichever call comes next pays for fresh pages: up to twice the time of a kernel, and not its
    own doing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
