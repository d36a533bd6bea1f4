"""Which backend serves a call; `explanation` tells why."""

from __future__ import annotations

import functools
import os
import warnings
from types import ModuleType

from . import tuning
from .backends import BACKENDS, aten
from .problem import ConvProblem, Direction, ProblemError

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
    takes the fastest that nothing speaks against, see `auto_reasons_against` and `gain`.
    """
    check_backend_name(backend)
    if backend != AUTO:
        reasons = not_supported_reasons(BACKENDS[backend], problem)
        if reasons:
            raise ProblemError(
                f"backend={backend!r} cannot serve {direction} of {problem}: " + "; ".join(reasons)
            )
        return BACKENDS[backend]
    best, most = aten, -1.0
    for module in BACKENDS.values():
        # A rival has to gain more before it is asked whether it serves, which imports Triton. The
        # first one is asked at once: only where one serves is there a device to tell gains by.
        if best is not aten and gain(module, problem, direction) <= most:
            continue
        if not auto_reasons_against(module, problem, direction):
            best, most = module, gain(module, problem, direction)
    return best


def not_supported_reasons(module: ModuleType, problem: ConvProblem) -> list[str]:
    """Why ``module`` cannot serve ``problem``: also that it was disabled."""
    if module.NAME in DISABLED:
        return [f"disabled by the environment variable {DISABLE}"]
    return module.not_supported_reasons(problem)


def auto_reasons_against(
    module: ModuleType, problem: ConvProblem, direction: Direction
) -> list[str]:
    """Why "auto" passes over ``module``: what it cannot do, or that ATen is faster."""
    reasons = not_supported_reasons(module, problem)
    if reasons or module is aten:
        return reasons
    if getattr(module, "INTERPRETED", False):
        return ["its kernels are interpreted, which is slow: it serves only by name"]
    found = tuning.compare(module.NAME, module.isa(), problem, direction)
    return [found.reason] if found.aten_is_faster else []


def gain(module: ModuleType, problem: ConvProblem, direction: Direction) -> float:
    """How many times as fast as ATen ``module`` was measured, 1 where nothing like it was.

    What passed ATen without a measurement did so by a rule, which promises no more. ATen's own is
    0: it comes after those that are no slower. So is that of a library that is not there to ask.
    """
    if module is aten or not module.LIBRARY.loaded:
        return 0.0
    found = tuning.compare(module.NAME, module.isa(), problem, direction)
    return 1.0 if found.ours is None or found.aten is None else found.aten / found.ours
