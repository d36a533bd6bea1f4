"""What is checked: every backend of this machine on every problem; and what came of it."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from .. import dispatch
from ..backends import BACKENDS, aten, triton
from ..bench.suites import SUITES
from ..problem import ConvProblem, Direction, dtype_name
from .numerics import TOLERANCES
from .operands import LAYOUTS
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
ROUNDS = 2  # of operands: in the kernels' own layout, then in layouts drawn at random
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

    "fused" is fprop with an epilogue: bias, residual and ReLU, or some of them.
    """

    kind: Kind
    dtype: torch.dtype
    number: int

    @property
    def problem(self) -> ConvProblem:
        return CHECKED[self.number // ROUNDS]

    @property
    def direction(self) -> Direction:
        return "fprop" if self.kind == "fused" else self.kind

    @property
    def name(self) -> str:
        return f"{self.kind}/{dtype_name(self.dtype)}/{self.number}"

    def layouts(self, draw: random.Random) -> list[str]:
        """Names of `LAYOUTS` for the two operands and the residual."""
        if self.number % ROUNDS == 0:
            return ["channels_last", "contiguous", "channels_last"]
        first, residual = draw.choices(list(LAYOUTS), k=2)
        # Sums of equal numbers are rounded one way, and miss by more than sums of others.
        seconds = [name for name in LAYOUTS if not ("expanded" in name and "expanded" in first)]
        return [first, draw.choice(seconds), residual]


def all_checks() -> list[Check]:
    """Every check that there is, those of one problem together."""
    return [
        Check(kind, dtype, number)
        for number in range(len(CHECKED) * ROUNDS)
        for kind in KINDS
        for dtype in TOLERANCES
        if kind != "fused" or math.prod(CHECKED[number // ROUNDS].output_shape) >= _FEWEST_OUTPUTS
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
