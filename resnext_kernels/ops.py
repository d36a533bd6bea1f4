"""The operators: schema, implementation, fake, autocast, FLOP formula; see also `derivatives`."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import dispatch, flops
from .formats import dense_strides, format_of, in_format
from .kept import Kept
from .problem import Convolution, ConvProblem, Pair, ProblemError, validate

_CONV = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"
LIBRARY = torch.library.Library("resnext_kernels", "DEF")
LIBRARY.define(
    f"grouped_conv2d(Tensor input, Tensor weight, Tensor? bias, {_CONV}, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    f"grouped_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, {_CONV}, "
    "bool[3] output_mask, str backend) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "grouped_conv2d_fused(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, "
    f"{_CONV}, str activation, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
ACTIVATIONS = ("none", "relu")
# A problem, and the backends chosen for its directions; of the backward ones, those wanted.
_FPROP_PLANS: Kept[tuple[ConvProblem, ModuleType]] = Kept()
_BACKWARD_PLANS: Kept[
    tuple[ConvProblem, ModuleType | None, ModuleType | None, torch.memory_format]
] = Kept()


def checked_problem(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> ConvProblem:
    """Describe a call, or raise `ProblemError` naming the bad argument, its value and the rule."""
    validate(input, weight, bias, stride, padding, dilation, groups)
    return ConvProblem.of(input, weight, stride, padding, dilation, groups)


def compute_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    backend: str,
) -> Tensor:
    return compute_fused(
        input, weight, bias, None, stride, padding, dilation, groups, "none", backend
    )


def compute_fused(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    activation: str,
    backend: str,
) -> Tensor:
    key = (
        input.shape, input.stride(), input.dtype, input.device,
        weight.shape, weight.stride(), weight.dtype, weight.device,
        None if bias is None else (bias.shape, bias.dtype, bias.device, bias.layout),
        *stride, *padding, *dilation, groups, backend,
    )  # fmt: skip
    plan = _FPROP_PLANS.get(key)
    if plan is None:
        problem = checked_problem(input, weight, bias, stride, padding, dilation, groups)
        plan = _FPROP_PLANS.keep(key, (problem, dispatch.choose(problem, "fprop", backend)))
    problem, chosen = plan
    _check_epilogue(problem, input, residual, activation)
    out = chosen.fprop(problem, input, weight, bias, residual, activation == "relu")
    return in_format(out, problem.memory_format, problem.output_strides)


def _check_epilogue(
    problem: ConvProblem, input: Tensor, residual: Tensor | None, activation: str
) -> None:
    if activation not in ACTIVATIONS:
        raise ProblemError(f"activation={activation!r}: expected one of {ACTIVATIONS}")
    if residual is not None:
        check_like_output("residual", residual, problem, input)


def check_like_output(name: str, tensor: Tensor, problem: ConvProblem, input: Tensor) -> None:
    if tuple(tensor.shape) != problem.output_shape:
        raise ProblemError(
            f"{name}: shape {tuple(tensor.shape)}, expected {problem.output_shape} as the output"
        )
    for kind in ("dtype", "device"):
        value, expected = getattr(tensor, kind), getattr(input, kind)
        if value != expected:
            raise ProblemError(f"{name}: {kind} {value}, expected {expected} as the input")


def compute_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    output_mask: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    conv = (stride, padding, dilation, groups)
    grads = gradients(grad_output, input, weight, conv, output_mask, backend)
    to_input, to_weight, to_bias = (grad_output.new_empty(0) if g is None else g for g in grads)
    return to_input, to_weight, to_bias


def gradients(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    conv: Convolution,
    output_mask: Sequence[bool],
    backend: str,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients by input, weight and bias; None for those not wanted."""
    key = (
        grad_output.shape, grad_output.dtype, grad_output.device,
        input.shape, input.stride(), input.dtype, input.device,
        weight.shape, weight.stride(), weight.dtype, weight.device,
        *conv[0], *conv[1], *conv[2], conv[3], *output_mask, backend,
    )  # fmt: skip
    plan = _BACKWARD_PLANS.get(key)
    if plan is None:
        problem = checked_problem(input, weight, None, *conv)
        check_like_output("grad_output", grad_output, problem, input)
        dgrad = dispatch.choose(problem, "dgrad", backend) if output_mask[0] else None
        wgrad = dispatch.choose(problem, "wgrad", backend) if output_mask[1] else None
        plan = _BACKWARD_PLANS.keep(key, (problem, dgrad, wgrad, format_of(weight)))
    problem, dgrad, wgrad, weight_format = plan
    to_input = to_weight = None
    if dgrad is not None:
        to_input = dgrad.dgrad(problem, grad_output, weight)
        to_input = in_format(to_input, problem.memory_format, problem.input_strides)
    if wgrad is not None:
        to_weight = wgrad.wgrad(problem, grad_output, input, weight_format)
        strides = dense_strides(problem.weight_shape, weight_format)
        to_weight = in_format(to_weight, weight_format, strides)
    return to_input, to_weight, grad_output.sum((0, 2, 3)) if output_mask[2] else None


for _name, _function in (
    ("grouped_conv2d", compute_forward),
    ("grouped_conv2d_backward", compute_backward),
    ("grouped_conv2d_fused", compute_fused),
):
    LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")

grouped_conv2d = torch.ops.resnext_kernels.grouped_conv2d.default
grouped_conv2d_backward = torch.ops.resnext_kernels.grouped_conv2d_backward.default
grouped_conv2d_fused = torch.ops.resnext_kernels.grouped_conv2d_fused.default


@torch.library.register_fake("resnext_kernels::grouped_conv2d", lib=LIBRARY)
def _fake_forward(input, weight, bias, stride, padding, dilation, groups, backend):
    return _fake_fused(
        input, weight, bias, None, stride, padding, dilation, groups, "none", backend
    )


@torch.library.register_fake("resnext_kernels::grouped_conv2d_fused", lib=LIBRARY)
def _fake_fused(
    input, weight, bias, residual, stride, padding, dilation, groups, activation, backend
):
    dispatch.check_backend_name(backend)
    problem = checked_problem(input, weight, bias, stride, padding, dilation, groups)
    _check_epilogue(problem, input, residual, activation)
    return torch.empty(
        problem.output_shape, dtype=input.dtype, device=input.device,
        memory_format=problem.memory_format,
    )  # fmt: skip


@torch.library.register_fake("resnext_kernels::grouped_conv2d_backward", lib=LIBRARY)
def _fake_backward(
    grad_output, input, weight, stride, padding, dilation, groups, output_mask, backend
):
    problem = checked_problem(input, weight, None, stride, padding, dilation, groups)
    check_like_output("grad_output", grad_output, problem, input)

    def like(tensor: Tensor, wanted: bool, memory_format: torch.memory_format) -> Tensor:
        if not wanted:
            return grad_output.new_empty(0)
        return torch.empty(
            tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=memory_format
        )

    return (
        like(input, output_mask[0], problem.memory_format),
        like(weight, output_mask[1], format_of(weight)),
        grad_output.new_empty(weight.shape[0] if output_mask[2] else 0),
    )


def is_autocast(device_type: str) -> bool:
    """Whether autocast is on for a type of device; "meta", for one, has none to ask for."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def autocast(device_type: str, *args: Any) -> tuple[Any, ...]:
    """Cast floating tensors of ``args`` (float64 excepted, as ATen does) to what autocast asks."""
    if not is_autocast(device_type):
        return args
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(_cast(arg, dtype) for arg in args)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    castable = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if castable and value.dtype != torch.float64 else value


def _register_autocast(operator, device_type: str) -> None:
    key = f"Autocast{device_type.upper()}"
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(*args):
        args = autocast(device_type, *args)  # sees autocast off where its key is excluded
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return operator(*args)

    LIBRARY.impl(operator._schema.name.split("::")[1], kernel, key)


for _operator in (grouped_conv2d, grouped_conv2d_fused):
    for _device_type in ("cpu", "cuda", "xpu"):
        _register_autocast(_operator, _device_type)


flops.register()
