"""The FLOP formulas of the operators, for `torch.utils.flop_counter`."""

from __future__ import annotations

import importlib.abc
import importlib.util
import math
import sys

import torch

_COUNTER = "torch.utils.flop_counter"


def register() -> None:
    """Register the formulas, or where torch's counter is not imported yet, once that happens.

    The counter imports Triton, which would double the time that importing this package takes.
    """
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _WhenImported())


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds nothing itself, but registers the formulas behind the import of the counter."""

    def find_spec(self, name, path=None, target=None):
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)  # for whoever only asks where the counter is
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module) -> None:
            sys.meta_path.remove(self)
            execute(module)
            _register(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _register(counter) -> None:
    operators = torch.ops.resnext_kernels
    for operator, formula in (
        (operators.grouped_conv2d, _forward),
        (operators.grouped_conv2d_fused, _forward),
        (operators.grouped_conv2d_backward, _backward),
    ):
        counter.register_flop_formula(operator)(formula)


def _flops(output_shape, weight_shape) -> int:
    """2 FLOPs a MAC, as torch counts ``aten.convolution``."""
    n, _, p, q = output_shape
    return 2 * n * p * q * math.prod(weight_shape)


def _forward(input_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return _flops(out_shape, weight_shape)


def _backward(
    grad_output_shape, input_shape, weight_shape, stride, padding, dilation, groups, output_mask,
    *args, out_shape=None, **kwargs,
) -> int:  # fmt: skip
    """One forward's FLOPs for each of the two gradients that is wanted."""
    return _flops(grad_output_shape, weight_shape) * sum(output_mask[:2])
