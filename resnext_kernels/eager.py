"""The short way of a plain eager inference call, round torch's dispatcher.

An operator written in Python costs tens of microseconds on its way through the dispatcher, as much
as a small layer takes. Where the dispatcher would do nothing but call the implementation (no
gradient, autocast, tracing, transform or mode of any kind), `direct` calls the backend at once, by
a plan kept from the first call of the same shape.
"""

from __future__ import annotations

import marshal
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
_NO_REFERENCES = 2  # a version of the format in which equal values have equal text


# Names of this module: looking up three attributes in each call would cost as much as they do.
_is_compiling = torch.compiler.is_compiling
_function_modes = torch._C._len_torch_function_stack
_included_keys = torch._C._dispatch_tls_local_include_set
_excluded_keys = torch._C._dispatch_tls_local_exclude_set
_keys_of = torch._C._dispatch_keys
_is_grad_enabled = torch.is_grad_enabled
_TYPES = {Tensor, torch.nn.Parameter}


def _thread_keys() -> tuple[int, int]:
    """What this thread adds to and hides from the dispatch keys of its tensors."""
    return _included_keys().raw_repr(), _excluded_keys().raw_repr()


def _plain_keys() -> tuple[set[tuple[int, int]], set[int]]:
    """The thread keys and tensor keys of plain CPU tensors, in and out of inference mode."""
    threads, tensors = set(), set()

    def look() -> None:
        for mode in (False, True):
            with torch.inference_mode(mode):
                threads.add(_thread_keys())
                tensors.add(_keys_of(torch.empty(1, device="cpu")).raw_repr())

    # A new thread has no mode on, whatever this one is in the middle of.
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return threads, tensors


_PLAIN_THREADS, _PLAIN_TENSORS = _plain_keys()


def _is_plain(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the dispatcher would only pass these tensors on to the implementation."""
    if _is_compiling() or _function_modes():
        return False
    # A dual tensor has no key that would tell.
    if forward_ad._current_level >= 0 or _thread_keys() not in _PLAIN_THREADS:
        return False
    grad = _is_grad_enabled()
    return (
        _is_plain_tensor(input, grad)
        and _is_plain_tensor(weight, grad)
        and (bias is None or _is_plain_tensor(bias, grad))
    )


def _is_plain_tensor(tensor: Tensor, grad: bool) -> bool:
    return (
        type(tensor) in _TYPES
        and not (grad and tensor.requires_grad)
        and _keys_of(tensor).raw_repr() in _PLAIN_TENSORS
    )


def _are_literal(*values: Any) -> bool:
    """Whether each is an int, or a tuple or list of them: what a key tells whole."""
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
    if not _is_plain(input, weight, bias):
        return None
    try:
        # Unlike the values themselves, their text tells 1 from True and 1.0.
        arguments = marshal.dumps((stride, padding, dilation, groups, backend), _NO_REFERENCES)
    except ValueError:
        return None
    key = (
        input.shape, input.stride(), input.dtype, weight.shape, weight.stride(), weight.dtype,
        None if bias is None else (bias.shape, bias.dtype), arguments,
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
