"""CPU kernels in C++ (csrc/cpu): channels_last native, vector instructions chosen at run time."""

from __future__ import annotations

import math
import os
import warnings

import torch
from torch import Tensor

from ..formats import dense_strides
from ..library import load_library
from ..problem import ConvProblem
from .reasons import of_operands, of_steps

NAME = "cpu"
LIBRARY = load_library("_cpu")
_OPERATORS = torch.ops.resnext_kernels_cpu
DTYPES = (torch.float32, torch.bfloat16)
ISAS = ("avx512_bf16", "avx512", "avx2", "portable")
# Each thread keeps the packed weights of a group: 4 MiB, more where its channels fill no vectors.
_MOST_WEIGHTS = 1 << 20
# Of stride, padding and dilation: a thread keeps the rows from a kernel's first tap to its last,
# padded, be they in the image or not.
_MOST_STEP = 1 << 8
# Of the values in these rows, for a group: 256 MiB a thread.
_MOST_ROW_WORDS = 1 << 26
_LEAST_WIDTH = 16  # of AVX-512's vectors, which narrow groups share


def not_supported_reasons(problem: ConvProblem) -> list[str]:
    """Every reason why these kernels cannot serve ``problem``."""
    reasons = [
        *of_operands(problem, LIBRARY, ("cpu",), DTYPES),
        *of_steps(problem, _MOST_STEP),
    ]
    weights = problem.in_width * problem.out_width * math.prod(problem.kernel)
    if weights > _MOST_WEIGHTS:
        reasons.append(f"{weights} weights in a group, serves up to {_MOST_WEIGHTS}")
    words = _row_words(problem)
    if words > _MOST_ROW_WORDS:
        reasons.append(
            f"{words} values in the rows of a group that the taps reach at once, serves up to "
            f"{_MOST_ROW_WORDS}"
        )
    return reasons


def _row_words(problem: ConvProblem) -> int:
    """The padded pixels' channels that a group's sums for one row of the output read."""
    rows, cols = (d * (k - 1) + 1 for k, d in zip(problem.kernel, problem.dilation, strict=True))
    cols += max(problem.out_size[1] - 1, 0) * problem.stride[1]
    return rows * cols * max(problem.in_width, problem.out_width, _LEAST_WIDTH)


def isa() -> str:
    """The instruction set the kernels run on, one of `ISAS`."""
    return _OPERATORS.isa()


def _check_wanted_isa() -> None:
    """Warn where the environment asks for an instruction set that the kernels cannot run on."""
    wanted = os.environ.get("RESNEXT_KERNELS_CPU_ISA")
    if LIBRARY.loaded and wanted and wanted != isa():
        warnings.warn(
            f"RESNEXT_KERNELS_CPU_ISA={wanted!r}: expected one of {', '.join(map(repr, ISAS))} "
            f"that this processor runs; using {isa()!r}",
            stacklevel=2,
        )


_check_wanted_isa()


def fprop(
    problem: ConvProblem,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """Return ``relu?(conv(input, weight) + bias + residual)``, shape ``problem.output_shape``."""
    weight = _filters(weight)
    if bias is not None:
        bias = bias.contiguous()
    out = input.new_empty_strided(problem.output_shape, problem.output_strides)
    if residual is not None and not residual.is_contiguous():
        residual = residual.contiguous(memory_format=torch.channels_last)
    _OPERATORS.fprop(_images(input), weight, bias, residual, out, *problem.convolution, relu)
    return out


def dgrad(problem: ConvProblem, grad_output: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient by the input, shape ``problem.input_shape``."""
    weight = _filters(weight)
    out = grad_output.new_empty_strided(problem.input_shape, problem.input_strides)
    _OPERATORS.dgrad(_images(grad_output), weight, out, *problem.convolution)
    return out


def wgrad(
    problem: ConvProblem, grad_output: Tensor, input: Tensor, memory_format: torch.memory_format
) -> Tensor:
    """Return the gradient by the weight, shape ``problem.weight_shape``, in ``memory_format``."""
    strides = dense_strides(problem.weight_shape, memory_format)
    out = input.new_empty_strided(problem.weight_shape, strides)
    _OPERATORS.wgrad(_images(grad_output), _images(input), out, *problem.convolution)
    return out


def _images(tensor: Tensor) -> Tensor:
    """``tensor`` as the kernels read it, the channels of a pixel or its planes side by side."""
    if tensor.stride(1) == 1 or tensor.shape[1] == 1:
        return tensor
    planes = tensor.stride(3) == 1 and tensor.stride(2) == tensor.shape[3]
    dense = planes or tensor.is_contiguous()
    return tensor if dense else tensor.contiguous(memory_format=torch.channels_last)


def _filters(weight: Tensor) -> Tensor:
    """``weight`` as the kernels read it: contiguous, or channels_last of even width."""
    if weight.shape[1] % 2 == 0 and weight.is_contiguous(memory_format=torch.channels_last):
        return weight
    return weight.contiguous()
