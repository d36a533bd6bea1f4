"""The marching kernel of fprop and dgrad, for kernels of few taps and narrow groups.

A program owns a run of columns, some channels, and a strip of rows. The weights of all taps stay in
registers as blocks of a block diagonal, built from the compact weight. The program marches down the
strip, and at each step loads a few shifted source tiles (asynchronously, some steps ahead) and adds
each of them to every sum it belongs to. Which tile belongs to which sum is the `Schedule`; it makes
one kernel serve three cases:

- stride 1 keeps a ring of sums, one for each kernel row: a source row is read once (and once more
  for each further kernel column, from the first-level cache), not once for each tap;
- a strided fprop has one sum, and reads each tap;
- a strided dgrad has one sum for each parity of the destination, and multiplies only taps that hit.
"""

import triton
import triton.language as tl

from .tiles import along, cell_ids, finish, offset, split_pixels, zeros


@triton.jit
def add_product(sums, tile, taps, SUM: tl.constexpr, TAP: tl.constexpr, PRECISION: tl.constexpr):
    """``sums`` with ``tile @ taps[TAP]`` added to the one at ``SUM``."""
    total = tl.dot(tile, taps[TAP], sums[SUM], input_precision=PRECISION)
    return sums[:SUM] + (total,) + sums[SUM + 1 :]


@triton.jit
def add_load(
    sums, taps, src, row, column, reads, src_h, src_w, src_y, src_x,
    LOADS: tl.constexpr, FIRST: tl.constexpr, END: tl.constexpr,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``sums`` with the products of one load added, which ``LOADS[FIRST:END]`` tells."""
    y, x = offset(row + LOADS[FIRST], WIDE), column + LOADS[FIRST + 1]
    inside = (x >= 0) & (x < tl.where((y >= 0) & (y < src_h), src_w, 0))
    if not WHOLE:
        inside &= reads
    pixels = src + y * src_y + LOADS[FIRST + 1] * src_x
    tile = tl.load(pixels, mask=inside, other=0.0, cache_modifier=".ca")
    for use in tl.static_range(FIRST + 2, END, 2):
        if LOADS[use] >= 0:
            sums = add_product(sums, tile, taps, LOADS[use], LOADS[use + 1], PRECISION)
    return sums


@triton.jit
def conv_rows(
    src, weight, bias, residual, dst,
    batch, src_h, src_w, dst_h, dst_w, rows, columns, strip, cell_blocks, column_blocks,
    src_channels, dst_channels,
    src_n, src_c, src_y, src_x, dst_n, dst_c, dst_y, dst_x, res_n, res_c, res_y, res_x,
    weight_g, weight_k, weight_c, weight_r, weight_s,
    LOADS: tl.constexpr, RECORD: tl.constexpr, RING: tl.constexpr, PHASES: tl.constexpr,
    TAPS_R: tl.constexpr, TAPS_S: tl.constexpr,
    SRC_STEP_H: tl.constexpr, SRC_STEP_W: tl.constexpr,
    DST_STEP_H: tl.constexpr, DST_STEP_W: tl.constexpr,
    SRC_WIDTH: tl.constexpr, DST_WIDTH: tl.constexpr, MERGED: tl.constexpr, PARTS: tl.constexpr,
    CELLS: tl.constexpr, PIXELS: tl.constexpr, DEPTH: tl.constexpr, BREADTH: tl.constexpr,
    WHOLE: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``dst = relu?(conv(src, weight) + bias + residual)``; see the module's head.

    Sizes count pixels; ``rows`` x ``columns`` are steps of the march and columns in one image, and
    ``strip`` steps belong to one program. ``X_n, X_c, X_y, X_x`` are strides of ``X`` in elements;
    ``weight_k`` and ``weight_c`` step through source and destination channels inside a group.
    A cell multiplies (PIXELS, DEPTH) by (DEPTH, BREADTH): ``MERGED`` groups, or one of the
    ``PARTS`` into which the destination channels of one group are cut.
    """
    pid = tl.program_id(0)
    cell = cell_ids((pid % cell_blocks) * CELLS, CELLS)
    pid = pid // cell_blocks
    image, column = split_pixels(
        (pid % column_blocks) * PIXELS, columns, batch, SRC_STEP_W * DST_STEP_W, PIXELS, WIDE
    )
    first = (pid // column_blocks) * strip
    block = cell // PARTS
    k = along(tl.arange(0, DEPTH), 2, CELLS)
    c = along(tl.arange(0, BREADTH), 2, CELLS) + (cell % PARTS) * BREADTH
    from_channel = block * (MERGED * SRC_WIDTH) + k
    to_channel = block * (MERGED * DST_WIDTH) + c
    image, column = along(image, 1, CELLS), along(column, 1, CELLS)
    reads = (k < MERGED * SRC_WIDTH) & (from_channel < src_channels)
    writes = (c < MERGED * DST_WIDTH) & (to_channel < dst_channels)
    from_channel, to_channel = offset(from_channel, WIDE), offset(to_channel, WIDE)

    k = along(tl.arange(0, DEPTH), 1, CELLS)
    same = (k // SRC_WIDTH == c // DST_WIDTH) & (k < MERGED * SRC_WIDTH) & writes
    same &= block * (MERGED * SRC_WIDTH) + k < src_channels
    filters = weight + (block * MERGED + k // SRC_WIDTH) * weight_g
    filters += (k % SRC_WIDTH) * weight_k + (c % DST_WIDTH) * weight_c
    taps = ()
    for r in tl.static_range(TAPS_R):
        for s in tl.static_range(TAPS_S):
            tap = tl.load(filters + r * weight_r + s * weight_s, mask=same, other=0.0)
            taps = taps + (tap,)

    from_column = column * SRC_STEP_W
    src += image * src_n + from_column * src_x + from_channel * src_c
    dst += image * dst_n + column * (DST_STEP_W * dst_x) + to_channel * dst_c
    if bias is not None:
        bias = tl.load(bias + to_channel, mask=to_channel < dst_channels, other=0.0)
        bias = bias.to(tl.float32)
    if residual is not None:
        residual += image * res_n + column * res_x + to_channel * res_c
    sums = ()
    for _ in tl.static_range(RING + PHASES):
        sums = sums + (zeros(PIXELS, BREADTH, CELLS),)
    for row in range(first - RING, tl.minimum(first + strip, rows)):
        if residual is None:
            added = None
        else:
            added = residual + offset(row, WIDE) * res_y
            valid = column < tl.where(row >= first, columns, 0)
            if not WHOLE:
                valid &= writes
            added = tl.load(added, mask=valid, other=0.0).to(tl.float32)
        for load in tl.static_range(0, len(LOADS), RECORD):
            sums = add_load(
                sums, taps, src, row * SRC_STEP_H, from_column, reads, src_h, src_w, src_y, src_x,
                LOADS, load, load + RECORD, WHOLE, PRECISION, WIDE,
            )  # fmt: skip
        for index in tl.static_range(PHASES):
            y = offset(row * DST_STEP_H + index // DST_STEP_W, WIDE)
            x = column * DST_STEP_W + index % DST_STEP_W
            valid = x < tl.where((row >= first) & (y < dst_h), dst_w, 0)
            if not WHOLE:
                valid &= writes
            out = finish(sums[index], bias, added, RELU)
            to = dst + y * dst_y + (index % DST_STEP_W) * dst_x
            tl.store(to, out.to(dst.dtype.element_ty), mask=valid)
        if RING == 0:
            sums = ()
            for _ in tl.static_range(PHASES):
                sums = sums + (zeros(PIXELS, BREADTH, CELLS),)
        else:
            sums = sums[1:] + (zeros(PIXELS, BREADTH, CELLS),)
