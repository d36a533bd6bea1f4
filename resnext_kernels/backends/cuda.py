"""CUDA kernels in C++ (csrc/cuda): channels_last native, 16-byte accesses.

float16 and bfloat16 run on tensor cores. float32 is computed exactly, but that output and input
gradient of groups of more than 8 channels are computed in TF32 where torch's flags allow it.
"""

from __future__ import annotations

import functools
import re

import torch
from torch import Tensor

from ..library import load_library
from ..problem import ConvProblem
from . import tf32
from .reasons import of_operands

NAME = "cuda"
LIBRARY = load_library("_cuda")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
OLDEST = (8, 0)  # the compute capability whose instructions the kernels use
_ACCESS = 16  # bytes that a thread moves at a time
_ARCH = re.compile(r"(\d+)\.(\d)([af]?)(\+PTX)?")


def not_supported_reasons(problem: ConvProblem) -> list[str]:
    """Every reason why these kernels cannot serve ``problem``."""
    reasons = [*of_operands(problem, LIBRARY, ("cuda",), DTYPES)]
    if LIBRARY.loaded and problem.device == "cuda":
        reasons += _reasons_of_devices()
    if LIBRARY.loaded and problem.dtype in DTYPES and 0 not in problem.input_shape:
        reasons += _reasons_of_kernels(problem)
    return reasons


@functools.lru_cache(maxsize=1)
def _reasons_of_devices() -> tuple[str, ...]:
    """What speaks against a GPU of this machine: a call may come to any of them."""
    if not torch.cuda.is_available():
        return ("torch finds no CUDA device",)
    archs = torch.ops.resnext_kernels_cuda.archs()
    reasons = []
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        has = f"cuda:{index} has compute capability {capability[0]}.{capability[1]}"
        if capability < OLDEST:
            reasons.append(f"{has}, serves {OLDEST[0]}.{OLDEST[1]} and later")
        elif not runs_on(capability, archs):
            reasons.append(f"{has}, the library is compiled for {archs}")
    return tuple(reasons)


def runs_on(capability: tuple[int, int], archs: str) -> bool:
    """Whether code compiled for ``archs``, a TORCH_CUDA_ARCH_LIST, runs on ``capability``.

    The rules are those of nvcc's manual ("GPU Compilation"): machine code runs on its own and
    later minor versions, PTX on every later version; with the suffix "a" both run on their own
    version alone, with "f" within the major one.
    """
    for major, minor, feature, ptx in _ARCH.findall(archs):
        own = (int(major), int(minor))
        within_major = capability[0] == own[0] or (ptx and not feature)
        if capability == own or (feature != "a" and within_major and capability > own):
            return True
    return False


def _reasons_of_kernels(problem: ConvProblem) -> list[str]:
    reason = torch.ops.resnext_kernels_cuda.not_supported_reason(
        problem.input_shape, problem.weight_shape, *problem.convolution, problem.dtype.itemsize
    )
    return [reason] if reason else []


def isa() -> str:
    """Compute capability and name of the current GPU, as "sm_90 NVIDIA H100 80GB HBM3"."""
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
    out = _empty(problem.output_shape, input)
    if residual is not None:
        residual = _pixels(residual)
    if bias is not None:
        bias = _aligned(bias.contiguous())
    torch.ops.resnext_kernels_cuda.fprop(
        _pixels(input), _filters(weight), bias, residual, out,
        *problem.convolution, relu, tf32.allowed(),
    )  # fmt: skip
    return out


def dgrad(problem: ConvProblem, grad_output: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient by the input, shape ``problem.input_shape``."""
    out = _empty(problem.input_shape, grad_output)
    torch.ops.resnext_kernels_cuda.dgrad(
        _pixels(grad_output), _filters(weight), out, *problem.convolution, tf32.allowed()
    )
    return out


def wgrad(
    problem: ConvProblem, grad_output: Tensor, input: Tensor, memory_format: torch.memory_format
) -> Tensor:
    """Return the gradient by the weight, shape ``problem.weight_shape``, in channels_last.

    Partial sums are added up in a fixed order: equal operands give equal bits.
    """
    out = _empty(problem.weight_shape, input)
    torch.ops.resnext_kernels_cuda.wgrad(
        _pixels(grad_output), _pixels(input), out, *problem.convolution
    )
    return out


def _pixels(images: Tensor) -> Tensor:
    """``images`` as the kernels read them; a copy only where a pixel is not 16-byte vectors."""
    n, c, h, w = images.stride()
    step = _ACCESS // images.element_size()
    if c == 1 and not (n % step or h % step or w % step or images.data_ptr() % _ACCESS):
        return images
    return images.clone(memory_format=torch.channels_last)


def _filters(weight: Tensor) -> Tensor:
    return _aligned(weight.contiguous(memory_format=torch.channels_last))


def _aligned(dense: Tensor) -> Tensor:
    return dense.clone() if dense.data_ptr() % _ACCESS else dense


def _empty(shape: tuple[int, int, int, int], like: Tensor) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )
