"""PyTorch's own convolution (cuDNN, oneDNN, MPS, ...): serves everything, and is the yardstick."""

from __future__ import annotations

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
    weight = torch.empty(
        problem.weight_shape,
        dtype=problem.dtype,
        device=input.device,
        memory_format=problem.memory_format,
    )
    return _backward(problem, grad_output, input, weight, [False, True, False])[1]


def _backward(
    problem: ConvProblem, grad_output: Tensor, input: Tensor, weight: Tensor, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten.convolution_backward(
        grad_output, input, weight, None,
        problem.stride, problem.padding, problem.dilation, False, [0, 0], problem.groups, mask,
    )  # fmt: skip
