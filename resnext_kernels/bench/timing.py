"""Times that can be compared: repeats interleaved, medians with quantiles.

On a CPU a call's time is the clock's. On a GPU it lies between two CUDA events on the stream: the
calls of several rounds are queued without waiting, so that the host is ahead of the GPU and its
own time does not count; see `_gpu_rounds`.
"""

from __future__ import annotations

import ctypes
import math
import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns, sleep
from typing import TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)
Calls = Mapping[Name, Sequence[Callable[[], object]]]
Turn = tuple[Name, Callable[[], object]]
_WARM_UP_ROUNDS = 2
_MIN_ROUNDS = 7
_MAX_ROUNDS = 1000
_FAR_BEHIND, _FAR_ROUNDS = 4, 3  # times the fastest: such entries are out after as few rounds
_MAX_WINDOWS = 4  # the aimed duration is passed so often at most
_STANDARD_ERROR = 0.01  # of the median, relative, with which a time is known well enough
_ROUNDS_QUEUED = 8  # on a GPU, between two looks at the clock
_CACHES_FLUSHED = 2  # the bytes copied between two calls on a GPU, in sizes of its L2 cache
_HEAD_START = 200_000  # clock cycles, about 0.1 ms: the host queues a call in less
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

    def standard_error(self, repeats: int) -> float:
        """Of the median, relative to it, from the spread and as of normally distributed times."""
        deviation = (self.p80 - self.p20) / 1.683
        return 1.253 * deviation / math.sqrt(repeats) / self.median


def interleaved(
    calls: Calls[Name], seconds: float, device: str = "cpu", rest: float = 0.0
) -> dict[Name, Timing]:
    """Time every entry of ``calls`` round by round: A B C, C A B, ...

    What disturbs the machine for a while disturbs all entries alike, so ratios of the medians
    hold on a noisy machine too. The order of every round is drawn anew, because an entry is faster
    after one that runs the same code. After two rounds of warm-up come at least seven timed
    rounds, and more until ``seconds`` have passed; after three of them without the entries that
    are far behind, which would leave few rounds to the others.

    Args:
        calls: by name, equivalent calls that take turns, one a round; several of them, each with
            its own operands, keep a round from finding the operands of the last one in cache.
            An entry's result is freed outside its time.
        seconds: aimed duration of the rounds together, on a quiet machine, without the time of
            entries that are far behind.
        device: "cpu", or "cuda" for calls that queue their work on the current stream.
        rest: seconds of idleness before each call, where the calls use several pools of threads:
            those of OpenMP go on turning for 10 ms, and take the cores from another pool's.
    """
    step = _ROUNDS_QUEUED if device == "cuda" else 1
    times: dict[Name, list[int]] = {name: [] for name in calls}
    run_rounds(calls, range(_WARM_UP_ROUNDS), device, rest)
    racing, spent = dict(calls), 0.0
    for start in range(0, _MAX_ROUNDS, step):
        if _FAR_ROUNDS <= start < _FAR_ROUNDS + step:
            racing = {name: calls[name] for name in _near(times)}
            spent *= sum(sum(times[n]) for n in racing) / max(1, sum(map(sum, times.values())))
        windows = spent / (seconds * 1e9) if seconds else math.inf
        enough = start >= _MIN_ROUNDS and windows > 1
        if enough and (windows > _MAX_WINDOWS or _known({name: times[name] for name in racing})):
            break
        begin = perf_counter_ns()
        for name, elapsed in run_rounds(racing, range(start, start + step), device, rest):
            times[name].append(elapsed)
        spent += perf_counter_ns() - begin
    return {name: Timing.of(values) for name, values in times.items()}


def _near(times: Mapping[Name, Sequence[int]]) -> list[Name]:
    """The entries that are not far behind the fastest."""
    medians = {name: Timing.of(values).median for name, values in times.items()}
    return [n for n, median in medians.items() if median <= _FAR_BEHIND * min(medians.values())]


def _known(times: Mapping[Name, Sequence[int]]) -> bool:
    return all(Timing.of(v).standard_error(len(v)) < _STANDARD_ERROR for v in times.values())


def run_rounds(
    calls: Calls[Name], rounds: range, device: str, rest: float = 0.0
) -> list[tuple[Name, int]]:
    """The nanoseconds of every call of some rounds, as `interleaved` times them."""
    return (_gpu_rounds if device == "cuda" else _cpu_rounds)(_turns(calls, rounds, rest))


def _turns(calls: Calls[Name], rounds: range, rest: float) -> Iterator[Turn[Name]]:
    """Every entry once a round, in an order drawn anew, with the call whose turn it is."""
    for round in rounds:
        for name in random.sample(list(calls), len(calls)):
            sleep(rest)
            yield name, calls[name][round % len(calls[name])]


def _cpu_rounds(turns: Iterator[Turn[Name]]) -> list[tuple[Name, int]]:
    times = []
    for name, call in turns:
        start = perf_counter_ns()
        result = call()
        times.append((name, perf_counter_ns() - start))
        del result
    return times


def _gpu_rounds(turns: Iterator[Turn[Name]]) -> list[tuple[Name, int]]:
    """On the current GPU.

    Before each call the L2 cache is filled with other data, and the GPU is kept busy for longer
    than the host takes to queue the call: otherwise its time would hold the host's. That data is
    copied, as what a call reads and writes is, and as it is where bandwidth is measured: of data
    that was only written, all that a call evicts would have to be written back within its time.
    """
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    data = torch.empty(_CACHES_FLUSHED * cache, dtype=torch.uint8, device="cuda")
    other_data = torch.empty_like(data)
    times = []
    for name, call in turns:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        other_data.copy_(data)
        torch.cuda._sleep(_HEAD_START)
        start.record()
        call()
        end.record()
        times.append((name, start, end))
    torch.cuda.synchronize()
    return [(name, round(start.elapsed_time(end) * 1e6)) for name, start, end in times]


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
