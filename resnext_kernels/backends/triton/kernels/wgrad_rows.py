"""The kernels of wgrad: sums over pixels in splits, then the sum over the splits.

For every tap, a matrix product (output channels, pixels) x (pixels, input channels), whose sums
stay in registers while a program marches over its share of rows. At vertical stride 1 it marches
over input rows and takes the tap rows from ``grad_output``: a step then loads one tile for each
kernel row and one for each kernel column, instead of one for each tap. Splits write float32 partial
sums side by side and a second kernel adds them in a fixed order: no atomics, hence the same bits
each time.
"""

import triton
import triton.language as tl

from .tiles import along, cell_ids, offset, split_pixels, zeros


@triton.jit
def wgrad_rows(
    grad, input, partial,
    batch, in_h, in_w, out_h, rows, columns, cell_blocks, steps, split_steps, split_size,
    in_channels, out_channels,
    grad_n, grad_c, grad_y, grad_x, in_n, in_c, in_y, in_x,
    weight_k, weight_c, weight_r, weight_s,
    SHARED: tl.constexpr, TAPS_R: tl.constexpr, TAPS_S: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    IN_WIDTH: tl.constexpr, OUT_WIDTH: tl.constexpr, MERGED: tl.constexpr,
    IN_PARTS: tl.constexpr, OUT_PARTS: tl.constexpr,
    CELLS: tl.constexpr, PIXELS: tl.constexpr, HEIGHT: tl.constexpr, BREADTH: tl.constexpr,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Sums of one split over its steps, in ``partial[split]``.

    A step is ``PIXELS`` columns (of output, over all images) of one row: ``rows`` steps for each
    run of columns, over input rows where ``SHARED``, else over output rows. A cell is a matrix of
    (HEIGHT output channels, BREADTH input channels): ``MERGED`` groups, or one of ``OUT_PARTS`` x
    ``IN_PARTS`` parts of one group. A program has BLOCK_R x BLOCK_S of the taps.
    """
    pid = tl.program_id(0)
    cell = cell_ids((pid % cell_blocks) * CELLS, CELLS)
    pid = pid // cell_blocks
    BLOCKS_S: tl.constexpr = (TAPS_S + BLOCK_S - 1) // BLOCK_S
    BLOCKS_R: tl.constexpr = (TAPS_R + BLOCK_R - 1) // BLOCK_R
    s0 = (pid % BLOCKS_S) * BLOCK_S
    r0 = (pid // BLOCKS_S % BLOCKS_R) * BLOCK_R
    split = pid // (BLOCKS_S * BLOCKS_R)

    block = cell // (IN_PARTS * OUT_PARTS)
    k = along(tl.arange(0, HEIGHT), 1, CELLS) + (cell // IN_PARTS % OUT_PARTS) * HEIGHT
    c = along(tl.arange(0, BREADTH), 2, CELLS) + (cell % IN_PARTS) * BREADTH
    out_channel = block * (MERGED * OUT_WIDTH) + k
    in_channel = block * (MERGED * IN_WIDTH) + c
    k_exists = (k < MERGED * OUT_WIDTH) & (out_channel < out_channels)
    c_exists = (c < MERGED * IN_WIDTH) & (in_channel < in_channels)
    grad += offset(out_channel, WIDE) * grad_c
    input += offset(in_channel, WIDE) * in_c

    sums = ()
    for _ in tl.static_range(BLOCK_R * BLOCK_S):
        sums = sums + (zeros(HEIGHT, BREADTH, CELLS),)
    for step in range(split * split_steps, tl.minimum((split + 1) * split_steps, steps)):
        row = step % rows
        image, column = split_pixels(step // rows * PIXELS, columns, batch, STRIDE_W, PIXELS, WIDE)
        from_column = column * STRIDE_W - PADDING_W
        grads = grad + along(image * grad_n + column * grad_x, 2, CELLS)
        inputs = input + along(image * in_n + from_column * in_x, 1, CELLS)
        to_column, from_column = along(column, 2, CELLS), along(from_column, 1, CELLS)
        totals = ()
        for r in tl.static_range(BLOCK_R):
            if SHARED:
                p, y = row + PADDING_H - (r0 + r) * DILATION_H, row
            else:
                p, y = row, row * STRIDE_H - PADDING_H + (r0 + r) * DILATION_H
            p, y = offset(p, WIDE), offset(y, WIDE)
            valid = to_column < tl.where((p >= 0) & (p < out_h), columns, 0)
            if not WHOLE:
                valid &= k_exists
            left = tl.load(grads + p * grad_y, mask=valid, other=0.0, cache_modifier=".ca")
            for s in tl.static_range(BLOCK_S):
                x = from_column + (s0 + s) * DILATION_W
                inside = (x >= 0) & (x < tl.where((y >= 0) & (y < in_h), in_w, 0))
                if not WHOLE:
                    inside &= c_exists
                at = inputs + y * in_y + (s0 + s) * (DILATION_W * in_x)
                right = tl.load(at, mask=inside, other=0.0, cache_modifier=".ca")
                total = tl.dot(left, right, sums[r * BLOCK_S + s], input_precision=PRECISION)
                totals = totals + (total,)
        sums = totals

    same = (k // OUT_WIDTH == c // IN_WIDTH) & k_exists & c_exists
    to = partial + split.to(tl.int64) * split_size
    to += out_channel * weight_k + (c % IN_WIDTH) * weight_c
    for r in tl.static_range(BLOCK_R):
        for s in tl.static_range(BLOCK_S):
            tap = to + (r0 + r) * weight_r + (s0 + s) * weight_s
            exists = (r0 + r < TAPS_R) & (s0 + s < TAPS_S)
            valid = same & (in_channel < tl.where(exists, in_channels, 0))
            tl.store(tap, sums[r * BLOCK_S + s].to(partial.dtype.element_ty), mask=valid)


@triton.jit
def add_splits(partial, out, splits, size, SPLITS: tl.constexpr, SIZE: tl.constexpr):
    """``out[i] = sum over splits of partial[split, i]`` for ``i < size``, always in one order."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)[None, :]
    split = tl.arange(0, SPLITS)[:, None]
    total = tl.zeros((SPLITS, SIZE), tl.float32)
    for first in range(0, splits, SPLITS):
        part = partial + (first + split).to(tl.int64) * size + at
        total += tl.load(part, mask=(first + split < splits) & (at < size), other=0.0)
    total = tl.sum(total, 0)
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=at < size)
