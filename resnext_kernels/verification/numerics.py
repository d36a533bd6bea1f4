"""The truth of a call, the measure of error, the tolerances, and how a call is made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import ops, reference
from ..backends import tf32
from ..problem import ConvProblem, Direction

TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
_TF32_TOLERANCE = 1e-3
# A single element may be off by as many tolerances of a usual one. Right kernels take up to 1 in
# float32, 7 in bfloat16, and 10 in float16, where ATen rounds its sums on a CPU on the way.
_OUTLIER = 30.0


def tolerance(dtype: torch.dtype, device: str) -> float:
    """The largest `relative_error` on a type of device, under torch's flags of the moment."""
    if dtype == torch.float32 and device == "cuda" and tf32.allowed():
        return _TF32_TOLERANCE
    return TOLERANCES[dtype]


def relative_error(out: Tensor, truth: Tensor, least_norm: float = 0.0) -> float:
    """``||out - truth|| / ||truth||`` in float64, or the largest error of an element, if more.

    An element's error is measured by thirty usual elements, ``30 * ||truth|| / sqrt(numel)``, or by
    itself where it is larger. The norm alone would let a wholly wrong element pass among many, the
    usual ones alone would refuse rightly rounded large ones where most are zero. Of up to 900
    elements the norm decides.

    Infinite for another shape, NaN or infinity. ``least_norm`` stands in for a smaller norm.
    """
    out, truth = out.detach(), truth.detach()
    if out.shape != truth.shape or not out.isfinite().all():
        return math.inf
    errors = (out.to(truth.device, torch.float64) - truth).abs()
    total = float(errors.norm())
    if total == 0:
        return 0.0
    norm = max(float(truth.norm()), least_norm)
    if norm == 0:
        return math.inf
    usual = norm / math.sqrt(truth.numel())
    return max(total / norm, float((errors / truth.abs().clamp(min=_OUTLIER * usual)).max()))


def truth(problem: ConvProblem, direction: Direction, first: Tensor, second: Tensor) -> Tensor:
    """The float64 reference of one direction, on the CPU; operands in a backend's order."""
    first, second = first.cpu(), second.cpu()
    if direction == "fprop":
        return reference.fprop(problem, first, second, None)
    return getattr(reference, direction)(problem, first, second)


def least_norm(problem: ConvProblem, direction: Direction, first: Tensor, second: Tensor) -> float:
    """``sqrt(sum((a * b)^2))`` over all products: the norm to expect were their signs random.

    Few sums, or many equal ones, may all but cancel, and what rounding leaves of any sum is large
    beside them.
    """
    squares = (operand.double().square() for operand in (first, second))
    return math.sqrt(float(truth(problem, direction, *squares).sum()))


def error(
    problem: ConvProblem, direction: Direction, out: Tensor, first: Tensor, second: Tensor
) -> float:
    """The `relative_error` of one direction and its `least_norm`; operands in a backend's order."""
    operands = (problem, direction, first, second)
    return relative_error(out, truth(*operands), least_norm(*operands))


def fused_truth(
    problem: ConvProblem,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """The float64 reference of ``relu?(conv(input, weight) + bias + residual)``, on the CPU."""
    out = reference.fprop(problem, input.cpu(), weight.cpu(), None if bias is None else bias.cpu())
    out = out if residual is None else out + residual.double().cpu()
    return out.relu() if relu else out


def input_and_weight(
    problem: ConvProblem, direction: Direction, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor]:
    """What the operators are given: NaN in place of the operand that ``direction`` cannot read."""
    if direction == "fprop":
        return first, second
    shape = problem.input_shape if direction == "dgrad" else problem.weight_shape
    unread = first.new_full(shape, float("nan"))
    return (unread, second) if direction == "dgrad" else (second, unread)


def call(
    problem: ConvProblem, direction: Direction, backend: str, first: Tensor, second: Tensor
) -> Tensor:
    """One direction through the operators, by a named backend.

    Raises:
        ProblemError: the backend cannot serve the call.
    """
    conv = problem.convolution
    input, weight = input_and_weight(problem, direction, first, second)
    if direction == "fprop":
        return ops.grouped_conv2d(input, weight, None, *conv, backend)
    mask = [direction == "dgrad", direction == "wgrad", False]
    grads = ops.grouped_conv2d_backward(first, input, weight, *conv, mask, backend)
    return grads[mask.index(True)]


@contextmanager
def strict() -> Iterator[None]:
    """No TF32, which has a tolerance of its own, and NaN in memory that nobody has written.

    The latter shows output that a kernel left out; torch does it under deterministic algorithms.
    """
    tf32 = torch.backends.cudnn.allow_tf32
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
