"""Tensors that end (or begin) at a page no one may touch: an access out of bounds is a fault."""

from __future__ import annotations

import ctypes
import itertools
import mmap
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import resnext_kernels.backends.cpu as cpu
from resnext_kernels.problem import ConvProblem

_PAGE = mmap.PAGESIZE
_PROT_NONE = 0
_LIBC = ctypes.CDLL(None, use_errno=True)
_KEEP: list[mmap.mmap] = []


def guarded(values: Tensor, at_end: bool) -> Tensor:
    """A copy of dense ``values`` (its strides kept) beside a guard page, at its end or start."""
    size = values.numel() * values.element_size()
    pages = -(-size // _PAGE) + 2
    memory = mmap.mmap(-1, pages * _PAGE)
    _KEEP.append(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (address, address + (pages - 1) * _PAGE):
        if _LIBC.mprotect(ctypes.c_void_p(guard), _PAGE, _PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect failed")
    start = (pages - 1) * _PAGE - size if at_end else _PAGE
    flat = torch.frombuffer(memory, dtype=values.dtype, count=values.numel(), offset=start)
    copy = flat.as_strided(values.shape, values.stride())
    return copy.copy_(values)


def _guarding(operator: Callable[..., None], place: int, at_end: bool) -> Callable[..., None]:
    """``operator`` with what it writes, its argument number ``place``, beside a guard page."""

    def call(*arguments: Any) -> None:
        out = arguments[place]
        copy = guarded(out, at_end)
        operator(*arguments[:place], copy, *arguments[place + 1 :])
        out.copy_(copy)

    return call


def run_guarded(seed: int) -> None:
    """Run all three directions of some awkward problems between guard pages; print "unharmed"."""
    torch.manual_seed(seed)
    problems = (
        # batch, groups, in width, out width, kernel, stride, padding, image
        (2, 5, 4, 4, 3, 1, 1, (5, 17)),
        (1, 3, 8, 8, 3, 2, 1, (7, 9)),
        (1, 7, 1, 1, 3, 1, 1, (6, 5)),
        (1, 2, 16, 16, 3, 1, 1, (7, 7)),
        (1, 4, 8, 8, 3, 1, 1, (6, 9)),
        (2, 2, 24, 40, 3, 1, 1, (5, 8)),
        (1, 4, 8, 8, 3, 2, 1, (12, 17)),
        (2, 2, 24, 40, 3, 2, 1, (13, 16)),
        (1, 3, 5, 3, 5, 1, 2, (6, 6)),
        (1, 2, 32, 32, 1, 1, 0, (3, 3)),
        (1, 9, 2, 2, 3, 1, 0, (4, 19)),
        (1, 1, 17, 33, 3, 3, 1, (8, 8)),
        (1, 3, 5, 4, 1, 1, 0, (5, 6)),
        (1, 2, 17, 33, 1, 2, 0, (4, 5)),
    )
    formats = torch.channels_last, torch.contiguous_format
    operators = cpu._OPERATORS
    for case, dtype, at_end in itertools.product(problems, cpu.DTYPES, (True, False)):
        batch, groups, c, k, taps, stride, pad, size = case
        cpu._OPERATORS = SimpleNamespace(
            fprop=_guarding(operators.fprop, 4, at_end),
            dgrad=_guarding(operators.dgrad, 2, at_end),
            wgrad=_guarding(operators.wgrad, 2, at_end),
        )
        for images, filters in itertools.product(formats, formats):
            input = torch.randn(batch, groups * c, *size, dtype=dtype)
            input = guarded(input.contiguous(memory_format=images), at_end)
            weight = torch.randn(groups * k, c, taps, taps, dtype=dtype)
            weight = guarded(weight.contiguous(memory_format=filters), at_end)
            bias = guarded(torch.randn(groups * k, dtype=dtype), at_end)
            conv = (stride, stride), (pad, pad), (1, 1), groups
            problem = ConvProblem.of(input, weight, *conv)
            out = cpu.fprop(problem, input, weight, bias, None, True)
            cpu.fprop(problem, input, weight, bias, out, True)
            cpu.dgrad(problem, out, weight)
            cpu.wgrad(problem, out, input, filters)
    print("unharmed")
