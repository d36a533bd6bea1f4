"""JAX as a peer of the layers: grouped convolution compiled by XLA for the CPU."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..problem import ConvProblem, Direction

if TYPE_CHECKING:
    from .implementations import Operands

_TO_NHWC, _FROM_NHWC = (0, 2, 3, 1), (0, 3, 1, 2)
_TO_HWIO = (2, 3, 1, 0)


def reasons_against(problem: ConvProblem, direction: Direction) -> list[str]:
    """Why a call cannot be measured with JAX; empty where it can."""
    reasons = []
    if importlib.util.find_spec("jax") is None:
        reasons.append("not installed: pip install 'resnext-kernels[peers]'")
    if problem.device != "cpu":
        reasons.append("measured on the CPU alone: its GPU streams are not torch's")
    if direction == "wgrad":
        reasons.append("wgrad: XLA takes seconds a call on a CPU where torch takes milliseconds")
    return reasons


def bind(problem: ConvProblem, direction: Direction, x: Operands) -> Callable[[], Any]:
    """The call, which waits for its result, on operands that are converted here.

    XLA uses as many threads as torch, unless JAX was used before in this process or the environment
    variable NPROC gives their number.
    """
    os.environ.setdefault("NPROC", str(torch.get_num_threads()))  # read when XLA starts
    function = _function(problem, direction)
    images = x.input if direction == "fprop" else x.grad_output
    operands = _array(images, _TO_NHWC), _array(x.weight, _TO_HWIO)
    return lambda: function(*operands).block_until_ready()


def as_tensor(array: Any) -> Tensor:
    """What a call returned, ``(N, H, W, C)``, as torch has it: ``(N, C, H, W)``."""
    return torch.from_dlpack(array).permute(_FROM_NHWC)


def _array(tensor: Tensor, order: tuple[int, ...]) -> Any:
    import jax

    return jax.dlpack.from_dlpack(tensor.permute(order).contiguous())


@functools.lru_cache(maxsize=1)
def _function(problem: ConvProblem, direction: Direction) -> Callable[..., Any]:
    """fprop of images and weight, or dgrad of the output's gradient and weight."""
    import jax

    def convolution(images: Any, weight: Any) -> Any:
        return jax.lax.conv_general_dilated(
            images, weight, problem.stride, [(p, p) for p in problem.padding],
            rhs_dilation=problem.dilation, dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=problem.groups,
        )  # fmt: skip

    def gradient(grad_output: Any, weight: Any) -> Any:
        shape = [problem.input_shape[axis] for axis in _TO_NHWC]
        images = jax.ShapeDtypeStruct(shape, grad_output.dtype)
        transposed = jax.linear_transpose(lambda x: convolution(x, weight), images)
        return transposed(grad_output)[0]

    return jax.jit(convolution if direction == "fprop" else gradient)
