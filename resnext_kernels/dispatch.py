"""Which backend serves a call, and why."""

from __future__ import annotations

import functools
import os
import warnings
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from . import tuning, user_table
from .backends import BACKENDS, aten
from .problem import (
    DIRECTIONS,
    ConvProblem,
    Direction,
    IntOrPair,
    ProblemError,
    normalise,
    validate,
)

AUTO = "auto"
DISABLE = "RESNEXT_KERNELS_DISABLE"


def _disabled() -> frozenset[str]:
    """The backends that the environment switches off; warns of names that it cannot."""
    value = os.environ.get(DISABLE, "")
    names = {name.strip() for name in value.split(",")} - {""}
    able = [name for name in BACKENDS if name != aten.NAME]
    if unknown := sorted(names.difference(able)):
        warnings.warn(
            f"{DISABLE}={value!r}: {', '.join(map(repr, unknown))} is ignored, expected names "
            f"among {', '.join(map(repr, able))}",
            stacklevel=2,
        )
    return frozenset(names.intersection(able))


DISABLED = _disabled()


def check_backend_name(backend: str) -> None:
    """Raise `ProblemError` unless ``backend`` is "auto" or the name of a backend."""
    if not isinstance(backend, str) or (backend != AUTO and backend not in BACKENDS):
        names = ", ".join(repr(name) for name in (AUTO, *BACKENDS))
        raise ProblemError(f"backend={backend!r}: expected one of {names}")


@functools.lru_cache(maxsize=4096)
def choose(problem: ConvProblem, direction: Direction, backend: str = AUTO) -> ModuleType:
    """Return the backend module that serves ``direction`` of ``problem``.

    A named backend that cannot serve the call raises `ProblemError` with every reason; "auto"
    takes the first that nothing speaks against, see `auto_reasons_against`.
    """
    check_backend_name(backend)
    if backend != AUTO:
        reasons = not_supported_reasons(BACKENDS[backend], problem, direction)
        if reasons:
            raise ProblemError(
                f"backend={backend!r} cannot serve {direction} of {problem}: " + "; ".join(reasons)
            )
        return BACKENDS[backend]
    for module in BACKENDS.values():
        if not auto_reasons_against(module, problem, direction):
            return module
    return aten


def not_supported_reasons(
    module: ModuleType, problem: ConvProblem, direction: Direction
) -> list[str]:
    """Why ``module`` cannot serve ``direction`` of ``problem``: also that it was disabled."""
    if module.NAME in DISABLED:
        return [f"disabled by the environment variable {DISABLE}"]
    return module.not_supported_reasons(problem, direction)


def auto_reasons_against(
    module: ModuleType, problem: ConvProblem, direction: Direction
) -> list[str]:
    """Why "auto" passes over ``module``: what it cannot do, or that ATen is faster."""
    reasons = not_supported_reasons(module, problem, direction)
    if reasons or module is aten:
        return reasons
    if getattr(module, "INTERPRETED", False):
        return ["its kernels are interpreted, which is slow: it serves only by name"]
    found = tuning.compare(module.NAME, module.isa(), problem, direction)
    return [found.reason] if found.aten_is_faster else []


def _reasons_not_chosen(
    module: ModuleType, chosen: ModuleType, problem: ConvProblem, direction: Direction
) -> list[str]:
    """Why "auto" took ``chosen`` and not ``module``; never empty."""
    reasons = auto_reasons_against(module, problem, direction)
    if reasons or module is not aten:
        return reasons or [f"{chosen.NAME} comes first"]
    return [tuning.compare(chosen.NAME, chosen.isa(), problem, direction).reason]


@dataclass(frozen=True)
class Explanation:
    """The backend chosen for each direction of a problem, and why each other one was not.

    ``notes`` tells of the user's own measurements that are not in use, see `user_table`.
    """

    problem: ConvProblem
    chosen: dict[Direction, str]
    reasons: dict[Direction, dict[str, list[str]]]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [str(self.problem) + f" {str(self.problem.dtype).removeprefix('torch.')}"]
        for direction, name in self.chosen.items():
            lines.append(f"  {direction}: {name}")
            for other, reasons in self.reasons[direction].items():
                lines.append(f"    not {other}: {'; '.join(reasons)}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def explain(
    input: Tensor,
    weight: Tensor,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Explanation:
    """Tell which backend "auto" takes for each direction of a call, and why not each other one.

    Arguments as in `grouped_conv2d`; ``print`` the result.

    Raises:
        ProblemError: as `grouped_conv2d` would.
    """
    batched = input.unsqueeze(0) if input.dim() == 3 else input
    batched, conv = normalise(batched, weight, stride, padding, dilation, groups)
    validate(batched, weight, None, *conv)
    problem = ConvProblem.of(batched, weight, *conv)
    chosen = {d: choose(problem, d) for d in DIRECTIONS}
    reasons = {
        d: {
            name: _reasons_not_chosen(module, chosen[d], problem, d)
            for name, module in BACKENDS.items()
            if module is not chosen[d]
        }
        for d in DIRECTIONS
    }
    tables = (user_table.load(name, problem.device) for name in BACKENDS)
    notes = tuple(str(table) for table in tables if table.ignored)
    return Explanation(problem, {d: module.NAME for d, module in chosen.items()}, reasons, notes)
