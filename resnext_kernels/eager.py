"""The short way of a plain eager inference call, round torch's dispatcher.

An operator written in Python costs tens of microseconds on its way through the dispatcher, as much
as a small layer takes. Where the dispatcher would do nothing but call the implementation (no
gradient, autocast, tracing, transform or mode of any kind), `direct` calls the backend at once, by
a plan kept from the first call of the same shape.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import dispatch
from .ops import checked_problem, in_format
from .problem import ConvProblem, normalise

Plan = tuple[ConvProblem, Callable[..., Tensor]]
_PLANS: dict[Any, Plan] = {}
_MOST_PLANS = 4096


def _thread_keys() -> tuple[int, int]:
    """What this thread adds to and hides from the dispatch keys of its tensors."""
    return (
        torch._C._dispatch_tls_local_include_set().raw_repr(),
        torch._C._dispatch_tls_local_exclude_set().raw_repr(),
    )


def _plain_keys() -> tuple[set[tuple[int, int]], set[int]]:
    """The thread keys and tensor keys of plain CPU tensors, in and out of inference mode."""
    threads, tensors = set(), set()

    def look() -> None:
        for mode in (False, True):
            with torch.inference_mode(mode):
                threads.add(_thread_keys())
                tensors.add(torch._C._dispatch_keys(torch.empty(1, device="cpu")).raw_repr())

    # A new thread has no mode on, whatever this one is in the middle of.
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return threads, tensors


_PLAIN_THREADS, _PLAIN_TENSORS = _plain_keys()


def _is_plain(*tensors: Tensor) -> bool:
    """Whether the dispatcher would only pass these tensors on to the implementation."""
    if torch.compiler.is_compiling() or torch._C._len_torch_function_stack():
        return False
    if forward_ad._current_level >= 0:  # a dual tensor has no key that would tell
        return False
    grad = torch.is_grad_enabled()
    for tensor in tensors:
        if type(tensor) not in (Tensor, torch.nn.Parameter) or (grad and tensor.requires_grad):
            return False
        if torch._C._dispatch_keys(tensor).raw_repr() not in _PLAIN_TENSORS:
            return False
    return _thread_keys() in _PLAIN_THREADS


def _are_literal(*values: Any) -> bool:
    """Whether each is an int, or a tuple or list of them: what the text in a key tells whole."""
    return all(
        type(value) is int or (type(value) in (tuple, list) and all(type(v) is int for v in value))
        for value in values
    )


def direct(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    backend: str,
) -> Tensor | None:
    """The result of a plain call (arguments as `grouped_conv2d`), None where it is not plain."""
    if not (_is_plain(input, weight) if bias is None else _is_plain(input, weight, bias)):
        return None
    key = (
        input.shape, input.stride(), input.dtype, weight.shape, weight.stride(), weight.dtype,
        None if bias is None else (bias.shape, bias.dtype),
        f"{stride!r} {padding!r} {dilation!r} {groups!r} {backend!r}",  # 1.0, True, "1" are not 1
    )  # fmt: skip
    plan = _PLANS.get(key)
    if plan is None:
        unusual = input.dim() != 4 or not input.is_floating_point() or input.numel() == 0
        if unusual or not _are_literal(stride, padding, dilation, groups):
            return None
        _, conv = normalise(input, weight, stride, padding, dilation, groups)
        problem = checked_problem(input, weight, bias, *conv)
        dispatch.check_backend_name(backend)
        plan = problem, dispatch.choose(problem, "fprop", backend).fprop
        if len(_PLANS) >= _MOST_PLANS:
            _PLANS.clear()
        _PLANS[key] = plan
    problem, fprop = plan
    return in_format(fprop(problem, input, weight, bias, None, False), problem.memory_format)
