"""PyTorch's own convolution (cuDNN, oneDNN, MPS, ...): serves everything, and is the yardstick."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from ..formats import unambiguous
from ..problem import ConvProblem

NAME = "aten"


def not_supported_reasons(problem: ConvProblem) -> list[str]:
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
    if problem.device == "cpu" and _misses_every_column(problem):
        out = _padding_alone(problem, bias)
    else:
        weight = unambiguous(weight, problem.memory_format)
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
    weight = unambiguous(weight, problem.memory_format)
    return _backward(problem, grad_output, like, weight, [True, False, False])[0]


def wgrad(
    problem: ConvProblem, grad_output: Tensor, input: Tensor, memory_format: torch.memory_format
) -> Tensor:
    """Return the gradient by the weight, shape ``problem.weight_shape``.

    In the images' format, in which ATen computes it: a conversion is cheaper outside.
    """
    if problem.dtype == torch.bfloat16 and problem.device == "cpu" and _is_wrong_wgrad(problem):
        grad_output, input = grad_output.float(), input.float()
    input = unambiguous(input, problem.memory_format)
    weight = torch.empty(
        problem.weight_shape,
        dtype=input.dtype,
        device=input.device,
        memory_format=problem.memory_format,
    )
    return _backward(problem, grad_output, input, weight, [False, True, False])[1].to(problem.dtype)


def _useful_taps(problem: ConvProblem) -> tuple[int, ...]:
    """How many rows and columns of the kernel meet more than padding."""
    axes = zip(
        problem.in_size, problem.out_size, problem.kernel,
        problem.stride, problem.padding, problem.dilation, strict=True,
    )  # fmt: skip
    return tuple(
        sum(
            any(0 <= o * stride - padding + tap * dilation < size for o in range(outputs))
            for tap in range(kernel)
        )
        for size, outputs, kernel, stride, padding, dilation in axes
    )


def _misses_every_column(problem: ConvProblem) -> bool:
    """Whether no tap meets a pixel, as strides step over the whole width of the images."""
    return problem.stride[1] > problem.in_size[1] and _useful_taps(problem)[1] == 0


def _padding_alone(problem: ConvProblem, bias: Tensor | None) -> Tensor:
    """What `fprop` makes of padding alone, where oneDNN 3.12 may crash: zeros or the bias."""
    out = torch.zeros(problem.output_shape, dtype=problem.dtype, device=problem.device)
    if bias is not None and out.numel():
        out += bias.view(-1, 1, 1)
    return out.contiguous(memory_format=problem.memory_format)


@functools.lru_cache(maxsize=4096)
def _is_wrong_wgrad(problem: ConvProblem) -> bool:
    """Whether oneDNN errs in bfloat16: seen in 3.12, whose ``jit_bf16`` kernels have the defects.

    - Taps that meet only padding get what was in memory before.
    - Of fewer than 16 channels in one group it reads a pixel one stride to the right and multiplies
      it by zero; with a stride wider than the images that lies past their end, and may be NaN.
    - Of other channels that fill no blocks of 16, interleaved (channels_last), in outputs of more
      than 28 columns, it skips the rows of a dilation twice, and reads past the end as well.
    """
    if _useful_taps(problem) != problem.kernel:
        return True
    if problem.groups == 1 and problem.in_width < 16:
        return problem.stride[1] > problem.in_size[1]
    dilated = problem.dilation[0] > 1 and problem.stride[0] == 1
    partial = problem.channels_last and problem.in_width % 16 != 0
    return dilated and partial and problem.out_size[1] > 28


def _backward(
    problem: ConvProblem, grad_output: Tensor, input: Tensor, weight: Tensor, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten.convolution_backward(
        grad_output, input, weight, None,
        problem.stride, problem.padding, problem.dilation, False, [0, 0], problem.groups, mask,
    )  # fmt: skip
