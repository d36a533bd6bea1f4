"""Grouped convolution under `torch.func` transforms and forward-mode differentiation.

An operator with `torch.library.register_autograd` refuses `torch.func.grad`, and a batching rule
alone would not give per-sample gradients. Convolution and its two gradients are the three partial
derivatives of one trilinear form, so one `torch.autograd.Function` closed under differentiation
serves every transform, composed to any depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack

from . import ops
from .problem import Convolution, ConvProblem, Pair, ProblemError

Operands = tuple[Tensor | None, Tensor | None, Tensor | None]

_INPUT, _WEIGHT = 1, 2


# Inlining an autograd.Function under a transform, torch.compile ignores its rules.
@torch.compiler.allow_in_graph
def grouped_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    backend: str,
) -> Tensor:
    """`ops.grouped_conv2d` for operands that a transform may have wrapped.

    Arguments, result ``(N, K, P, Q)`` and errors as there.
    """
    input, weight, bias = ops.autocast(input.device.type, input, weight, bias)
    problem = ops.checked_problem(input, weight, bias, stride, padding, dilation, groups)
    if TransformType.Functionalize in (kinds := _active_kinds()):
        convolve = ops.grouped_conv2d if len(kinds) == 1 else _by_aten
        return convolve(input, weight, bias, stride, padding, dilation, groups, backend)
    output = _Trilinear.apply(None, input, weight, problem, backend)
    return output if bias is None else output + bias.view(-1, 1, 1)


def gradients(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    conv: Convolution,
    mask: Sequence[bool],
    backend: str,
) -> Operands:
    """`ops.grouped_conv2d_backward` likewise, with None where ``mask`` wants no gradient."""
    problem = ops.checked_problem(input, weight, None, *conv)
    return (
        _Trilinear.apply(grad_output, None, weight, problem, backend) if mask[0] else None,
        _Trilinear.apply(grad_output, input, None, problem, backend) if mask[1] else None,
        grad_output.sum((0, 2, 3)) if mask[2] else None,
    )


def is_functionalized() -> bool:
    """Whether `functionalize` is at work, which takes operators and no autograd.Function."""
    return TransformType.Functionalize in _active_kinds()


def _active_kinds() -> set[TransformType]:
    return {layer.key() for layer in get_interpreter_stack() or ()}


def _by_aten(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    backend: str,
) -> Tensor:
    """For `functionalize`, which has no rule for an autograd.Function, among other transforms."""
    if backend not in ("auto", "aten"):
        raise ProblemError(
            f"backend={backend!r}: expected 'auto' or 'aten' where torch.func.functionalize is "
            "combined with another transform"
        )
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


class _Trilinear(torch.autograd.Function):
    """``sum(output * conv2d(input, weight))`` differentiated by the one operand that is None.

    None in the place of the output gives the convolution, in the place of the input or the weight
    that gradient. Linear in both others, hence all rules below follow from the form's symmetry.
    """

    @staticmethod
    def forward(
        output: Tensor | None,
        input: Tensor | None,
        weight: Tensor | None,
        problem: ConvProblem,
        backend: str,
    ) -> Tensor:
        conv = problem.convolution
        if output is None:
            return ops.grouped_conv2d(input, weight, None, *conv, backend)
        mask = [input is None, weight is None, False]
        if input is None:
            input = torch.empty(
                problem.input_shape,
                dtype=output.dtype,
                device=output.device,
                memory_format=problem.memory_format,
            )
        if weight is None:
            weight = output.new_empty(problem.weight_shape)
        grads = ops.grouped_conv2d_backward(output, input, weight, *conv, mask, backend)
        return grads[mask.index(True)]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *operands, ctx.problem, ctx.backend = inputs
        ctx.save_for_backward(*operands)
        ctx.save_for_forward(*operands)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple:
        operands = [cotangent if operand is None else operand for operand in ctx.saved_tensors]

        def gradient(slot: int) -> Tensor | None:
            if not ctx.needs_input_grad[slot]:
                return None
            return _Trilinear.apply(*_replaced(operands, slot, None), ctx.problem, ctx.backend)

        return (*map(gradient, range(3)), None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        operands = ctx.saved_tensors
        return sum(
            _Trilinear.apply(*_replaced(operands, slot, tangent), ctx.problem, ctx.backend)
            for slot, tangent in enumerate(tangents[:3])
            if tangent is not None
        )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        output: Tensor | None,
        input: Tensor | None,
        weight: Tensor | None,
        problem: ConvProblem,
        backend: str,
    ) -> tuple[Tensor, int]:
        """Fold the mapped dimension into the batch where all samples share one weight, and into
        the groups where each has its own."""
        operands, size = (output, input, weight), info.batch_size
        wanted = operands.index(None)
        shares_weight = weight is not None and in_dims[_WEIGHT] is None
        fold = _fold_into_batch if shares_weight else _fold_into_groups
        folded = (fold(slot, t, in_dims[slot], size) for slot, t in enumerate(operands))
        factor = {"batch": size * problem.batch}
        if not shares_weight:
            factor = {
                name: size * getattr(problem, name)
                for name in ("in_channels", "out_channels", "groups")
            }
        result = _Trilinear.apply(*folded, dataclasses.replace(problem, **factor), backend)
        dim = 0 if shares_weight or wanted == _WEIGHT else 1
        channels = problem.in_channels if wanted == _INPUT else problem.out_channels
        each = problem.batch if shares_weight else channels
        return result.unflatten(dim, (size, each)), dim


def _replaced(operands, slot: int, value: Tensor | None) -> Operands:
    output, input, weight = (value if i == slot else t for i, t in enumerate(operands))
    return output, input, weight


def _fold_into_batch(slot: int, operand: Tensor | None, dim: int | None, size: int):
    """``(V, N, ...) -> (V*N, ...)``, except for the weight, which all samples share."""
    if operand is None or slot == _WEIGHT:
        return operand
    return _mapped_first(operand, dim, size).flatten(0, 1)


def _fold_into_groups(slot: int, operand: Tensor | None, dim: int | None, size: int):
    """``(V, N, C, H, W) -> (N, V*C, H, W)``; of the weight ``(V, K, ...) -> (V*K, ...)``."""
    if operand is None:
        return None
    first = _mapped_first(operand, dim, size)
    return first.flatten(0, 1) if slot == _WEIGHT else first.transpose(0, 1).flatten(1, 2)


def _mapped_first(operand: Tensor, dim: int | None, size: int) -> Tensor:
    return operand.expand(size, *operand.shape) if dim is None else operand.movedim(dim, 0)
