"""Memory formats, and the strides they stand for where a size of 1 leaves a choice."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def format_of(tensor: Tensor) -> torch.memory_format:
    """The one that torch gives to what it computes from ``tensor`` alone."""
    return torch._prims_common.suggest_memory_format(tensor)


def in_format(
    result: Tensor, memory_format: torch.memory_format, strides: tuple[int, int, int, int]
) -> Tensor:
    """``result`` with the strides of the fake kernel, even where a size of 1 leaves a choice.

    Those are ``strides``, the `dense_strides` of its shape in ``memory_format``. Nobody else holds
    ``result`` yet: its own strides may be changed in place. A view would not do, for autograd
    refuses a ReLU in place on what it knows for one.
    """
    if result.stride() == strides:
        return result
    return result.contiguous(memory_format=memory_format).as_strided_(result.shape, strides)


def unambiguous(operand: Tensor, memory_format: torch.memory_format) -> Tensor:
    """``operand`` with the strides of some memory format where a size of 1 allows others too.

    Whichever those are, `Tensor.is_contiguous` says yes of the format; and convolutions of torch
    2.13 then take the strides at their word, for where a group or an image begins.
    """
    if 1 not in operand.shape or operand.stride() in _strides_of_formats(operand.shape):
        return operand
    dense = operand.contiguous(memory_format=memory_format)
    return dense.as_strided(dense.shape, dense_strides(dense.shape, memory_format))


@functools.lru_cache(maxsize=4096)
def _strides_of_formats(shape: tuple[int, ...]) -> tuple[tuple[int, int, int, int], ...]:
    formats = torch.channels_last, torch.contiguous_format
    return tuple(dense_strides(shape, format) for format in formats)


@functools.lru_cache(maxsize=4096)
def dense_strides(
    shape: tuple[int, ...], memory_format: torch.memory_format
) -> tuple[int, int, int, int]:
    """Those that `torch.empty` gives to four dimensions."""
    _, c, h, w = (max(size, 1) for size in shape)
    if memory_format == torch.channels_last:
        return (h * w * c, 1, w * c, c)
    return (c * h * w, h * w, w, 1)
