"""wgrad: the gradient by the weight, from a problem to its two launches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ....problem import ConvProblem
from . import device
from .cells import WgradCells, cells_of_program, power_of_two, wgrad_cells
from .configs import Config, configuration, table_name
from .launch import Launch, Plans
from .tensors import empty, image_strides, need_64_bits, readable
from .wgrad_rows import add_splits, wgrad_rows

_LEAST_STEPS = 8  # of a split, to be worth its start and its partial sums
_MOST_SPLITS, _TILE = 32, 2048  # splits, and elements of them, that a step of `add_splits` adds


def wgrad(
    problem: ConvProblem, grad_output: Tensor, input: Tensor, memory_format: torch.memory_format
) -> Tensor:
    """Return the gradient by the weight, shape ``problem.weight_shape``, in ``memory_format``.

    Partial sums are added in a fixed order: equal operands give equal bits.
    """
    out = empty(problem.weight_shape, input, memory_format)
    facts = (problem, device.precision(problem.dtype))
    _PLANS.run(facts, readable(grad_output), readable(input), out)
    return out


class Plan:
    """Sums in splits, then the sum over the splits; where there is one split, only the first."""

    def __init__(
        self, problem: ConvProblem, precision: str, grad_output: Tensor, input: Tensor, out: Tensor
    ) -> None:
        cells = wgrad_cells(problem.groups, problem.in_width, problem.out_width, precision)
        shared = problem.stride[0] == 1
        config = configuration(
            table_name(grad_output, input), "wgrad shared" if shared else "wgrad direct", precision,
            cells.side, problem.batch,
        )  # fmt: skip
        arguments = _arguments(problem, grad_output, input, out, cells, config)
        arguments |= {"SHARED": shared, "PRECISION": "tf32" if precision == "tf32" else "ieee"}
        others = arguments["cell_blocks"] * math.prod(
            -(-arguments[f"TAPS_{axis}"] // arguments[f"BLOCK_{axis}"]) for axis in "RS"
        )
        slots = device.multiprocessors(input) * config.resident
        steps = arguments["steps"]
        split_steps = max(-(-steps // max(slots // others, 1)), min(_LEAST_STEPS, steps))
        self.splits = -(-steps // split_steps)
        arguments |= {"split_steps": split_steps, "split_size": out.numel()}
        warps = arguments["CELLS"] if arguments["CELLS"] > 1 else config.warps
        self.sum = Launch(wgrad_rows, others * self.splits, arguments, warps, config.stages)
        self.shape = (self.splits, out.numel())
        rows = min(_MOST_SPLITS, power_of_two(self.splits))
        sizes = {"splits": self.splits, "size": out.numel(), "SPLITS": rows, "SIZE": _TILE // rows}
        self.add = Launch(add_splits, -(-out.numel() // sizes["SIZE"]), sizes, warps=4, stages=2)

    def __call__(self, grad_output: Tensor, input: Tensor, out: Tensor) -> None:
        if self.splits == 1:
            self.sum(grad_output, input, out)
            return
        partial = out.new_empty(self.shape, dtype=torch.float32)
        self.sum(grad_output, input, partial)
        self.add(partial, out)


_PLANS = Plans(Plan)


def _arguments(
    problem: ConvProblem,
    grad: Tensor,
    input: Tensor,
    out: Tensor,
    cells: WgradCells,
    config: Config,
) -> dict[str, Any]:
    """All arguments of `wgrad_rows` but those about splits and the kind of products."""
    per_program = cells_of_program(config.cells, cells.count)
    cell_blocks = -(-cells.count // per_program)
    taps_r, taps_s = problem.kernel
    block_s = min(taps_s, cells.sums)
    rows = problem.in_size[0] if problem.stride[0] == 1 else problem.out_size[0]
    columns = problem.out_size[1]
    stride_k, stride_c, stride_r, stride_s = out.stride()
    return {
        "batch": problem.batch, "in_h": problem.in_size[0], "in_w": problem.in_size[1],
        "out_h": problem.out_size[0], "rows": rows, "columns": columns,
        "cell_blocks": cell_blocks, "steps": rows * -(-problem.batch * columns // config.pixels),
        "in_channels": problem.in_channels, "out_channels": problem.out_channels,
        **image_strides("grad", grad), **image_strides("in", input),
        "weight_k": stride_k, "weight_c": stride_c, "weight_r": stride_r, "weight_s": stride_s,
        "TAPS_R": taps_r, "TAPS_S": taps_s,
        "BLOCK_R": min(taps_r, max(cells.sums // block_s, 1)), "BLOCK_S": block_s,
        "STRIDE_H": problem.stride[0], "STRIDE_W": problem.stride[1],
        "PADDING_H": problem.padding[0], "PADDING_W": problem.padding[1],
        "DILATION_H": problem.dilation[0], "DILATION_W": problem.dilation[1],
        "IN_WIDTH": problem.in_width, "OUT_WIDTH": problem.out_width, "MERGED": cells.merged,
        "IN_PARTS": cells.in_parts, "OUT_PARTS": cells.out_parts,
        "CELLS": per_program, "PIXELS": config.pixels,
        "HEIGHT": cells.height, "BREADTH": cells.breadth,
        "WHOLE": cell_blocks * per_program == cells.count and cells.whole,
        "WIDE": need_64_bits(problem, grad, input),
    }  # fmt: skip
