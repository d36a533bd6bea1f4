"""Recorded measurements: for which problems ATen is faster than this package's kernels.

`tuned/BACKEND.json` holds ``{"runs": [...]}``, one run for each kind of hardware, with one record
for each problem, direction, dtype and layout measured on it: the milliseconds of the backend and
of ATen on images in the same layout. `compare` takes the nearest record; where none is near, a
rule that prefers ATen wherever it is known to be good.
"""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .problem import ConvProblem, Direction, Pair

FOLDER = Path(__file__).parent / "tuned"
_FARTHEST = 3.0
_ONEDNN_WIDTH = 16
_BANDWIDTH_BOUND = 64  # channels of a group


@dataclass(frozen=True)
class Measured:
    """One measured problem: ``ours`` and ``aten`` are medians in milliseconds.

    ``width`` is (input, output) channels of one group, ``size`` the input's (height, width),
    ``layout`` "channels_last" or "contiguous".
    """

    direction: str
    dtype: str
    layout: str
    batch: int
    groups: int
    width: Pair
    size: Pair
    kernel: Pair
    stride: Pair
    ours: float
    aten: float

    @classmethod
    def of(
        cls, problem: ConvProblem, direction: Direction, ours: float = 1.0, aten: float = 1.0
    ) -> Measured:
        """The record of ``problem``, whose dilation is 1, with two times."""
        return cls(
            direction,
            str(problem.dtype).removeprefix("torch."),
            "channels_last" if problem.channels_last else "contiguous",
            problem.batch,
            problem.groups,
            (problem.in_width, problem.out_width),
            problem.in_size,
            problem.kernel,
            problem.stride,
            ours,
            aten,
        )

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Measured:
        """A record of a table; ValueError, KeyError or TypeError where it is damaged."""
        values: dict[str, Any] = {name: parse(record[name]) for name, parse in _PARSERS.items()}
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)

    @property
    def kind(self) -> tuple[object, ...]:
        """What two problems must share to be compared at all."""
        return self.direction, self.dtype, self.layout, self.stride == (1, 1)

    def distance(self, other: Measured) -> float:
        """Factors between two problems in octaves, weighted by how much they decide."""
        pairs = zip(self._features(), other._features(), strict=True)
        return math.hypot(*(weight * math.log2(a / b) for (weight, a), (_, b) in pairs))

    def _features(self) -> tuple[tuple[float, float], ...]:
        """(weight, quantity): a group's width picks the kernel, the batch only repeats it."""
        width, size = math.sqrt(math.prod(self.width)), math.sqrt(math.prod(self.size))
        return (
            (0.5, self.batch), (1, size), (1, self.groups * width), (2, width),
            (2, math.sqrt(math.prod(self.kernel))),
        )  # fmt: skip

    def __str__(self) -> str:
        channels, strided = self.groups * self.width[0], self.stride != (1, 1)
        return (
            f"{self.batch}x{channels}x{self.size[0]}x{self.size[1]} g{self.groups}"
            f"{f' s{self.stride[0]}' if strided else ''} {self.dtype} {self.layout}"
        )


def _positive(value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{value!r}: expected a positive number")
    return value


def _pair(values: Sequence[int]) -> Pair:
    height, width = values
    return int(_positive(height)), int(_positive(width))


_PARSERS: dict[str, Callable[[Any], object]] = {
    "direction": str, "dtype": str, "layout": str, "batch": _positive, "groups": _positive,
    "width": _pair, "size": _pair, "kernel": _pair, "stride": _pair,
    "ours": _positive, "aten": _positive,
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Whether ATen serves a call faster, and what tells so."""

    aten_is_faster: bool
    reason: str


def compare(backend: str, isa: str, problem: ConvProblem, direction: Direction) -> Comparison:
    """Compare ``backend`` on the instruction set ``isa`` with ATen for one direction."""
    wanted = Measured.of(problem, direction)
    known = records(backend, hardware(isa, wanted.dtype))
    found = nearest(wanted, known) if problem.dilation == (1, 1) else None
    if found is None:
        rule = _gpu_rule if problem.device == "cuda" else _rule
        return rule(backend, isa, problem)
    aten_is_faster = found.aten < found.ours
    names = ("aten", backend) if aten_is_faster else (backend, "aten")
    low, high = sorted((found.ours, found.aten))
    reason = f"{names[0]} measured faster: {low:.3g} ms against {high:.3g} ms for {found}"
    return Comparison(aten_is_faster, reason)


def nearest(wanted: Measured, known: Sequence[Measured]) -> Measured | None:
    """The record most like ``wanted`` among those of its kind; None where all are too far."""
    alike = [record for record in known if record.kind == wanted.kind]
    found = min(alike, key=wanted.distance, default=None)
    return found if found and wanted.distance(found) <= _FARTHEST else None


def hardware(isa: str, dtype: str) -> str:
    """Under which name the times of ``dtype`` are kept: float32 needs no bfloat16 instructions."""
    return "avx512" if isa == "avx512_bf16" and dtype == "float32" else isa


def _rule(backend: str, isa: str, problem: ConvProblem) -> Comparison:
    """Without a measurement nearby: channels_last groups of 2 to 15 channels are ours.

    oneDNN fills a vector register of 16 floats with the channels of one group, or, where each
    group is one channel, with those of 16 groups. It has no such way for narrow groups, and
    computes mostly zeros there. Contiguous images would cost us two conversions.
    """
    wide = max(problem.in_width, problem.out_width)
    ours = problem.channels_last and 2 <= wide < _ONEDNN_WIDTH
    layout = "channels_last" if problem.channels_last else "contiguous"
    reason = (
        f"nothing like it measured on {isa}: groups of 2 to {_ONEDNN_WIDTH - 1} channels in "
        f"channels_last go to {backend}, others to aten; these have {wide} in {layout}"
    )
    return Comparison(not ours, reason)


def _gpu_rule(backend: str, isa: str, problem: ConvProblem) -> Comparison:
    """Without a measurement nearby: half precision 3x3 groups of 2 to 64 channels are ours.

    Such a layer does at most 4.5 * 64 = 288 FLOP a byte (2 * 9 * width for each output element,
    which takes an element read and one written), fewer than GPUs with tensor cores need to be
    bound by arithmetic: one pass over the images beats whatever moves more. Wider groups are the
    dense convolutions that cuDNN is good at. Contiguous images would cost us two conversions.
    """
    wide = max(problem.in_width, problem.out_width)
    ours = (
        problem.channels_last
        and problem.kernel == (3, 3)
        and problem.dtype.itemsize == 2
        and 2 <= wide <= _BANDWIDTH_BOUND
    )
    height, width = problem.kernel
    layout = "channels_last" if problem.channels_last else "contiguous"
    reason = (
        f"nothing like it measured on {isa}: 3x3 groups of 2 to {_BANDWIDTH_BOUND} channels in "
        f"half precision and channels_last go to {backend}, others to aten; these are "
        f"{height}x{width} groups of {wide} in {problem.dtype} and {layout}"
    )
    return Comparison(not ours, reason)


@functools.lru_cache(maxsize=64)
def records(backend: str, hardware: str) -> tuple[Measured, ...]:
    """The records measured for ``backend`` on ``hardware``; read from the file once."""
    path = FOLDER / f"{backend}.json"
    try:
        return read(path).get(hardware, ())
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        warnings.warn(f"{path} is ignored: {type(error).__name__}: {error}", stacklevel=2)
        return ()


def read(path: Path) -> dict[str, tuple[Measured, ...]]:
    """The records of a table by hardware; any of the usual errors where it is damaged."""
    runs = json.loads(path.read_text())["runs"]
    return {run["hardware"]: tuple(map(Measured.from_json, run["records"])) for run in runs}
