"""The function users call: `torch.nn.functional.conv2d` with a choice of backend."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from . import eager, ops
from .dispatch import check_backend_name
from .plain import is_transformed
from .problem import FLOATING, Convolution, IntOrPair, ProblemError, normalise, surely, validate


def grouped_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    *,
    backend: str = "auto",
) -> Tensor:
    """Grouped 2-D convolution, a drop-in for `torch.nn.functional.conv2d`.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``; float32, bfloat16, float16, float64 or complex.
            Complex tensors, DTensors and their like always run on ATen. Any strides are right;
            channels_last is the fast path.
        weight: ``(K, C/groups, R, S)``, dtype and device of ``input``.
        bias: ``(K,)`` or None.
        stride, padding, dilation: an int or ``(height, width)``, in pixels; ``padding`` also
            "same" (stride 1 only) or "valid".
        groups: number of groups; divides C and K.
        backend: "auto", or the name of one backend, which then serves the call or raises.

    Returns:
        ``(N, K, P, Q)`` (or ``(K, P, Q)``) with the memory format `F.conv2d` would give it.

    Raises:
        ProblemError: names the argument, its value and what was expected; also with every reason
            where a named backend cannot serve the call.
        TypeError: where ``input``, ``weight`` or ``bias`` is no tensor.
    """
    out = eager.direct(input, weight, bias, stride, padding, dilation, groups, backend)
    if out is not None:
        return out
    if is_onnx_export():
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    # A subclass, a mode, a proxy of torch.fx; torch.compile deals with them in its own way.
    if not torch.compiler.is_compiling() and has_torch_function((input, weight, bias)):
        if backend in ("auto", "aten") and _is_per_sample(input, weight, bias):
            return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        return handle_torch_function(
            grouped_conv2d, (input, weight, bias),
            input, weight, bias, stride, padding, dilation, groups, backend=backend,
        )  # fmt: skip
    check_tensors(input, weight, bias)
    check_backend_name(backend)
    if input.dim() == 3:
        batched = input.unsqueeze(0)
        return grouped_conv2d(
            batched, weight, bias, stride, padding, dilation, groups, backend=backend
        ).squeeze(0)
    input, conv = normalise(input, weight, stride, padding, dilation, groups)
    exotic = input.is_complex() or input.layout != torch.strided or _is_wrapped(input, weight)
    if backend in ("auto", "aten") and (exotic or surely(input.numel() == 0)):
        return _left_to_aten(input, weight, bias, conv)
    convolve = _transformable() if is_transformed() else ops.grouped_conv2d
    return convolve(input, weight, bias, *conv, backend)


def is_onnx_export() -> bool:
    """Whether `torch.onnx.export` is recording a model, for runtimes that know no operator of ours.

    False under the compiler of torch, which would guard against torch.onnx being imported.
    """
    if torch.compiler.is_dynamo_compiling():
        return False
    return "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()


def _is_wrapped(input: Tensor, weight: Tensor) -> bool:
    """Whether one is a DTensor or its like, which know what to do for operators of ATen alone."""
    return is_traceable_wrapper_subclass(input) or is_traceable_wrapper_subclass(weight)


def _is_per_sample(*tensors: Tensor | None) -> bool:
    """Whether one is of `call_for_per_sample_grads`, which knows torch's functions alone."""
    module = sys.modules.get("torch.nn.utils._expanded_weights.expanded_weights_impl")
    return module is not None and any(isinstance(t, module.ExpandedWeight) for t in tensors)


def _left_to_aten(input: Tensor, weight: Tensor, bias: Tensor | None, conv: Convolution) -> Tensor:
    """For inputs that ATen alone serves, and empty ones, whose strides follow no rule."""
    if input.dtype in FLOATING and input.layout == torch.strided:
        validate(input, weight, bias, *conv)
    return F.conv2d(input, weight, bias, *conv)


def _transformable() -> Callable[..., Tensor]:
    # Here, because that module needs torch._dynamo, whose import takes more than a second.
    from . import transforms

    return transforms.grouped_conv2d


def check_tensors(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Raise TypeError for what is no tensor, `ProblemError` for an ``input`` of another rank."""
    for name, value in (("input", input), ("weight", weight), ("bias", bias)):
        if not isinstance(value, Tensor) and (name != "bias" or value is not None):
            raise TypeError(f"{name}: {type(value).__name__}, expected a Tensor")
    if input.dim() not in (3, 4):
        raise ProblemError(f"input: shape {tuple(input.shape)}, expected 3 or 4 dimensions")
