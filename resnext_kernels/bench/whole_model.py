"""Whole models in inference: this package's forms of them and their peers, in one run."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import monotonic

import torch
from torch import nn

from .. import models as family
from ..problem import dtype_name
from ..verification.numerics import relative_error, tolerance
from . import measurement
from .failures import kept, reason_of
from .model_implementations import (
    COMPILED,
    INDUCTOR,
    OURS,
    PEERS,
    Forward,
    ModelImplementation,
    NotAvailable,
)
from .peaks import Peaks, PeaksDict
from .runner import INTERRUPTED, Record, Result, fastest_of_cudnn, result
from .subjects import Subject, layers
from .suites import WHOLE_MODELS
from .timing import Timing, interleaved, keep_freed_memory
from .work import Work, numbers

# ResNet-50 has the complexity of ResNeXt-50 (table 1 of arXiv:1611.05431).
MODELS = ("resnet50", "resnext50_32x4d", "resnext101_32x8d")
_REST = 0.02  # seconds before each call on a CPU
SECONDS = {"cpu": 5.0, "cuda": 1.0}  # for the timed rounds of one case


@dataclass(frozen=True)
class Case:
    """One measurement to make: a model, a dtype and a batch size."""

    model: str
    dtype: torch.dtype
    batch: int

    def __str__(self) -> str:
        return f"{self.model} {dtype_name(self.dtype)} batch {self.batch}"


Measurement = measurement.Measurement[Case, ModelImplementation]


def steps(
    models: Sequence[str], dtypes: Sequence[torch.dtype], batches: Sequence[int],
    peers: Sequence[str] = tuple(PEERS),
) -> int:  # fmt: skip
    """How often `run` calls ``progress``: for each implementation of a case, and for its times."""
    return len(models) * len(dtypes) * len(batches) * (len(_implementations(peers)) + 1)


def _implementations(peers: Sequence[str]) -> list[ModelImplementation]:
    """Ours and the named peers. What Inductor compiles takes long: ours beside its peer alone."""
    ours = [i for i in OURS.values() if i.name != COMPILED or INDUCTOR in peers]
    return ours + [PEERS[name] for name in peers]


@torch.no_grad()
@fastest_of_cudnn()
def run(
    models: Sequence[str] = MODELS,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    batches: Sequence[int] = (1, 8),
    peers: Sequence[str] = tuple(PEERS),
    *,
    device: str = "cpu",
    seconds: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Result:
    """Measure every model in all of `OURS`, `COMPILED` beside its peer, and some of `PEERS`.

    The records' suite is "model", their problem the model's name, their operations and bytes the
    sums over its convolutions and its classifier. A peer that is not installed is told of in
    ``skipped``; an implementation that raises is recorded as failed. A KeyboardInterrupt ends the
    run with the cases that are done, if there are any.

    Args:
        models: names in `resnext_kernels.models`, each for images of its data set:
            224x224 pixels, CIFAR's 32x32.
        dtypes: of weights, BatchNorm statistics and images alike: `model.to(bfloat16)`, which torch
            runs faster than autocast. OpenVINO computes in bfloat16 on float32 operands.
        batches: images at a time.
        device: "cpu" or "cuda".
        seconds: aimed duration of the timed rounds of one case.
        progress: called `steps` times with what was done.

    Raises:
        ValueError: an unknown model or peer, or no batch size.
    """
    _check(models, batches, peers)
    keep_freed_memory()
    peaks = Peaks(dtypes, device)
    implementations = _implementations(peers)
    seconds = SECONDS[device] if seconds is None else seconds
    cases = [Case(*c) for c in itertools.product(models, dtypes, batches)]
    measurements: list[Measurement] = []
    skipped: dict[str, str] = {}
    subject = None
    try:
        with kept("peaks", skipped):
            peaks.sample()
        for case in cases:
            try:
                if subject is None or subject.name != case.model:
                    subject = Subject.make(case.model, max(batches), device)
                done = _measure(case, subject, implementations, seconds, skipped, progress)
            except Exception as error:  # out of memory, say
                reason = reason_of(error)
                done = [Measurement(case, i, math.inf, None, reason) for i in implementations]
            measurements += done
            skipped |= {f"{m.implementation.name}, {case}": m.failure for m in done if m.failure}
            with kept("peaks", skipped):
                peaks.sample()
    except KeyboardInterrupt:
        if not measurements:
            raise
        left = len(cases) - len({m.case for m in measurements})
        skipped[INTERRUPTED] = f"the last {left} of {len(cases)} cases"
    return result(device, peaks, skipped, _records(measurements, peaks.as_dict()), {})


def _check(models: Sequence[str], batches: Sequence[int], peers: Sequence[str]) -> None:
    for argument, names, known in (("models", models, family.__all__), ("peers", peers, PEERS)):
        for name in names:
            if name not in known:
                raise ValueError(f"{argument}: {name!r}, expected some of {', '.join(known)}")
    if not batches:
        raise ValueError(f"batches={batches!r}: expected at least one batch size")


def _measure(
    case: Case,
    subject: Subject,
    implementations: Sequence[ModelImplementation],
    seconds: float,
    skipped: dict[str, str],
    progress: Callable[[str], None],
) -> list[Measurement]:
    """Check every implementation that is available, then time those that passed.

    Why another one is not goes into ``skipped``. One that raises has failed; all have where the
    times of all cannot be had.
    """
    model = copy.deepcopy(subject.model).to(case.dtype)
    images, logits = subject.images[: case.batch].to(case.dtype), subject.logits[: case.batch]
    forwards: dict[ModelImplementation, Forward] = {}
    errors: dict[ModelImplementation, float] = {}
    raised: dict[ModelImplementation, str] = {}
    for i in implementations:
        start = monotonic()
        try:
            forwards[i] = i.bind(model, images)
            errors[i] = relative_error(torch.as_tensor(forwards[i]()), logits)
            progress(f"{case}: {i.name} ready in {monotonic() - start:.1f} s")
        except NotAvailable as reason:
            skipped[i.name] = str(reason)
            progress(f"{case}: {i.name} not measured")
        except Exception as error:  # conversions by other packages may fail in any way
            errors[i], raised[i] = math.inf, reason_of(error)
            progress(f"{case}: {i.name} FAILED")
    device = images.device.type
    most = _tolerance(subject.model, case.dtype, device)
    green = {i: [f] for i, f in forwards.items() if errors[i] <= most}
    rest = _REST if device == "cpu" else 0.0
    times: dict[ModelImplementation, Timing] = {}
    try:
        times = interleaved(green, seconds, device, rest) if green else {}
    except Exception as error:  # whose call it was is not known: a GPU's error comes late
        raised |= dict.fromkeys(green, reason_of(error))
    measurements = [
        Measurement(case, i, error, times.get(i), raised.get(i, "")) for i, error in errors.items()
    ]
    progress(f"{case}: {', '.join(map(str, measurements))}")
    torch.compiler.reset()  # it would keep the compiled models alive
    return measurements


def _tolerance(model: nn.Module, dtype: torch.dtype, device: str) -> float:
    """Of the logits' relative error.

    Each convolution may have the error that a single one may have anywhere in this package. The
    layers' errors are independent of each other, so that their squares add up; what the network
    multiplies them with is near 1, see `subjects._damped`.
    """
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    return tolerance(dtype, device) * math.sqrt(convolutions)


def _records(measurements: Sequence[Measurement], peaks: PeaksDict) -> list[Record]:
    """Records in the order of the measurements."""
    problems = {name: layers(name) for name in dict.fromkeys(m.case.model for m in measurements)}
    rivals: dict[Case, list[float]] = {}
    for m in measurements:
        if m.implementation.name in PEERS and m.timing:
            rivals.setdefault(m.case, []).append(m.timing.median)
    records: list[Record] = []
    for m in measurements:
        case = m.case
        single = problems[case.model]
        best = min(rivals.get(case, []), default=None)
        work = Work.of((replace(p, batch=case.batch, dtype=case.dtype) for p in single), peaks)
        records.append(
            {
                "suite": WHOLE_MODELS,
                "problem": case.model,
                "direction": "fprop",
                "dtype": dtype_name(case.dtype),
                "layout": m.implementation.layout,
                "batch": case.batch,
                "implementation": m.implementation.name,
                "count": 1,
                **numbers(work, m.timing, best, m.error, failed=bool(m.failure)),
            }
        )
    return records
