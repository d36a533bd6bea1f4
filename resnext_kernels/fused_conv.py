"""Convolutions of inference: folded normalisation, residual sum and ReLU in one call.

`optimize_for_inference` turns the convolutions of a model into these. A grouped one runs this
package's fused operator. A dense one runs on the CPU as oneDNN's fused convolution, with weights
laid out once for its kernels: PyTorch's own convolution lays them out anew in each call, which, for
one image, takes as long as the convolution. Wherever anything but plain inference goes on (a
gradient, autocast, tracing, compilation), a dense one is PyTorch's operations one after the other.
"""

from __future__ import annotations

import functools
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import has_torch_function

from . import ops
from .functional import is_onnx_export
from .nn import GroupedConv2d
from .plain import is_plain, is_plain_thread, is_transformed
from .problem import Convolution, ProblemError, as_pair

Layouts = dict[tuple[torch.Size, int], Tensor]  # of a weight, by the input's shape and threads
_MOST_LAYOUTS = 2  # of a weight: for full batches and the last one


class FusedConv2d(nn.Conv2d):
    """A dense `torch.nn.Conv2d` with an epilogue: ``relu?(conv(input) + bias + residual)``.

    ``(N, C, H, W) -> (N, K, P, Q)``, or unbatched; ``residual`` may be broadcast to the output.
    The attributes: ``relu``; ``sum_into``, the one of "output" and "residual" whose dtype and shape
    the sum keeps, being one in place; and ``at_entry``, whether a batch is first brought into
    channels_last.
    """

    relu = False
    sum_into = ""
    at_entry = False
    _packed: tuple[Tensor | None, int | None, Layouts] = (None, None, {})

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        input = entering(self, input)
        window = _window(self)
        if (
            window is not None
            and _is_plain_inference(self, input, residual)
            and _takes_packed_weight(input, self.weight)
            and min(_output_size(self, input, window)) > 0
            and (residual is None or _is_like_output(self, residual, input, window))
        ):
            return self._run_packed(input, residual, window)
        return _finish(self, super().forward(input), residual)

    def _run_packed(self, input: Tensor, residual: Tensor | None, window: Convolution) -> Tensor:
        stride, padding, dilation, groups = window
        weight = self._packed_weight(input, window)
        conv = (padding, stride, dilation, groups)
        if residual is None:
            output = torch.ops.mkldnn._convolution_pointwise(
                input, weight, self.bias, *conv, "none", [], ""
            )
        else:
            output = torch.ops.mkldnn._convolution_pointwise.binary(
                input, residual, weight, self.bias, *conv, "add", None, None, [], None
            )
        # Not fused: oneDNN's ReLU makes 0 of NaN.
        return output.relu_() if self.relu else output

    def _packed_weight(self, input: Tensor, window: Convolution) -> Tensor:
        """The weight as oneDNN's kernel for inputs of this shape reads it on as many threads.

        It is made anew where the weight was changed. Another shape, be it another batch, and
        another number of threads have another kernel, for which this one's weight would be slow.
        """
        weight = self.weight.detach()
        version = weight._version
        packed_of, packed_version, layouts = self._packed
        # A view of the same memory, as pruning of channels assigns, is another weight.
        if packed_of is None or not packed_of.is_set_to(weight) or packed_version != version:
            layouts = {}
        kernel = input.shape, torch.get_num_threads()
        packed = layouts.get(kernel)
        if packed is None:
            stride, padding, dilation, groups = window
            packed = torch.ops.aten.mkldnn_reorder_conv2d_weight(
                weight.to_mkldnn(), padding, stride, dilation, groups, input.shape
            )
            recent = list(layouts.items())[1 - _MOST_LAYOUTS :]
            # Holding the weight keeps its address from being given to another.
            self._packed = weight, version, dict([*recent, (kernel, packed)])
        return packed

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_packed"}

    def __prepare_scriptable__(self) -> NoReturn:
        _refuse_scripting(self)


class FusedGroupedConv2d(GroupedConv2d):
    """A `GroupedConv2d` with an epilogue, as `FusedConv2d`, on this package's fused operator."""

    relu = False
    sum_into = ""
    at_entry = False

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        input = entering(self, input)
        window = _window(self)
        plain = _is_plain_inference(self, input, residual)
        if window is None or not _is_usual(input) or (not plain and is_onnx_export()):
            return _finish(self, super().forward(input), residual)
        fits = residual is None or _is_like_output(self, residual, input, window)
        convolve = ops.compute_fused if plain else ops.grouped_conv2d_fused
        out = convolve(
            input, self.weight, self.bias, residual if fits else None, *window,
            "relu" if fits and self.relu else "none", self.backend,
        )  # fmt: skip
        return out if fits else _finish(self, out, residual)

    def __prepare_scriptable__(self) -> NoReturn:
        _refuse_scripting(self)


def become_fused(conv: Any) -> None:
    """Turn a convolution into a fused one, which has nothing to fuse yet."""
    conv.requires_grad_(False)
    _bring_up_to_date(conv)
    if conv.groups > 1:
        conv.__class__ = FusedGroupedConv2d
    else:
        conv.__class__ = FusedConv2d
        conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)


def _bring_up_to_date(conv: Any) -> None:
    """Have pairs for settings, and paddings of the four sides, where these are tuples of one, or
    were changed after construction, as code does that trades stride for dilation: torch reads them
    in each call."""
    (out_channels, in_width), kernel_size = conv.weight.shape[:2], tuple(conv.weight.shape[2:])
    padding = conv.padding if conv.padding_mode == "zeros" else 0
    if not isinstance(padding, str):
        padding = as_pair("padding", padding, 0)
    stride, dilation = as_pair("stride", conv.stride, 1), as_pair("dilation", conv.dilation, 1)
    made = nn.Conv2d(
        in_width * conv.groups, out_channels, kernel_size, stride, padding, dilation,
        conv.groups, device="meta",
    )  # fmt: skip
    conv.kernel_size, conv.stride, conv.dilation = made.kernel_size, made.stride, made.dilation
    if conv.padding_mode == "zeros":
        conv.padding = made.padding
        conv._reversed_padding_repeated_twice = made._reversed_padding_repeated_twice


def _refuse_scripting(conv: nn.Conv2d) -> NoReturn:
    raise ProblemError(
        f"torch.jit.script: {type(conv).__name__} of optimize_for_inference cannot be scripted, "
        "expected torch.jit.trace(model, images)"
    )


def _window(conv: nn.Conv2d) -> Convolution | None:
    """Its stride, padding, dilation and groups; None where sides differ or are not of zeros."""
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    if left != right or top != bottom or (conv.padding_mode != "zeros" and (left or top)):
        return None
    (stride_y, stride_x), (dilation_y, dilation_x) = conv.stride, conv.dilation
    return (stride_y, stride_x), (top, left), (dilation_y, dilation_x), conv.groups


def entering(conv: FusedConv2d | FusedGroupedConv2d, input: Tensor) -> Tensor:
    """What ``conv`` computes on where it is called with ``input``."""
    if conv.at_entry and _is_usual(input) and input.device.type in ("cpu", "cuda"):
        return input.contiguous(memory_format=torch.channels_last)
    return input


def _is_usual(input: Any) -> bool:
    """Whether it is a batch with data, and no transform or recorder (but compilers) is at work."""
    if not isinstance(input, Tensor):
        return False
    if not torch.compiler.is_compiling() and has_torch_function((input,)):
        return False
    if torch.jit.is_tracing():
        return False
    usual = input.dim() == 4 and input.layout == torch.strided and not input.is_complex()
    return usual and input.numel() > 0 and not is_transformed()


def _is_like_output(conv: nn.Conv2d, residual: Tensor, input: Tensor, window: Convolution) -> bool:
    """Whether the sum with ``residual`` neither broadcasts nor promotes."""
    if not (_is_usual(input) and _is_usual(residual)) or residual.device != input.device:
        return False
    kind, dtype = input.device.type, input.dtype
    if ops.is_autocast(kind):
        dtype = torch.get_autocast_dtype(kind)
    shape = (input.shape[0], conv.out_channels, *_output_size(conv, input, window))
    return residual.dtype == dtype and residual.shape == shape


def _output_size(conv: nn.Conv2d, input: Tensor, window: Convolution) -> list[int]:
    sides = zip(input.shape[2:], conv.kernel_size, *window[:3], strict=True)
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides]


def _is_plain_inference(conv: nn.Conv2d, input: Tensor, residual: Tensor | None) -> bool:
    """Whether torch's dispatcher would only pass a call on to its implementation."""
    if not is_plain_thread():
        return False
    if not (is_plain(input) and is_plain(conv.weight)):
        return False
    if residual is not None and not is_plain(residual):
        return False
    if not torch.is_grad_enabled():
        return True
    tensors = (input, conv.weight, conv.bias, residual)
    return not any(tensor.requires_grad for tensor in tensors if tensor is not None)


def _finish(conv: FusedConv2d | FusedGroupedConv2d, out: Tensor, residual: Tensor | None) -> Tensor:
    if residual is not None:
        if conv.sum_into == "output":
            out += residual
        elif conv.sum_into == "residual":
            out = residual.add_(out)
        else:
            out = out + residual
    return F.relu(out, inplace=True) if conv.relu else out


def _takes_packed_weight(input: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN serves an ``input`` without a mode or gradient with a weight so laid out.

    Not where they do not fit: it would not say so, or not as PyTorch does. Nor for inference
    tensors, which do not tell that they were changed, and tensors in shared memory, which do not
    tell that another process did it.
    """
    usual = input.device.type == "cpu" and input.dim() == 4 and input.numel() > 0
    usual = usual and not (weight.is_inference() or weight.untyped_storage().is_shared())
    fits = input.dtype == weight.dtype and input.shape[1:2] == weight.shape[1:2]
    return usual and fits and torch._C._get_mkldnn_enabled() and _has_packed_weights(input.dtype)


@functools.cache
def _has_packed_weights(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    wanted = ("_convolution_pointwise", "_is_mkldnn_bf16_supported")
    if not all(hasattr(torch.ops.mkldnn, name) for name in wanted):
        return False
    bfloat16 = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or bfloat16
