"""What speaks against a problem, whatever kernels are to serve it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..library import Library
from ..problem import ConvProblem


def of_operands(
    problem: ConvProblem, library: Library, devices: Sequence[str], dtypes: Sequence[torch.dtype]
) -> Iterator[str]:
    """A library that is not there, a device or dtype that is not served, no image at all."""
    if not library.loaded:
        yield library.message
    if problem.device not in devices:
        yield f"device {problem.device}, serves {', '.join(devices)}"
    if problem.dtype not in dtypes:
        yield f"dtype {problem.dtype}, serves {', '.join(map(str, dtypes))}"
    if 0 in problem.input_shape:
        yield f"empty input {problem.input_shape}"


def of_steps(problem: ConvProblem, most: int) -> Iterator[str]:
    """A stride, padding or dilation above ``most``."""
    for name in ("stride", "padding", "dilation"):
        if max(getattr(problem, name)) > most:
            yield f"{name} {getattr(problem, name)}, serves up to {most}"
