"""Triton kernels: every grouped convolution, on any GPU that Triton has a back-end for.

Triton is optional. It is imported at the first call that is served, with `kernels`;
docs/triton-kernels.md tells how these work. With ``TRITON_INTERPRET=1`` in the environment Triton
interprets the kernels, and tensors on the CPU are served, slowly.
"""

from __future__ import annotations

import functools
import math
import os
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from ...library import Library
from ...problem import ConvProblem
from ..reasons import of_operands, of_steps

NAME = "triton"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
OLDEST = (3, 6)
OLDEST_GPU = (8, 0)  # the compute capability that multiplies all three dtypes
# Those that torch's builds for AMD's and Intel's GPUs, and its nightly ones, bring along.
_PACKAGES = (
    "triton", "triton-rocm", "triton-xpu",
    "pytorch-triton", "pytorch-triton-rocm", "pytorch-triton-xpu",
)  # fmt: skip
# Of the input and the output: they are counted in 32 bits.
_MOST_PIXELS = 1 << 30
# Of stride, padding and dilation: columns behind the last image are told by where they would read,
# `tiles.split_pixels`, which has to be outside in 32 bits.
_MOST_STEP = 1 << 12
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def installed_version() -> str | None:
    """The version of the module triton by the metadata of its package, which has several names."""
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            return version(package)
    return None


def _find() -> Library:
    """Triton, without importing it."""
    oldest = ".".join(map(str, OLDEST))
    found = installed_version()
    if found is None:
        needed = f"triton is not installed, {oldest} or later is needed"
        return Library(NAME, False, f"{needed} (the extra [triton] of this package)")
    numbers = tuple(map(int, re.findall(r"\d+", found)[:2]))
    if numbers < OLDEST:
        return Library(NAME, False, f"triton {found} is installed, {oldest} or later is needed")
    return Library(NAME, True, f"triton {found}, compiles at the first call of each kind")


LIBRARY = _find()


def not_supported_reasons(problem: ConvProblem) -> list[str]:
    """Every reason why these kernels cannot serve ``problem``."""
    devices = ("cpu",) if INTERPRETED else ("cuda", "xpu")
    reasons = [
        *of_operands(problem, LIBRARY, devices, DTYPES),
        *of_steps(problem, _MOST_STEP),
    ]
    pixels = problem.batch * max(math.prod(problem.in_size), math.prod(problem.out_size))
    if pixels > _MOST_PIXELS:
        reasons.append(f"{pixels} pixels, serves up to {_MOST_PIXELS}")
    if problem.device == "cuda" and not INTERPRETED:
        reasons += _reasons_of_devices()
    if not (reasons or INTERPRETED):
        reasons += _reasons_of_driver()
    return reasons


@functools.cache
def _reasons_of_driver() -> tuple[str, ...]:
    """Why Triton cannot start here: for its first use it compiles a helper in C."""
    try:
        from triton.runtime import driver

        driver.active.get_current_device()
    except Exception as error:  # of many kinds: no compiler, no header, no driver
        (summary, *_) = str(error).splitlines() or [""]
        return (f"triton does not start: {type(error).__name__}: {summary}",)
    return ()


def _reasons_of_devices() -> list[str]:
    """What speaks against a GPU of this machine: a call may come to any of them."""
    if not torch.cuda.is_available():
        return ["torch finds no CUDA device"]
    if torch.version.hip:
        return []
    oldest = ".".join(map(str, OLDEST_GPU))
    capabilities = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    return [
        f"cuda:{index} has compute capability {major}.{minor}, serves {oldest} and later"
        for index, (major, minor) in enumerate(capabilities)
        if (major, minor) < OLDEST_GPU
    ]


def isa() -> str:
    """Capability and name of the current GPU, as "sm_90 NVIDIA H100 80GB HBM3"."""
    if INTERPRETED:
        return "interpreter"
    if not torch.cuda.is_available():
        return torch.xpu.get_device_name()
    if torch.version.hip:
        return torch.cuda.get_device_name()
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor} {torch.cuda.get_device_name()}"


def fprop(
    problem: ConvProblem,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """Return ``relu?(conv(input, weight) + bias + residual)``, shape ``problem.output_shape``."""
    from .kernels.fprop import fprop

    return fprop(problem, input, weight, bias, residual, relu)


def dgrad(problem: ConvProblem, grad_output: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient by the input, shape ``problem.input_shape``."""
    from .kernels.dgrad import dgrad

    return dgrad(problem, grad_output, weight)


def wgrad(
    problem: ConvProblem, grad_output: Tensor, input: Tensor, memory_format: torch.memory_format
) -> Tensor:
    """Return the gradient by the weight, shape ``problem.weight_shape``, in ``memory_format``.

    Partial sums are added up in a fixed order: equal operands give equal bits.
    """
    from .kernels.wgrad import wgrad

    return wgrad(problem, grad_output, input, memory_format)
