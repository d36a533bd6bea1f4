"""Pieces that the kernels share: tile axes, the block diagonal of the weights, the epilogue.

A tile has the axes (cell, pixel, channel). A cell is one block of a block-diagonal matrix: as many
whole groups as fit a matrix instruction, or a part of one wide group. Where a program has one cell,
tiles are plain matrices without the first axis.
"""

import triton
import triton.language as tl


@triton.jit
def along(values, AXIS: tl.constexpr, CELLS: tl.constexpr):
    """``values``, one for each cell (0), row (1) or column (2) of a tile, ready to broadcast."""
    if CELLS == 1:
        if AXIS == 0:
            lifted = values
        elif AXIS == 1:
            lifted = values[:, None]
        else:
            lifted = values[None, :]
    else:
        if AXIS == 0:
            lifted = values[:, None, None]
        elif AXIS == 1:
            lifted = values[None, :, None]
        else:
            lifted = values[None, None, :]
    return lifted


@triton.jit
def cell_ids(first, CELLS: tl.constexpr):
    """The cells of a program, along axis 0; a scalar where there is one."""
    return first if CELLS == 1 else along(first + tl.arange(0, CELLS), 0, CELLS)


@triton.jit
def zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr, CELLS: tl.constexpr):
    """A float32 tile of zeros."""
    if CELLS == 1:
        tile = tl.zeros((ROWS, COLUMNS), tl.float32)
    else:
        tile = tl.zeros((CELLS, ROWS, COLUMNS), tl.float32)
    return tile


@triton.jit
def offset(value, WIDE: tl.constexpr):
    """``value`` in the integers that offsets are computed in: 64 bits only where ``WIDE``."""
    return tl.cast(value, tl.int64 if WIDE else tl.int32)


@triton.jit
def split_pixels(
    first, columns, batch, STEP: tl.constexpr, COUNT: tl.constexpr, WIDE: tl.constexpr
):
    """(image, column) of ``COUNT`` entries of the list of all columns of all images.

    Behind the last image columns lie far outside, also when multiplied by ``STEP``, so that one
    comparison masks them and borders.
    """
    index = first + tl.arange(0, COUNT)
    image = index // columns
    column = tl.where(image < batch, index % columns, (1 << 30) // STEP)
    return offset(image, WIDE), offset(column, WIDE)


@triton.jit
def finish(acc, bias, residual, RELU: tl.constexpr):
    """The epilogue in float32: ``relu?(acc + bias + residual)``; None adds nothing."""
    if bias is not None:
        acc += bias
    if residual is not None:
        acc += residual
    if RELU:
        # A comparison, unlike a maximum, keeps NaN on every device.
        acc = tl.where(acc < 0, 0.0, acc)
    return acc
