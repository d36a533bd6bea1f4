"""Every backend of this machine on every problem: what is checked, and what came of it."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .. import dispatch, ops
from ..backends import BACKENDS, aten, triton
from ..bench.suites import SUITES
from ..problem import ConvProblem, Direction, dtype_name
from . import numerics
from .numerics import TOLERANCES
from .operands import LAYOUTS, operand_shapes, randn
from .operands import seed as seed_operands
from .problems import CORE_PROBLEMS, PROBLEMS, problem

Kind = Literal["fprop", "fused", "dgrad", "wgrad"]
KINDS: tuple[Kind, ...] = ("fprop", "fused", "dgrad", "wgrad")
_MOST_FLOPS = 120_000_000  # of a layer: one of more takes seconds for all its checks
_LAYERS = (layer.problem(1, torch.float32) for layer in dict.fromkeys(sum(SUITES.values(), ())))
# What the tests check, and the layers that users have.
CHECKED: tuple[ConvProblem, ...] = (
    *PROBLEMS,
    *(layer for layer in _LAYERS if layer.flops <= _MOST_FLOPS),
)
_ROUNDS = 2  # of operands: in the kernels' own layout, then in layouts drawn at random
_FEWEST_OUTPUTS = 64  # of a fused call: ReLU could leave next to nothing of fewer
# One of so many core checks where each costs a second. Prime to the 24 of a problem, and less: all
# kinds, dtypes and rounds get their turn, and every problem has one.
_COMPILED_STEP = 17


class Target(NamedTuple):
    """A backend on a type of device, and why it cannot be checked there."""

    backend: str
    device: str
    reason_against: str

    @property
    def name(self) -> str:
        """The backend's name, with the device where it is made for several."""
        return f"{self.backend}:{self.device}" if self.backend == aten.NAME else self.backend


def targets() -> list[Target]:
    """Every backend with each type of device of this machine that it is made for.

    Triton's interpreter is none: what it computes tells nothing of the machine.
    """
    devices = {"aten": ["cpu", *["cuda"] * torch.cuda.is_available()], "cpu": ["cpu"]}
    found = []
    for backend, module in BACKENDS.items():
        for device in devices.get(backend, ["cuda"]):
            plain = dataclasses.replace(problem(8), device=device)
            reasons = dispatch.not_supported_reasons(module, plain)
            found.append(Target(backend, device, "; ".join(reasons)))
    return found


@dataclass(frozen=True)
class Check:
    """A problem with operands to be drawn; ``number`` tells it from others of its kind and dtype.

    "fused" is fprop with bias, residual and ReLU.
    """

    kind: Kind
    dtype: torch.dtype
    number: int

    @property
    def problem(self) -> ConvProblem:
        return CHECKED[self.number // _ROUNDS]

    @property
    def direction(self) -> Direction:
        return "fprop" if self.kind == "fused" else self.kind

    @property
    def name(self) -> str:
        return f"{self.kind}/{dtype_name(self.dtype)}/{self.number}"

    def layouts(self, draw: random.Random) -> list[str]:
        """Names of `LAYOUTS` for the two operands and the residual."""
        if self.number % _ROUNDS == 0:
            return ["channels_last", "contiguous", "channels_last"]
        first, residual = draw.choices(list(LAYOUTS), k=2)
        # Sums of equal numbers are rounded one way, and miss by more than sums of others.
        seconds = [name for name in LAYOUTS if not ("expanded" in name and "expanded" in first)]
        return [first, draw.choice(seconds), residual]


def all_checks() -> list[Check]:
    """Every check that there is, those of one problem together."""
    return [
        Check(kind, dtype, number)
        for number in range(len(CHECKED) * _ROUNDS)
        for kind in KINDS
        for dtype in TOLERANCES
        if kind != "fused" or math.prod(CHECKED[number // _ROUNDS].output_shape) >= _FEWEST_OUTPUTS
    ]


def checks_of(backend: str) -> list[Check]:
    """The checks of a backend: all, of Triton a few on every core problem.

    Triton compiles a kernel for each problem, dtype and layout, hence for nearly every check.
    """
    found = all_checks()
    if backend != triton.NAME:
        return found
    core = frozenset(CORE_PROBLEMS)
    return [check for check in found if check.problem in core][::_COMPILED_STEP]


class Outcome(NamedTuple):
    """What came of one check: refused, missed, or where both are empty, passed."""

    refused: str = ""
    missed: str = ""
    error: float = 0.0


@dataclass
class Tally:
    """The outcomes of several checks together; ``worst`` is the largest relative error."""

    passed: int = 0
    missed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0

    @property
    def checks(self) -> int:
        return self.passed + self.missed + self.refused.total()

    def add(self, outcome: Outcome) -> None:
        if outcome.refused:
            self.refused[outcome.refused] += 1
        elif outcome.missed:
            self.missed += 1
        else:
            self.passed += 1
        self.worst = max(self.worst, outcome.error)


def run(check: Check, device: str, backends: Sequence[str], seed: int) -> dict[str, Outcome]:
    """Check backends on the same operands on one type of device; equal seeds give equal ones.

    In the kernels' own layout they run on all threads, otherwise on one: every region of several
    threads costs milliseconds where others compute on the machine too. So do they in float16, which
    ATen alone serves on a CPU: with a region for every group.
    """
    alone = check.number % _ROUNDS != 0 or check.dtype == torch.float16
    threads = 1 if alone else torch.get_num_threads()
    with _threads(1):
        try:
            trial = _Trial(check, device, seed)
        except RuntimeError as error:  # a GPU that an earlier kernel has left in ruins
            return dict.fromkeys(backends, Outcome(missed=_one_line(error), error=math.inf))
        return {backend: trial.run(backend, threads) for backend in backends}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Trial:
    """A check with operands, and with what is expected of them."""

    def __init__(self, check: Check, device: str, seed: int) -> None:
        draw = random.Random(f"{seed} {device} {check.name}")
        seed_operands(draw.randrange(2**32))
        self._check = check
        self._layouts = check.layouts(draw)
        problem, dtype = check.problem, check.dtype
        shapes = operand_shapes(problem, check.direction)
        self._first, self._second = (
            randn(shape, dtype, layout, device)
            for shape, layout in zip(shapes, self._layouts, strict=False)
        )
        operands = [self._first, self._second]
        if check.kind == "fused":
            every_second = randn((problem.out_channels, 1, 1, 2), dtype, device=device)
            self._bias = every_second[:, 0, 0, 0]
            self._residual = randn(problem.output_shape, dtype, self._layouts[2], device)
            operands += self._bias, self._residual
        self._operands = operands
        self._copies = [operand.clone() for operand in operands]

    @functools.cached_property
    def _expected(self) -> Tensor:
        problem = self._check.problem
        if self._check.kind == "fused":
            return numerics.fused_truth(problem, *self._copies)
        return numerics.truth(problem, self._check.direction, *self._copies)

    def _error(self, out: Tensor) -> float:
        """Against `least_norm` only where that may decide: it takes as long as the truth."""
        error = numerics.relative_error(out, self._expected)
        if error <= TOLERANCES[self._check.dtype]:
            return error
        # ReLU leaves half of the sums.
        share = math.sqrt(0.5) if self._check.kind == "fused" else 1.0
        least = numerics.least_norm(self._check.problem, self._check.direction, *self._copies[:2])
        return numerics.relative_error(out, self._expected, share * least)

    def run(self, backend: str, threads: int) -> Outcome:
        """What comes of one backend on so many threads."""
        check = self._check
        input, weight = numerics.input_and_weight(
            check.problem, check.direction, self._first, self._second
        )
        called = ConvProblem.of(input, weight, *check.problem.convolution)
        module = BACKENDS[backend]
        if reasons := dispatch.not_supported_reasons(module, called):
            return Outcome(refused="; ".join(reasons))
        try:
            with _threads(threads):
                out = self._call(backend)
            error = math.inf
            if out.dtype == check.dtype:
                error = self._error(out)
            if self._restore():
                return Outcome(missed=self._describe("it writes to its operands"), error=math.inf)
        except Exception as raised:  # a wrong kernel may raise anything
            return Outcome(missed=self._describe(_one_line(raised)), error=math.inf)
        tolerance = TOLERANCES[check.dtype]
        if error <= tolerance:
            return Outcome(error=error)
        found = f"relative error {error:.1e}, expected at most {tolerance:.0e}"
        return Outcome(missed=self._describe(found), error=error)

    def _restore(self) -> bool:
        """Give the operands the values again that they had; whether any had another."""
        changed = False
        for operand, copy in zip(self._operands, self._copies, strict=True):
            if not torch.equal(operand, copy):
                operand.copy_(copy)
                changed = True
        return changed

    def _call(self, backend: str) -> Tensor:
        problem, first, second = self._check.problem, self._first, self._second
        if self._check.kind != "fused":
            return numerics.call(problem, self._check.direction, backend, first, second)
        return ops.grouped_conv2d_fused(
            first, second, self._bias, self._residual, *problem.convolution, "relu", backend
        )

    def _describe(self, found: str) -> str:
        count = 3 if self._check.kind == "fused" else 2
        return f"{self._check.problem}, operands {', '.join(self._layouts[:count])}: {found}"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
