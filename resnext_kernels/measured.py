"""Recorded measurements of this package's kernels beside ATen, and their form in JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .problem import ConvProblem, Direction, Pair, dtype_name

_MOST = 2**40  # of a count and of milliseconds: products of them are still finite as floats


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
            dtype_name(problem.dtype),
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

    @property
    def operations(self) -> float:
        """Multiplications and additions, for padding that keeps the size but for the stride."""
        outputs = math.prod(self.size) / math.prod(self.stride)
        per_output = 2 * self.groups * math.prod(self.width) * math.prod(self.kernel)
        return self.batch * outputs * per_output

    @property
    def problem(self) -> Measured:
        """The same without times: equal for two measurements of one problem."""
        return replace(self, ours=1.0, aten=1.0)

    def __str__(self) -> str:
        channels, out_channels = (self.groups * width for width in self.width)
        text = f"{self.batch}x{channels}x{self.size[0]}x{self.size[1]}"
        text += f"->{out_channels}" * (out_channels != channels) + f" g{self.groups}"
        for letter, pair, usual in (("k", self.kernel, (3, 3)), ("s", self.stride, (1, 1))):
            if pair != usual:
                text += f" {letter}{pair[0]}" + f"x{pair[1]}" * (pair[0] != pair[1])
        return f"{text} {self.dtype} {self.layout}"


def _time(value: float) -> float:
    if not 0 < value < _MOST:
        raise ValueError(f"{value!r}: expected a positive number")
    return value


def _count(value: int) -> int:
    if not isinstance(value, int) or not 0 < value < _MOST:
        raise ValueError(f"{value!r}: expected a positive integer")
    return value


def _pair(values: Sequence[int]) -> Pair:
    height, width = values
    return _count(height), _count(width)


_PARSERS: dict[str, Callable[[Any], object]] = {
    "direction": str, "dtype": str, "layout": str, "batch": _count, "groups": _count,
    "width": _pair, "size": _pair, "kernel": _pair, "stride": _pair,
    "ours": _time, "aten": _time,
}  # fmt: skip


Runs = dict[str, tuple[Measured, ...]]  # by name of hardware, see `tuning.hardware`


def runs_from_json(runs: Iterable[dict[str, Any]]) -> Runs:
    """The records of a table's runs; any of `DAMAGE` where it is damaged."""
    return {run["hardware"]: tuple(map(Measured.from_json, run["records"])) for run in runs}


DAMAGE = (ValueError, LookupError, TypeError, RecursionError)  # what reading a damaged table raises
