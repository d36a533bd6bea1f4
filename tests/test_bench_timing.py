"""The benchmark's clock: whose turn it is, for how long, and what is made of the times."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import resource
import statistics

import pytest
import torch

from resnext_kernels.bench import timing
from resnext_kernels.bench.timing import Timing


def test_timing_summarises_in_milliseconds():
    nanoseconds = [random.randint(1, 10**7) for _ in range(31)]
    found = Timing.of(nanoseconds)
    deciles = statistics.quantiles(nanoseconds, n=10, method="inclusive")
    expected = Timing(statistics.median(nanoseconds) / 1e6, deciles[1] / 1e6, deciles[7] / 1e6)
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(expected))
    assert Timing.of([3_000_000]) == Timing(3.0, 3.0, 3.0)


def test_every_round_calls_every_entry_once_with_the_next_operands(monkeypatch):
    monkeypatch.setattr(timing, "_FAR_BEHIND", math.inf)
    log: list[tuple[str, int]] = []
    calls = {n: [lambda n=n, i=i: log.append((n, i)) for i in range(2)] for n in "abcd"}
    times = timing.interleaved(calls, seconds=0)
    assert set(times) == set("abcd")
    rounds = [log[i : i + 4] for i in range(0, len(log), 4)]
    assert len(rounds) == timing._WARM_UP_ROUNDS + timing._MIN_ROUNDS
    assert all({name for name, _ in r} == set("abcd") for r in rounds)
    turns = [{turn for _, turn in r} for r in rounds]
    assert turns == [{0}, {1}, *({i % 2} for i in range(timing._MIN_ROUNDS))]
    assert len({tuple(name for name, _ in r) for r in rounds}) > 1


def test_rounds_go_on_for_the_seconds_asked_for(monkeypatch):
    monkeypatch.setattr(timing, "_MAX_ROUNDS", 10**6)
    count = 0

    def call():
        nonlocal count
        count += 1

    timing.interleaved({"a": [call]}, seconds=0.05)
    assert count > 100


def test_rounds_go_on_until_the_medians_are_known(monkeypatch):
    clock = itertools.count(0, 10**6)
    monkeypatch.setattr(timing, "perf_counter_ns", lambda: next(clock))
    monkeypatch.setattr(timing, "_MAX_ROUNDS", 1000)

    def rounds(known):
        count = []
        monkeypatch.setattr(timing, "_known", lambda times: known(len(count)))
        timing.interleaved({"a": [lambda: count.append(0)]}, seconds=0.06)
        return len(count) - timing._WARM_UP_ROUNDS

    # Three times a round the clock goes on by a millisecond: 20 of them fill 60 ms.
    assert rounds(lambda done: True) == pytest.approx(20, abs=1)
    assert rounds(lambda done: done > 50) == pytest.approx(50, abs=2)
    assert rounds(lambda done: False) == pytest.approx(80, abs=1)


def test_entries_far_behind_are_out_after_few_rounds(monkeypatch):
    now = 0

    def advance(milliseconds):
        nonlocal now
        now += milliseconds * 10**6

    monkeypatch.setattr(timing, "perf_counter_ns", lambda: now)
    monkeypatch.setattr(timing, "_MAX_ROUNDS", 1000)
    monkeypatch.setattr(timing, "_known", lambda times: True)
    took = {"fast": 2, "near": 7, "slow": 900}
    count = dict.fromkeys(took, 0)

    def call(name):
        count[name] += 1
        advance(took[name])

    found = timing.interleaved({n: [lambda n=n: call(n)] for n in took}, seconds=0.36)
    assert {name: time.median for name, time in found.items()} == took
    assert count["slow"] == timing._WARM_UP_ROUNDS + timing._FAR_ROUNDS
    assert count["fast"] == count["near"]
    # A round of the two takes 9 ms; those of the slow one count for nothing.
    assert count["fast"] - timing._WARM_UP_ROUNDS == pytest.approx(40, abs=1)


def test_standard_error_is_what_medians_scatter_by():
    samples = (1e6 * torch.randn(300, 75) + 1e7).long().tolist()
    timings = [Timing.of(sample) for sample in samples]
    told = statistics.median(t.standard_error(75) for t in timings)
    assert told == pytest.approx(statistics.stdev(t.median for t in timings) / 10, rel=0.25)


def test_freed_memory_is_used_again():
    timing.keep_freed_memory()

    def fresh_pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(1 << 24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    # The heap may have to grow a few times; returned to the system, it would be 16384 pages always.
    assert min(fresh_pages() for _ in range(5)) < 1000
