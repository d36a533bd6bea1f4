"""Running cases: parity first, then times, then the records that tables and plots read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict

import torch
from torch import Tensor

from .. import machine, reference
from ..problem import dtype_name
from ..verification.numerics import relative_error, tolerance
from . import measurement
from .failures import kept, reason_of
from .implementations import (
    DEFAULT_OURS,
    DEFAULT_PEERS,
    OURS,
    PEERS,
    Call,
    Implementation,
    Layout,
    Operands,
    reasons_against,
    result_of,
)
from .overhead import call_microseconds
from .peaks import Peaks, PeaksDict
from .suites import Case
from .timing import Timing, interleaved, keep_freed_memory
from .work import Numbers, Work, numbers

INTERRUPTED = "interrupted"  # among what a result skipped
_OPERAND_SETS = 2
_PEAK_SAMPLES = 8
SECONDS = {"cpu": 0.5, "cuda": 0.2}  # for one case; a GPU's times scatter less


class Record(Numbers):
    """One implementation of one problem, in JSON.

    Times are in milliseconds; ``gflops`` and ``gbps`` are ``flops``, the usual count of
    `ConvProblem.flops`, and ``bytes``, the least traffic, over the median; ``roofline_fraction``
    is the least time that the machine's peaks allow, see `Work`, over the median.
    ``speedup_vs_best_peer`` is over the fastest peer, for a record in contiguous layout over the
    fastest one in that layout. All of them are None where ``parity`` is not "green": "red" is a
    wrong result, "failed" none at all. ``count`` tells how often the model has this layer.
    """

    suite: str
    problem: str
    direction: str
    dtype: str
    layout: str
    batch: int
    implementation: str
    count: int


class Result(TypedDict):
    """A whole run, in JSON.

    ``skipped`` tells why an implementation is not among the records, and of one that failed what it
    raised, by its label and the case. ``call_us``, empty for whole models, is what a call costs
    beside its arithmetic, see `overhead`.
    """

    machine: dict[str, Any]
    torch: str
    commit: str | None
    peaks: PeaksDict
    call_us: dict[str, float]
    skipped: dict[str, str]
    records: list[Record]


Measurement = measurement.Measurement[Case, Implementation]


def run(
    cases: Sequence[Case],
    peers: Sequence[str] = DEFAULT_PEERS,
    *,
    ours: Sequence[str] = DEFAULT_OURS,
    layouts: Sequence[Layout] = ("channels_last",),
    seconds: float | None = None,
    progress: Callable[[list[Measurement]], None] = lambda measurements: None,
) -> Result:
    """Measure every case with the named ones of `OURS`, in every layout, and of `PEERS`.

    The cases are of one device; on a GPU, cuDNN picks its algorithms by measurement. ``seconds``
    is the aimed duration of the timed rounds of one case. ``progress`` is called with the
    measurements of each case when it is done. An implementation that raises is recorded as failed;
    a KeyboardInterrupt ends the run with the cases that are done, if there are any.
    """
    device = cases[0].device if cases else "cpu"
    keep_freed_memory()
    peaks = Peaks(dict.fromkeys(case.dtype for case in cases), device)
    seconds = SECONDS[device] if seconds is None else seconds
    measurements: list[Measurement] = []
    skipped: dict[str, str] = {}
    call_us: dict[str, float] = {}
    try:
        with kept("peaks", skipped):
            peaks.sample()
        with kept("call_us", skipped):
            call_us = call_microseconds(device, 2 * seconds, ours, skipped)
        for index, case in enumerate(cases, 1):
            able, reasons = _able(OURS, ours, case)
            able_peers, reasons_of_peers = _able(PEERS, peers, case)
            skipped |= reasons | reasons_of_peers
            mine = [i.in_layout(layout) for layout in layouts for i in able]
            done = measure(case, [*mine, *able_peers], seconds)
            measurements += done
            skipped |= failures(done)
            progress(done)
            if index % math.ceil(len(cases) / _PEAK_SAMPLES) == 0:
                with kept("peaks", skipped):
                    peaks.sample()
    except KeyboardInterrupt:
        if not measurements:
            raise
        left = len(cases) - len({m.case for m in measurements})
        skipped[INTERRUPTED] = f"the last {left} of {len(cases)} cases"
    return result(device, peaks, skipped, records_of(measurements, peaks.as_dict()), call_us)


def result(
    device: str,
    peaks: Peaks,
    skipped: dict[str, str],
    records: list[Record],
    call_us: dict[str, float],
) -> Result:
    """A run on this machine, as it is now."""
    return {
        "machine": machine.describe(device),
        "torch": torch.__version__,
        "commit": machine.commit(),
        "peaks": peaks.as_dict(),
        "call_us": call_us,
        "skipped": skipped,
        "records": records,
    }


def _able(
    known: Mapping[str, Implementation], names: Sequence[str], case: Case
) -> tuple[list[Implementation], dict[str, str]]:
    """Which of the named ones serve a case, and why each other one does not."""
    reasons = {name: reasons_against(name, case.problem, case.direction) for name in names}
    able = [known[name] for name, found in reasons.items() if not found]
    return able, {name: "; ".join(found) for name, found in reasons.items() if found}


def failures(measurements: Iterable[Measurement]) -> dict[str, str]:
    """What was raised, by implementation and case."""
    return {f"{m.implementation.label}, {m.case}": m.failure for m in measurements if m.failure}


@contextmanager
def fastest_of_cudnn() -> Iterator[None]:
    """Lets cuDNN measure its algorithms at the first call of a shape."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@torch.no_grad()
@fastest_of_cudnn()
def measure(
    case: Case, implementations: Sequence[Implementation], seconds: float
) -> list[Measurement]:
    """Check every implementation against the reference, then time those that passed.

    One that raises has failed; all have where the operands, or the times of all, cannot be had.
    """
    try:
        sets = [Operands.random(case.problem) for _ in range(_OPERAND_SETS)]
        expected = _expected(case, sets[0])
    except Exception as error:  # out of memory, say
        reason = reason_of(error)
        return [Measurement(case, i, math.inf, None, reason) for i in implementations]
    calls: dict[Implementation, list[Call]] = {}
    operands: dict[Implementation, list[Operands]] = {}
    errors: dict[Implementation, float] = {}
    raised: dict[Implementation, str] = {}
    for i in implementations:
        try:
            # Operands of its own: shared ones would be warm for all but the first.
            operands[i] = [i.copy_operands(s) for s in sets]
            calls[i] = [i.bind(case.problem, case.direction, s) for s in operands[i]]
            errors[i] = relative_error(result_of(case.direction, calls[i][0]()), expected)
        except Exception as error:  # so may compilers and kernels
            raised[i] = reason_of(error)
    most = tolerance(case.dtype, case.device)
    green = {i: calls[i] for i, e in errors.items() if e <= most}
    green |= _in_turns(case, {i: operands[i] for i in green if not i.compiles})
    times: dict[Implementation, Timing] = {}
    try:
        times = interleaved(green, seconds, case.device) if green else {}
    except Exception as error:  # whose call it was is not known: a GPU's error comes late
        raised |= dict.fromkeys(green, reason_of(error))
    return [
        Measurement(case, i, errors.get(i, math.inf), times.get(i), raised.get(i, ""))
        for i in implementations
    ]


def _in_turns(
    case: Case, operands: Mapping[Implementation, Sequence[Operands]]
) -> dict[Implementation, list[Call]]:
    """The calls of every implementation on the operands of all that have its layout.

    Where in memory operands lie is luck that changes a time by some percent. So that all share it
    they take turns: no two have the same operands in the same round.
    """
    calls = {}
    for layout in {i.layout for i in operands}:
        mine = {i: own for i, own in operands.items() if i.layout == layout}
        pool = [s for own in mine.values() for s in own]
        for first, i in zip(range(0, len(pool), _OPERAND_SETS), mine, strict=True):
            turns = pool[first:] + pool[:first]
            calls[i] = [i.bind(case.problem, case.direction, s) for s in turns]
    return calls


def _expected(case: Case, x: Operands) -> Tensor:
    if case.direction == "fprop":
        return reference.fprop(case.problem, x.input, x.weight, None)
    if case.direction == "dgrad":
        return reference.dgrad(case.problem, x.grad_output, x.weight)
    return reference.wgrad(case.problem, x.grad_output, x.input)


def records_of(measurements: Sequence[Measurement], peaks: PeaksDict) -> list[Record]:
    """Records in the order of the measurements."""
    rivals: dict[Case, list[Measurement]] = {}
    for m in measurements:
        if m.implementation.name in PEERS:
            rivals.setdefault(m.case, []).append(m)
    return [_record(m, _best_ms(m, rivals.get(m.case, [])), peaks) for m in measurements]


def _best_ms(m: Measurement, rivals: Sequence[Measurement]) -> float | None:
    """The fastest peer's time. A call on contiguous images cannot have another layout for free."""
    any_layout = m.implementation.layout == "channels_last" or m.implementation.name in PEERS
    times = [
        r.timing.median
        for r in rivals
        if r.timing and (any_layout or r.implementation.layout == m.implementation.layout)
    ]
    return min(times, default=None)


def _record(m: Measurement, best_peer_ms: float | None, peaks: PeaksDict) -> Record:
    case = m.case
    work = Work.of([case.problem], peaks)
    return {
        "suite": case.suite,
        "problem": str(case.layer),
        "direction": case.direction,
        "dtype": dtype_name(case.dtype),
        "layout": m.implementation.layout,
        "batch": case.batch,
        "implementation": m.implementation.name,
        "count": case.layer.count,
        **numbers(work, m.timing, best_peer_ms, m.error, failed=bool(m.failure)),
    }
