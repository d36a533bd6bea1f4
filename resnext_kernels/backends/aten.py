"""PyTorch's own convolution (cuDNN, oneDNN, MPS, ...): serves everything, and is the yardstick."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from ..problem import ConvProblem, Direction

NAME = "aten"


def not_supported_reasons(problem: ConvProblem, direction: Direction) -> list[str]:
    """ATen serves every valid problem."""
    return []


def fprop(
    problem: ConvProblem,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """Return ``relu?(conv(input, weight) + bias + residual)``, shape ``problem.output_shape``."""
    out = F.conv2d(
        input, weight, bias, problem.stride, problem.padding, problem.dilation, problem.groups
    )
    if residual is not None:
        out += residual
    if relu:
        out = out.relu_()
    return out


def dgrad(problem: ConvProblem, grad_output: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient by the input, shape ``problem.input_shape``."""
    like = torch.empty(
        problem.input_shape,
        dtype=problem.dtype,
        device=grad_output.device,
        memory_format=problem.memory_format,
    )
    return _backward(problem, grad_output, like, weight, [True, False, False])[0]


def wgrad(
    problem: ConvProblem, grad_output: Tensor, input: Tensor, memory_format: torch.memory_format
) -> Tensor:
    """Return the gradient by the weight, shape ``problem.weight_shape``.

    In the images' format, in which ATen computes it: a conversion is cheaper outside.
    """
    if problem.dtype == torch.bfloat16 and problem.device == "cpu" and _has_idle_tap(problem):
        grad_output, input = grad_output.float(), input.float()  # oneDNN would not write that tap
    weight = torch.empty(
        problem.weight_shape,
        dtype=input.dtype,
        device=input.device,
        memory_format=problem.memory_format,
    )
    return _backward(problem, grad_output, input, weight, [False, True, False])[1].to(problem.dtype)


@functools.lru_cache(maxsize=4096)
def _has_idle_tap(problem: ConvProblem) -> bool:
    """Whether a tap of the kernel meets nothing but padding."""
    axes = zip(
        problem.in_size, problem.out_size, problem.kernel,
        problem.stride, problem.padding, problem.dilation, strict=True,
    )  # fmt: skip
    return any(
        not any(0 <= o * stride - padding + tap * dilation < size for o in range(outputs))
        for size, outputs, kernel, stride, padding, dilation in axes
        for tap in range(kernel)
    )


def _backward(
    problem: ConvProblem, grad_output: Tensor, input: Tensor, weight: Tensor, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten.convolution_backward(
        grad_output, input, weight, None,
        problem.stride, problem.padding, problem.dilation, False, [0, 0], problem.groups, mask,
    )  # fmt: skip
