"""The plain float64 truth that every backend is held to."""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import ConvProblem


@torch.no_grad()
def fprop(problem: ConvProblem, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Grouped convolution in float64 by its definition, one tap of the kernel at a time.

    ``out[n, g*Kg+k, p, q] = bias + sum_{c,r,s} in[n, g*Cg+c, p*st+r*di-pad, ...] * w[g*Kg+k, c, r, s]``
    Shapes as in `ConvProblem`; returns a contiguous float64 ``(N, K, P, Q)`` tensor.
    """  # noqa: E501
    shape = _grouped(problem, problem.output_shape)
    group_out = torch.zeros(shape, dtype=torch.float64, device=input.device)
    filters = _grouped_weight(problem, weight)
    padded = _padded_groups(problem, input)
    for r, s, window in _taps(problem):
        group_out += torch.einsum("ngchw,gkc->ngkhw", padded[window], filters[..., r, s])
    out = group_out.reshape(problem.output_shape)
    return out if bias is None else out + bias.double().view(1, -1, 1, 1)


@torch.no_grad()
def dgrad(problem: ConvProblem, grad_output: Tensor, weight: Tensor) -> Tensor:
    """Gradient of `fprop` by the input: the transpose of each tap; float64 ``(N, C, H, W)``."""
    grads = grad_output.double().reshape(_grouped(problem, problem.output_shape))
    filters = _grouped_weight(problem, weight)
    padded = _padded_groups(problem, grads.new_zeros(problem.input_shape))
    for r, s, window in _taps(problem):
        padded[window] += torch.einsum("ngkhw,gkc->ngchw", grads, filters[..., r, s])
    (top, left), (h, w) = problem.padding, problem.in_size
    return padded[..., top : top + h, left : left + w].reshape(problem.input_shape)


@torch.no_grad()
def wgrad(problem: ConvProblem, grad_output: Tensor, input: Tensor) -> Tensor:
    """Gradient of `fprop` by the weight; float64 ``(K, C/groups, R, S)``."""
    grads = grad_output.double().reshape(_grouped(problem, problem.output_shape))
    padded = _padded_groups(problem, input)
    out = _grouped_weight(problem, grads.new_zeros(problem.weight_shape))
    for r, s, window in _taps(problem):
        out[..., r, s] = torch.einsum("ngkhw,ngchw->gkc", grads, padded[window])
    return out.reshape(problem.weight_shape)


def _grouped(problem: ConvProblem, shape: tuple[int, int, int, int]) -> tuple[int, ...]:
    return (shape[0], problem.groups, shape[1] // problem.groups, *shape[2:])


def _grouped_weight(problem: ConvProblem, weight: Tensor) -> Tensor:
    k, c, r, s = problem.weight_shape
    return weight.double().reshape(problem.groups, k // problem.groups, c, r, s)


def _padded_groups(problem: ConvProblem, input: Tensor) -> Tensor:
    ph, pw = problem.padding
    padded = torch.nn.functional.pad(input.double(), (pw, pw, ph, ph))
    return padded.unflatten(1, (problem.groups, problem.in_width))


def _taps(problem: ConvProblem):
    """Yield ``(r, s, window)``: the index of the padded pixels that tap (r, s) reads."""
    (p, q), (sh, sw), (dh, dw) = problem.out_size, problem.stride, problem.dilation
    for r in range(problem.kernel[0]):
        for s in range(problem.kernel[1]):
            rows = slice(r * dh, r * dh + (p - 1) * sh + 1, sh)
            cols = slice(s * dw, s * dw + (q - 1) * sw + 1, sw)
            yield r, s, (..., rows, cols)
