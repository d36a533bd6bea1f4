"""From a problem to a launch of `conv_rows` or `conv_taps`, for fprop and dgrad alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....problem import ConvProblem, Pair
from . import device
from .cells import ConvCells, cells_of_program, conv_cells
from .configs import Config, configuration, has_configuration, table_name
from .conv_rows import conv_rows
from .conv_taps import conv_taps
from .launch import Launch
from .schedule import Schedule
from .tensors import image_strides, need_64_bits

_MOST_TAPS = 9  # whose weights fit the registers
_MOST_SUMS = 4
# Pixels and warps of a program with the one cell that there is. They are too few for Blackwell's
# own instructions, for which Triton up to 3.8 miscompiles products that are added up one after the
# other (triton-lang/triton#10821).
_LONELY = (32, 2)
_START = 3  # what a program does before its march, in rows of it


@dataclass(frozen=True)
class Operands:
    """A convolution from ``src`` to ``dst``, or where ``transposed`` its transpose."""

    src: Tensor
    weight: Tensor
    residual: Tensor | None
    dst: Tensor
    transposed: bool


def conv_launch(
    problem: ConvProblem, schedule: Schedule, operands: Operands, relu: bool, precision: str
) -> Launch:
    """The launch that computes ``operands.dst``."""
    src_width, dst_width = problem.in_width, problem.out_width
    if operands.transposed:
        src_width, dst_width = dst_width, src_width
    cells = conv_cells(problem.groups, src_width, dst_width, precision)
    arguments = _common(problem, operands, cells, (src_width, dst_width))
    arguments |= {"RELU": relu, "PRECISION": "tf32" if precision == "tf32" else "ieee"}
    name = table_name(operands.src, operands.dst, operands.residual)
    marches = (
        math.prod(problem.kernel) <= _MOST_TAPS
        and src_width * cells.merged <= cells.depth
        and schedule.ring + schedule.phases <= _MOST_SUMS
        and has_configuration(name, schedule.case, precision, cells.side)
    )
    case = schedule.case if marches else "general"
    config = configuration(name, case, precision, cells.side, problem.batch)
    build = _rows_launch if marches else _taps_launch
    return build(problem, schedule, operands, cells, config, arguments)


def _common(
    problem: ConvProblem, operands: Operands, cells: ConvCells, widths: Pair
) -> dict[str, Any]:
    """The arguments that both kernels share."""
    src, weight, dst = operands.src, operands.weight, operands.dst
    stride_k, stride_c, stride_r, stride_s = weight.stride()
    in_group, out_group = stride_c, stride_k
    if operands.transposed:
        in_group, out_group = out_group, in_group
    return {
        "batch": problem.batch,
        "src_h": src.shape[2], "src_w": src.shape[3], "dst_h": dst.shape[2], "dst_w": dst.shape[3],
        "src_channels": src.shape[1], "dst_channels": dst.shape[1],
        **image_strides("src", src), **image_strides("dst", dst),
        **image_strides("res", operands.residual),
        "weight_g": problem.out_width * stride_k, "weight_k": in_group, "weight_c": out_group,
        "weight_r": stride_r, "weight_s": stride_s,
        "TAPS_R": problem.kernel[0], "TAPS_S": problem.kernel[1],
        "SRC_WIDTH": widths[0], "DST_WIDTH": widths[1],
        "MERGED": cells.merged, "PARTS": cells.parts,
        "DEPTH": cells.depth, "BREADTH": cells.breadth,
        "WIDE": need_64_bits(problem, src, dst, operands.residual),
    }  # fmt: skip


def _rows_launch(
    problem: ConvProblem,
    schedule: Schedule,
    operands: Operands,
    cells: ConvCells,
    config: Config,
    arguments: dict[str, Any],
) -> Launch:
    per_program = cells_of_program(config.cells, cells.count)
    pixels, warps = config.pixels, config.warps
    if per_program == 1 < config.cells and pixels > _LONELY[0]:
        pixels, warps = _LONELY
    rows, columns = schedule.size
    cell_blocks = -(-cells.count // per_program)
    column_blocks = -(-problem.batch * columns // pixels)
    slots = device.multiprocessors(operands.src) * config.resident
    strip = strip_of_rows(rows, schedule.ring, cell_blocks * column_blocks, slots)
    arguments |= {
        "rows": rows, "columns": columns, "strip": strip,
        "cell_blocks": cell_blocks, "column_blocks": column_blocks,
        "LOADS": schedule.records, "RECORD": schedule.record,
        "RING": schedule.ring, "PHASES": schedule.phases,
        "SRC_STEP_H": schedule.src_step[0], "SRC_STEP_W": schedule.src_step[1],
        "DST_STEP_H": schedule.dst_step[0], "DST_STEP_W": schedule.dst_step[1],
        "CELLS": per_program, "PIXELS": pixels,
        "WHOLE": cell_blocks * per_program == cells.count and cells.whole,
    }  # fmt: skip
    grid = cell_blocks * column_blocks * -(-rows // strip)
    warps = per_program if per_program > 1 else warps
    return Launch(conv_rows, grid, arguments, warps, config.stages)


def strip_of_rows(rows: int, early: int, programs: int, slots: int) -> int:
    """How many of ``rows`` one program marches over, for the least time.

    ``programs`` run for each strip, ``slots`` at a time. A program takes its strip, ``early`` rows
    before it, and a start; the time is that of a program times the rounds in which all get a slot.
    """

    def time(strip: int) -> int:
        rounds = -(-programs * -(-rows // strip) // slots)
        return rounds * (strip + early + _START)

    return min(range(rows, 0, -1), key=time)


def _taps_launch(
    problem: ConvProblem,
    schedule: Schedule,
    operands: Operands,
    cells: ConvCells,
    config: Config,
    arguments: dict[str, Any],
) -> Launch:
    per_program = cells_of_program(config.cells, cells.count)
    (stride_h, stride_w), (dilation_h, dilation_w) = problem.stride, problem.dilation
    phases, (rows, columns), (period_h, period_w) = 1, problem.out_size, (1, 1)
    if operands.transposed:
        phases = stride_h * stride_w
        period_h = stride_h // math.gcd(stride_h, dilation_h)
        period_w = stride_w // math.gcd(stride_w, dilation_w)
        rows = -(-problem.in_size[0] // stride_h)
        columns = -(-problem.in_size[1] // stride_w)
    cell_blocks = -(-cells.count // per_program)
    pixel_blocks = -(-problem.batch * rows * columns // config.pixels)
    arguments |= {
        "rows": rows, "columns": columns,
        "cell_blocks": cell_blocks, "pixel_blocks": pixel_blocks,
        "TRANSPOSED": operands.transposed, "STRIDE_H": stride_h, "STRIDE_W": stride_w,
        "PADDING_H": problem.padding[0], "PADDING_W": problem.padding[1],
        "DILATION_H": dilation_h, "DILATION_W": dilation_w,
        "PERIOD_H": period_h, "PERIOD_W": period_w,
        "CELLS": per_program, "PIXELS": config.pixels,
    }  # fmt: skip
    grid = cell_blocks * pixel_blocks * phases
    warps = per_program if per_program > 1 else config.warps
    return Launch(conv_taps, grid, arguments, warps, config.stages)
