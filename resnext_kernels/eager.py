"""The short way of a plain eager call, round torch's dispatcher.

An operator written in Python costs tens of microseconds on its way through the dispatcher, as much
as a small layer takes. Where the dispatcher would do nothing but call the implementation, see
`plain`, `direct` calls the backend at once, by a plan kept from the first call of the same shape.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import derivatives, dispatch, ops
from .formats import in_format
from .kept import Kept
from .plain import is_plain, is_plain_thread
from .problem import ConvProblem, normalise

Plan = tuple[ConvProblem, Callable[..., Tensor]]
_PLANS: Kept[Plan] = Kept()
_NO_REFERENCES = 2  # a version of the format in which equal values have equal text


def direct(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    backend: str,
) -> Tensor | None:
    """The result of a plain call (arguments as `grouped_conv2d`), None where it is not plain."""
    if not (
        is_plain_thread()
        and is_plain(input)
        and is_plain(weight)
        and (bias is None or is_plain(bias))
    ):
        return None
    try:
        # Unlike the values themselves, their text tells 1 from True and 1.0.
        arguments = marshal.dumps((stride, padding, dilation, groups, backend), _NO_REFERENCES)
    except ValueError:
        return None
    key = (
        input.shape, input.stride(), input.dtype, input.get_device(),
        weight.shape, weight.stride(), weight.dtype, weight.get_device(),
        None if bias is None else (bias.shape, bias.dtype, bias.get_device()), arguments,
    )  # fmt: skip
    plan = _PLANS.get(key)
    if plan is None:
        plan = _plan(input, weight, bias, stride, padding, dilation, groups, backend)
        if plan is None:
            return None
        _PLANS.keep(key, plan)
    problem, fprop = plan
    if torch.is_grad_enabled() and (
        weight.requires_grad or input.requires_grad or (bias is not None and bias.requires_grad)
    ):
        # Of inference tensors alone nothing is recorded: the dispatcher knows.
        convolve = ops.grouped_conv2d if input.is_inference() else GroupedConv2dFunction.apply
        return convolve(input, weight, bias, *problem.convolution, backend)
    out = fprop(problem, input, weight, bias, None, False)
    return in_format(out, problem.memory_format, problem.output_strides)


class GroupedConv2dFunction(torch.autograd.Function):
    """The operator with its derivatives, for plain tensors one of which requires a gradient."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = ops.compute_forward(*inputs)
        derivatives.setup_forward(ctx, inputs, output)
        return output

    backward = staticmethod(derivatives.backward_of_forward)


def _plan(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    backend: str,
) -> Plan | None:
    """How to serve all calls of these shapes, None where each has to be looked at."""
    unusual = input.dim() != 4 or not input.is_floating_point() or input.numel() == 0
    if unusual or not _are_literal(stride, padding, dilation, groups):
        return None
    _, conv = normalise(input, weight, stride, padding, dilation, groups)
    problem = ops.checked_problem(input, weight, bias, *conv)
    dispatch.check_backend_name(backend)
    return problem, dispatch.choose(problem, "fprop", backend).fprop


def _are_literal(*values: Any) -> bool:
    """Whether each is an int, or a tuple or list of them: what a key tells whole."""
    return all(
        type(value) is int or (type(value) in (tuple, list) and all(type(v) is int for v in value))
        for value in values
    )
