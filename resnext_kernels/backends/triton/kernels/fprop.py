"""fprop: the output of the convolution, with its epilogue."""

from __future__ import annotations

from torch import Tensor

from ....problem import ConvProblem
from . import device
from .conv import Operands, conv_launch
from .launch import Launch, Plans
from .schedule import fprop_schedule
from .tensors import filters, readable, writable


def fprop(
    problem: ConvProblem,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """Return ``relu?(conv(input, weight) + bias + residual)``, shape ``problem.output_shape``."""
    out = writable(problem.output_shape, input, problem.memory_format)
    _PLANS.run(
        (problem, relu, device.precision(problem.dtype)),
        readable(input),
        filters(weight),
        None if bias is None else bias.contiguous(),
        None if residual is None else readable(residual),
        out,
    )
    return out


def plan(
    problem: ConvProblem,
    relu: bool,
    precision: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
) -> Launch:
    operands = Operands(input, weight, residual, out, transposed=False)
    return conv_launch(problem, fprop_schedule(problem), operands, relu, precision)


_PLANS = Plans(plan)
