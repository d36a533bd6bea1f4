"""Launching a kernel again and again with little time on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton.runtime import driver

from ....kept import Kept
from .. import INTERPRETED

_VECTOR = 16
# Triton makes a binary ready at its first launch, unprotected from another thread's.
_FIRST_LAUNCH = threading.Lock()


class Launch:
    """One kernel with its grid and all arguments but the tensors.

    Triton looks at every argument of every call to find the right binary. Here only the tensors
    can differ between calls, and of them only whether they are aligned to a vector: the binary is
    kept for each combination, and launched at once.
    """

    def __init__(
        self, kernel: Any, grid: int, arguments: dict[str, Any], warps: int, stages: int
    ) -> None:
        """``arguments`` are all but the leading tensors of ``kernel``, by name."""
        self.kernel = kernel
        self.grid = (grid, 1, 1)
        names = kernel.arg_names[len(kernel.arg_names) - len(arguments) :]
        self.arguments = tuple(arguments[name] for name in names)
        # Fused multiply-adds are asked for by name: their default differs between versions.
        self.options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
        if not (INTERPRETED or torch.xpu.is_available()):
            # With TRITON_DEBUG an overflow ends the process. Offsets that are masked overflow:
            # those of columns behind the last image.
            self.options["sanitize_overflow"] = False
        self._runners: dict[tuple[bool, ...], Callable[..., None]] = {}

    def __call__(self, *tensors: Tensor | None) -> None:
        """Launch on the current stream of the current device."""
        aligned = tuple([t is None or t.data_ptr() % _VECTOR == 0 for t in tensors])
        runner = self._runners.get(aligned)
        if runner is not None:
            runner(*tensors, *self.arguments)
            return
        with _FIRST_LAUNCH:
            binary = self.kernel[self.grid](*tensors, *self.arguments, **self.options)
        if binary is not None:  # the interpreter has none
            self._runners[aligned] = binary[self.grid]


class Plans:
    """Plans of a direction, each made at the first call of its kind and kept for the next."""

    def __init__(self, make: Callable[..., Callable[..., None]]) -> None:
        """``make(*facts, *tensors)`` returns a plan, a function of the tensors."""
        self._make = make
        self._plans: Kept[Callable[..., None]] = Kept()

    def run(self, facts: tuple[Any, ...], *tensors: Tensor | None) -> None:
        """Run the plan for ``facts`` and the strides of ``tensors`` on the device of the first.

        ``facts`` hold the problem, hence the tensors' shapes and dtypes.
        """
        device = tensors[0].get_device()  # type: ignore[union-attr]
        if device >= 0 and device != driver.active.get_current_device():
            with torch.accelerator.device_index(device):
                return self._run(device, facts, tensors)
        return self._run(device, facts, tensors)

    def _run(self, device: int, facts: tuple[Any, ...], tensors: tuple[Tensor | None, ...]) -> None:
        key = (device, facts, *[None if t is None else t.stride() for t in tensors])
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans.keep(key, self._make(*facts, *tensors))
        plan(*tensors)
