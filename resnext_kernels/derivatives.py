"""First and second derivatives of the operators, registered with torch."""

from __future__ import annotations

import torch

from . import ops
from .plain import is_plain, is_plain_thread, is_transformed


def setup_forward(ctx, inputs, output) -> None:
    input, weight, bias, *ctx.conv, ctx.backend = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(input, weight)
    ctx.set_materialize_grads(False)


def backward_of_forward(ctx, grad_output):
    if grad_output is None:  # Undefined, which makes the operands' gradients so, not zeros.
        return (None,) * 8
    input, weight = ctx.saved_tensors
    mask = list(ctx.needs_input_grad[:3])
    mask[2] = mask[2] and ctx.has_bias
    grads = masked_backward(grad_output, input, weight, ctx.conv, mask, ctx.backend)
    return (*grads, None, None, None, None, None)


def masked_backward(grad_output, input, weight, conv, mask, backend):
    """The backward operator with None in the place of each gradient that is not needed."""
    if not any(mask):
        return (None, None, None)
    operands = grad_output, input, weight
    if is_transformed():  # though the forward may not have been
        from . import transforms  # whose import takes long

        if not transforms.is_functionalized():
            return transforms.gradients(*operands, conv, mask, backend)
    # With gradients on, this is to be differentiated again.
    if not torch.is_grad_enabled() and is_plain_thread() and all(map(is_plain, operands)):
        return ops.gradients(*operands, conv, mask, backend)
    grads = ops.grouped_conv2d_backward(*operands, *conv, mask, backend)
    return tuple(grad if wanted else None for grad, wanted in zip(grads, mask, strict=True))


def setup_backward(ctx, inputs, output) -> None:
    grad_output, input, weight, *ctx.conv, ctx.output_mask, ctx.backend = inputs
    ctx.save_for_backward(grad_output, input, weight)
    ctx.set_materialize_grads(False)


def double_backward(ctx, *grad_grads):
    """The three gradients are bilinear in (grad_output, input, weight): differentiate each."""
    grad_grad_input, grad_grad_weight, grad_grad_bias = (
        grad if wanted else None for grad, wanted in zip(grad_grads, ctx.output_mask, strict=True)
    )
    grad_output, input, weight = ctx.saved_tensors
    conv, backend = ctx.conv, ctx.backend
    needs_grad_output, needs_input, needs_weight = ctx.needs_input_grad[:3]
    to_grad_output = to_input = to_weight = None
    terms = []
    if grad_grad_input is not None and needs_grad_output:
        terms.append(ops.grouped_conv2d(grad_grad_input, weight, None, *conv, backend))
    if grad_grad_weight is not None and needs_grad_output:
        terms.append(ops.grouped_conv2d(input, grad_grad_weight, None, *conv, backend))
    if grad_grad_bias is not None and needs_grad_output:
        terms.append(grad_grad_bias.view(1, -1, 1, 1).expand_as(grad_output))
    if terms:
        to_grad_output = sum(terms[1:], terms[0])
    if grad_grad_weight is not None and needs_input:
        to_input = masked_backward(
            grad_output, input, grad_grad_weight, conv, [True, False, False], backend
        )[0]
    if grad_grad_input is not None and needs_weight:
        to_weight = masked_backward(
            grad_output, grad_grad_input, weight, conv, [False, True, False], backend
        )[1]
    return (to_grad_output, to_input, to_weight, None, None, None, None, None, None)


def setup_fused(ctx, inputs, output) -> None:
    input, weight, bias, _, *ctx.conv, ctx.activation, ctx.backend = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(input, weight, output if ctx.activation == "relu" else None)
    ctx.set_materialize_grads(False)


def backward_of_fused(ctx, grad_output):
    if grad_output is None:
        return (None,) * 10
    input, weight, output = ctx.saved_tensors
    if ctx.activation == "relu":
        grad_output = torch.ops.aten.threshold_backward(grad_output, output, 0)
    mask = list(ctx.needs_input_grad[:3])
    mask[2] = mask[2] and ctx.has_bias
    grads = masked_backward(grad_output, input, weight, ctx.conv, mask, ctx.backend)
    to_residual = grad_output if ctx.needs_input_grad[3] else None
    return (*grads, to_residual, None, None, None, None, None, None)


for _name, _backward, _setup in (
    ("grouped_conv2d", backward_of_forward, setup_forward),
    ("grouped_conv2d_backward", double_backward, setup_backward),
    ("grouped_conv2d_fused", backward_of_fused, setup_fused),
):
    torch.library.register_autograd(
        f"resnext_kernels::{_name}", _backward, setup_context=_setup, lib=ops.LIBRARY
    )
