"""dgrad: the gradient by the input, a transposed convolution of the gradient by the output."""

from __future__ import annotations

from torch import Tensor

from ....problem import ConvProblem
from . import device
from .conv import Operands, conv_launch
from .launch import Launch, Plans
from .schedule import dgrad_schedule
from .tensors import filters, readable, writable


def dgrad(problem: ConvProblem, grad_output: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient by the input, shape ``problem.input_shape``."""
    out = writable(problem.input_shape, grad_output, problem.memory_format)
    facts = (problem, device.precision(problem.dtype))
    _PLANS.run(facts, readable(grad_output), filters(weight), None, None, out)
    return out


def plan(
    problem: ConvProblem,
    precision: str,
    grad_output: Tensor,
    weight: Tensor,
    bias: None,
    residual: None,
    out: Tensor,
) -> Launch:
    operands = Operands(grad_output, weight, None, out, transposed=True)
    return conv_launch(problem, dgrad_schedule(problem), operands, False, precision)


_PLANS = Plans(plan)
