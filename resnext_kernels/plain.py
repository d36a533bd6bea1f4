"""Which calls torch's dispatcher would only pass on to the implementation.

That is so where no gradient is recorded and nothing is on that changes what a call means: autocast,
tracing, a transform, a mode of any kind.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Names of this module: looking up three attributes in each call would cost as much as they do.
_is_compiling = torch.compiler.is_compiling
_function_modes = torch._C._len_torch_function_stack
_included_keys = torch._C._dispatch_tls_local_include_set
_excluded_keys = torch._C._dispatch_tls_local_exclude_set
_keys_of = torch._C._dispatch_keys
_TYPES = {Tensor, torch.nn.Parameter}
_DEVICES = ("cuda", "xpu")  # beside the CPU; others have no kernels to hurry to


def _thread_keys() -> tuple[int, int]:
    """What this thread adds to and hides from the dispatch keys of its tensors."""
    return _included_keys().raw_repr(), _excluded_keys().raw_repr()


def _plain_keys(device: str) -> tuple[set[tuple[int, int]], set[int]]:
    """The thread keys and tensor keys of plain tensors, in and out of inference mode."""
    threads, tensors = set(), set()

    def look() -> None:
        for mode in (False, True):
            with torch.inference_mode(mode):
                threads.add(_thread_keys())
                # Without elements: an allocation would break the capture of a CUDA graph.
                tensors.add(_keys_of(torch.empty(0, device=device)).raw_repr())

    # A new thread has no mode on, whatever this one is in the middle of.
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return threads, tensors


_PLAIN_THREADS, _PLAIN_TENSORS = _plain_keys("cpu")
_UNKNOWN_DEVICES = set(_DEVICES)


def is_transformed() -> bool:
    """Whether a `torch.func` transform or a forward-mode dual level is being run."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_plain_thread() -> bool:
    """Whether nothing is on in this thread that would change a call of plain tensors."""
    # A dual level has no key that would tell.
    return not (_is_compiling() or _function_modes() or forward_ad._current_level >= 0) and (
        _thread_keys() in _PLAIN_THREADS
    )


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is one with data, strides and nothing else; it may require a gradient."""
    return type(tensor) in _TYPES and (
        _keys_of(tensor).raw_repr() in _PLAIN_TENSORS or _is_of_new_device(tensor)
    )


def _is_of_new_device(tensor: Tensor) -> bool:
    """Learn the keys of a device by its first tensor, and tell whether that is a plain one."""
    device = tensor.device.type
    if device not in _UNKNOWN_DEVICES:
        return False
    _PLAIN_TENSORS.update(_plain_keys(device)[1])
    _UNKNOWN_DEVICES.discard(device)
    return is_plain(tensor)
