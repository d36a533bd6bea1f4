"""What the kernels need to know of the device that they run on."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ... import tf32

# Where nothing is known. The interpreter does one program after another: the fewer, the better.
_MULTIPROCESSORS = {"xpu": 64, "cpu": 2}


def name(tensor: Tensor) -> str:
    """The class of the device in the table of configurations, "sm_90" for an H100."""
    return _name(tensor.device.type, tensor.get_device())


@functools.cache
def _name(kind: str, index: int) -> str:
    if kind != "cuda":
        return kind
    if torch.version.hip:
        return torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def multiprocessors(tensor: Tensor) -> int:
    """Multiprocessors of the device of ``tensor``."""
    return _multiprocessors(tensor.device.type, tensor.get_device())


@functools.cache
def _multiprocessors(kind: str, index: int) -> int:
    if kind != "cuda":
        return _MULTIPROCESSORS[kind]
    return torch.cuda.get_device_properties(index).multi_processor_count


def precision(dtype: torch.dtype) -> str:
    """How products are computed: "half" (16 bits), or for float32 "tf32" or "ieee"."""
    if dtype != torch.float32:
        return "half"
    return "tf32" if tf32.allowed() else "ieee"
