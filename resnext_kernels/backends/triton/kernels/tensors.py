"""What kernels are given for tensors: their strides, conversions of layout, sizes of offsets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ....problem import ConvProblem

# Contiguous images of up to so many bytes are read and written in place, by single elements: they
# lie in the caches, and a conversion would cost a launch of its own. Larger ones are converted.
IN_PLACE = 1 << 20
_INT32 = 2**31
_WIDE_GROUP = 32  # channels


def readable(images: Tensor) -> Tensor:
    """``images`` as a kernel reads them: channels side by side, or small and of any strides."""
    small = images.numel() * images.element_size() <= IN_PLACE
    if small or images.stride(1) == 1 or images.shape[1] == 1:
        return images
    return images.contiguous(memory_format=torch.channels_last)


def writable(shape: tuple[int, ...], like: Tensor, memory_format: torch.memory_format) -> Tensor:
    """A new tensor for a kernel to write: in ``memory_format`` where small, else channels_last."""
    if math.prod(shape) * like.element_size() > IN_PLACE:
        memory_format = torch.channels_last
    return empty(shape, like, memory_format)


def empty(shape: tuple[int, ...], like: Tensor, memory_format: torch.memory_format) -> Tensor:
    """A new tensor in ``memory_format``, of the dtype of ``like`` and where that is."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def filters(weight: Tensor) -> Tensor:
    """``weight`` as a kernel reads it; wide groups with the channels of a tap side by side."""
    if weight.shape[1] < _WIDE_GROUP or weight.stride(1) == 1:
        return weight
    return weight.contiguous(memory_format=torch.channels_last)


def need_64_bits(problem: ConvProblem, *tensors: Tensor | None) -> bool:
    """Whether an offset into any of the images is 2**31 elements or more.

    Of an element, or of a position up to a kernel beyond the image: some start there, and step back
    into it.
    """
    reaches = (
        padding + dilation * (taps - 1) + stride
        for padding, dilation, taps, stride in zip(
            problem.padding, problem.dilation, problem.kernel, problem.stride, strict=True
        )
    )
    beyond = (0, 0, *reaches)
    return any(
        sum(
            (size - 1 + reach) * stride
            for size, reach, stride in zip(t.shape, beyond, t.stride(), strict=True)
        )
        >= _INT32
        for t in tensors
        if t is not None
    )


def image_strides(prefix: str, tensor: Tensor | None) -> dict[str, int]:
    """The arguments ``prefix_n, _c, _y, _x`` of a kernel; any values where there is no tensor."""
    strides: Sequence[int] = (0, 0, 0, 0) if tensor is None else tensor.stride()
    return {f"{prefix}_{axis}": stride for axis, stride in zip("ncyx", strides, strict=True)}
