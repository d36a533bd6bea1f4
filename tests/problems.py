"""What all tests of the kernels share: the package's problems and measure of error, for pytest."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from _pytest.mark.structures import ParameterSet
from torch import Tensor

from resnext_kernels import dispatch
from resnext_kernels.backends import BACKENDS, triton
from resnext_kernels.problem import ConvProblem, Direction, ProblemError
from resnext_kernels.verification import numerics
from resnext_kernels.verification.numerics import TOLERANCES, relative_error, truth
from resnext_kernels.verification.operands import LAYOUTS, operand_shapes, randn
from resnext_kernels.verification.problems import CORE_PROBLEMS, PROBLEMS, WIDTHS, problem

__all__ = [
    "CORE_PROBLEMS",
    "LAYOUTS",
    "PROBLEMS",
    "TOLERANCES",
    "WIDTHS",
    "operand_shapes",
    "problem",
    "problem_id",
    "randn",
    "relative_error",
    "run",
    "skip_unless_loaded",
    "targets",
    "truth",
]


def problem_id(problem: ConvProblem) -> str:
    return ("core " if problem in CORE_PROBLEMS else "") + str(problem)


def targets() -> list[ParameterSet]:
    """Each backend with each device to test it on, those on a GPU marked so."""
    cuda = ["cuda"] if torch.cuda.is_available() else []
    interpreted = ["cpu"] if triton.INTERPRETED else cuda
    devices = {"aten": ["cpu", *cuda], "cpu": ["cpu"], "cuda": cuda, "triton": interpreted}
    return [
        pytest.param(name, device, marks=[pytest.mark.gpu] * (device == "cuda"))
        for name in BACKENDS
        for device in devices.get(name, cuda or ["cpu"])
    ]


def run(
    problem: ConvProblem, direction: Direction, backend: str, first: Tensor, second: Tensor
) -> Tensor:
    """Run one direction through the operators.

    Where the backend refuses the problem, check that it says why, and skip the test.
    """
    input, weight = numerics.input_and_weight(problem, direction, first, second)
    called = ConvProblem.of(input, weight, *problem.convolution)
    reasons = dispatch.not_supported_reasons(BACKENDS[backend], called)
    try:
        out = numerics.call(problem, direction, backend, first, second)
    except ProblemError as error:
        assert reasons, f"{backend} refuses for no reason: {error}"
        assert all(text in str(error) for text in [*reasons, repr(backend), direction])
        pytest.skip("; ".join(reasons))
    assert not reasons, f"{backend} serves what it refuses: {reasons}"
    return out


def skip_unless_loaded(backend: str, device: str, served: ConvProblem | None = None) -> None:
    """Skip the test where a backend cannot serve a problem, the plainest one, on a device."""
    served = dataclasses.replace(served or problem(8), device=device)
    reasons = dispatch.not_supported_reasons(BACKENDS[backend], served)
    if reasons:
        pytest.skip("; ".join(reasons))
