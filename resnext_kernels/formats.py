"""Memory formats, and the strides they stand for where a size of 1 leaves a choice."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def format_of(tensor: Tensor) -> torch.memory_format:
    """The one that torch gives to what it computes from ``tensor`` alone."""
    return torch._prims_common.suggest_memory_format(tensor)


def in_format(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """``tensor`` with the strides of the fake kernel, even where a size of 1 leaves a choice."""
    strides = dense_strides(tensor.shape, memory_format)
    if tensor.stride() == strides:
        return tensor
    dense = tensor.contiguous(memory_format=memory_format)
    # Not as_strided: autograd knows its result for a view, and refuses a ReLU in place on it.
    return dense.new_empty(0).set_(
        dense.untyped_storage(), dense.storage_offset(), dense.shape, strides
    )


@functools.lru_cache(maxsize=4096)
def dense_strides(
    shape: tuple[int, ...], memory_format: torch.memory_format
) -> tuple[int, int, int, int]:
    """Those that `torch.empty` gives to four dimensions."""
    _, c, h, w = (max(size, 1) for size in shape)
    if memory_format == torch.channels_last:
        return (h * w * c, 1, w * c, c)
    return (c * h * w, h * w, w, 1)
