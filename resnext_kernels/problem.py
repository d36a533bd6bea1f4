"""One frozen description of a grouped convolution call: validation, shapes, FLOPs, bytes."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .formats import dense_strides

Direction = Literal["fprop", "dgrad", "wgrad"]
Pair = tuple[int, int]
IntOrPair = int | Sequence[int]
Convolution = tuple[Pair, Pair, Pair, int]

DIRECTIONS: tuple[Direction, ...] = ("fprop", "dgrad", "wgrad")
FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class ProblemError(ValueError, RuntimeError):
    """Bad arguments of a convolution.

    A ``ValueError`` by nature, and a ``RuntimeError`` too because that is what
    ``torch.nn.functional.conv2d`` raises, so existing handlers keep working.
    """


def as_int(name: str, value: int) -> int:
    """Return ``value`` as an int of 64 bits; raise `ProblemError` for all else, a bool included."""
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        # Of a number that the compiler has made symbolic it would make a guard.
        symbolic = torch.compiler.is_compiling() or isinstance(value, torch.SymInt)
        if symbolic or -(2**63) <= value < 2**63:
            return value
        raise ProblemError(f"{name}={value!r}: expected an int of 64 bits")
    error = ProblemError(f"{name}={value!r}: expected an int")
    if isinstance(value, bool):
        raise error
    try:
        return operator.index(value)
    except TypeError:
        raise error from None


def as_pair(name: str, value: int | Sequence[int], least: int) -> Pair:
    """Return ``value`` as ``(height, width)``; raise `ProblemError` for any below ``least``."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(values) not in (1, 2):
        raise ProblemError(f"{name}={value!r}: expected an int or a pair of ints")
    height, width = as_int(name, values[0]), as_int(name, values[-1])
    if height < least or width < least:
        raise ProblemError(f"{name}={value!r}: expected values >= {least}")
    return height, width


def normalise(
    input: Tensor,
    weight: Tensor,
    stride: IntOrPair,
    padding: IntOrPair | str,
    dilation: IntOrPair,
    groups: int,
) -> tuple[Tensor, Convolution]:
    """Return ``input`` and ``(stride, padding, dilation, groups)``, all pairs and ``int``.

    "same" padding that differs on two sides of the image is put into the input.
    """
    strides, dilations = as_pair("stride", stride, 1), as_pair("dilation", dilation, 1)
    if isinstance(padding, str):
        input, pads = _named_padding(input, weight, padding, strides, dilations)
    else:
        pads = as_pair("padding", padding, 0)
    return input, (strides, pads, dilations, as_int("groups", groups))


def _named_padding(
    input: Tensor, weight: Tensor, padding: str, stride: Pair, dilation: Pair
) -> tuple[Tensor, Pair]:
    """Resolve "same" and "valid"; an odd total of "same" pads one more at the bottom and right."""
    if padding == "valid":
        return input, (0, 0)
    if padding != "same":
        raise ProblemError(f"padding={padding!r}: expected 'same', 'valid', an int or a pair")
    if stride != (1, 1):
        raise ProblemError(f"stride={stride}: expected 1 with padding='same'")
    if weight.dim() != 4:
        raise ProblemError(f"weight: shape {tuple(weight.shape)}, expected 4 dimensions")
    kernel = (as_int("weight", size) for size in weight.shape[2:])  # torch.jit.trace has tensors
    total_h, total_w = (d * max(k - 1, 0) for d, k in zip(dilation, kernel, strict=True))
    if total_h % 2 or total_w % 2:
        input = torch.nn.functional.pad(input, (0, total_w % 2, 0, total_h % 2))
    return input, (total_h // 2, total_w // 2)


def dtype_name(dtype: torch.dtype) -> str:
    """As tables, records and the command line have it: "float32"."""
    return str(dtype).removeprefix("torch.")


def surely(condition: bool) -> bool:
    """A condition on sizes; False where they are known only when the compiled program runs."""
    if torch.compiler.is_compiling() or isinstance(condition, torch.SymBool):
        from torch.fx.experimental.symbolic_shapes import guard_or_false

        return guard_or_false(condition)
    return condition


def memory_format_of(input: Tensor, weight: Tensor) -> torch.memory_format:
    """Memory format ATen gives the output: channels_last if either operand suggests it.

    The weight has no say where the input is empty.
    """
    suggest = torch._prims_common.suggest_memory_format
    operands = (input,) if surely(input.numel() == 0) else (input, weight)
    if any(suggest(operand) == torch.channels_last for operand in operands):
        return torch.channels_last
    return torch.contiguous_format


@dataclass(frozen=True)
class ConvProblem:
    """A grouped 2-D convolution: ``(N, C, H, W) * (K, C/groups, R, S) -> (N, K, P, Q)``.

    All pairs are ``(height, width)``. ``channels_last`` tells the memory format of the output.
    """

    batch: int
    in_channels: int
    in_size: Pair
    out_channels: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    dtype: torch.dtype
    device: str
    channels_last: bool

    @classmethod
    def of(
        cls,
        input: Tensor,
        weight: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> ConvProblem:
        """Describe a call whose arguments were already checked by `validate`."""
        n, c, h, w = input.shape
        k, _, r, s = weight.shape
        return cls(
            n, c, (h, w), k, (r, s),
            (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]),
            groups, input.dtype, input.device.type,
            memory_format_of(input, weight) == torch.channels_last,
        )  # fmt: skip

    @functools.cached_property
    def out_size(self) -> Pair:
        """Output height and width, in pixels (the formula of ``torch.nn.Conv2d``)."""
        p, q = (
            (i + 2 * pad - d * (k - 1) - 1) // s + 1
            for i, pad, d, k, s in zip(
                self.in_size, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return p, q

    @functools.cached_property
    def convolution(self) -> Convolution:
        """Stride, padding, dilation and groups, as the operators take them."""
        return self.stride, self.padding, self.dilation, self.groups

    @functools.cached_property
    def in_width(self) -> int:
        """Input channels of one group."""
        return self.in_channels // self.groups

    @functools.cached_property
    def out_width(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.groups

    @functools.cached_property
    def input_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.in_channels, *self.in_size)

    @functools.cached_property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.out_channels, self.in_width, *self.kernel)

    @functools.cached_property
    def output_shape(self) -> tuple[int, int, int, int]:
        """As ATen has it: where the input has no channels, neither has the output."""
        return (self.batch, self.out_channels if self.in_channels else 0, *self.out_size)

    @functools.cached_property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @functools.cached_property
    def input_strides(self) -> tuple[int, int, int, int]:
        """Those of the gradient by the input."""
        return dense_strides(self.input_shape, self.memory_format)

    @functools.cached_property
    def output_strides(self) -> tuple[int, int, int, int]:
        return dense_strides(self.output_shape, self.memory_format)

    @property
    def flops(self) -> int:
        """Multiplications and additions of one direction (2 per MAC), padding counted as work."""
        macs = math.prod(self.output_shape) * self.in_width * math.prod(self.kernel)
        return 2 * macs

    def bytes_moved(self) -> int:
        """Least traffic of one direction in bytes: both operands read once, the result written."""
        shapes = (self.input_shape, self.weight_shape, self.output_shape)
        return sum(math.prod(s) for s in shapes) * self.dtype.itemsize

    def __str__(self) -> str:
        (h, w), (r, s) = self.in_size, self.kernel
        text = f"{self.batch}x{self.in_channels}x{h}x{w} -> {self.out_channels} {r}x{s}"
        text += f" g{self.groups}"
        for letter, pair, default in (
            ("s", self.stride, 1), ("p", self.padding, 0), ("d", self.dilation, 1),
        ):  # fmt: skip
            if pair != (default, default):
                text += f" {letter}{pair[0]}" + (f"x{pair[1]}" if pair[0] != pair[1] else "")
        return text


def validate(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """Raise `ProblemError` naming the argument, its value and what was expected."""
    for name, pair, least in (
        ("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1),
    ):  # fmt: skip
        if len(pair) != 2:  # a list of a schema's SymInt[2] may have any length
            raise ProblemError(f"{name}={tuple(pair)}: expected a pair of ints")
        if min(pair) < least:
            raise ProblemError(f"{name}={tuple(pair)}: expected values >= {least}")
    for name, tensor in (("input", input), ("weight", weight)):
        if tensor.dim() != 4:
            raise ProblemError(f"{name}: shape {tuple(tensor.shape)}, expected 4 dimensions")
    _validate_types(input, weight, bias)
    c, k = input.shape[1], weight.shape[0]
    if groups < 1 or c % groups or k % groups:
        raise ProblemError(
            f"groups={groups}: expected a positive divisor of the input channels ({c}) "
            f"and of the output channels ({k})"
        )
    if weight.shape[1] != c // groups or k == 0:
        raise ProblemError(
            f"weight: shape {tuple(weight.shape)}, expected (K > 0, {c // groups}, R, S) "
            f"for {c} input channels in {groups} groups"
        )
    if bias is not None and tuple(bias.shape) != (k,):
        raise ProblemError(f"bias: shape {tuple(bias.shape)}, expected ({k},)")
    for axis, name in enumerate(("height", "width")):
        size, taps = input.shape[2 + axis], weight.shape[2 + axis]
        if taps < 1:
            raise ProblemError(f"weight: kernel {name} {taps}, expected at least 1")
        if surely(size < 1) and input.shape[0] and c:
            raise ProblemError(f"input: {name} {size}, expected at least 1")
        extent, padded = dilation[axis] * (taps - 1) + 1, size + 2 * padding[axis]
        if surely(extent > padded):
            raise ProblemError(
                f"weight: dilated kernel {name} {extent}, "
                f"expected at most the padded input {name} {padded}"
            )


def _validate_types(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if input.dtype not in FLOATING:
        names = ", ".join(str(d) for d in FLOATING)
        raise ProblemError(f"input: dtype {input.dtype}, expected one of {names}")
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.layout != torch.strided:
            raise ProblemError(f"{name}: layout {tensor.layout}, expected {torch.strided}")
        if tensor.dtype != input.dtype:
            raise ProblemError(f"{name}: dtype {tensor.dtype}, expected {input.dtype} as the input")
        if tensor.device != input.device:
            raise ProblemError(f"{name}: on {tensor.device}, expected {input.device} as the input")
