"""The general kernel of fprop and dgrad: any kernel size, stride, dilation and group width.

A program computes a tile of destination pixels by channels, as a matrix product over taps and
source channels. A strided dgrad visits the destination by phase (row and column modulo the stride):
inside a phase every pixel meets the same taps, so none is multiplied in vain.
"""

import triton
import triton.language as tl

from .tiles import along, cell_ids, finish, offset, zeros


@triton.jit
def phase_taps(phase, PADDING: tl.constexpr, DILATION: tl.constexpr, STRIDE: tl.constexpr,
               PERIOD: tl.constexpr, TAPS: tl.constexpr):  # fmt: skip
    """(first tap, how many, source position of the first) of the taps that hit a phase of an axis.

    Tap ``t`` hits where ``phase + PADDING - t * DILATION`` is a multiple of ``STRIDE``; hits come
    back every ``PERIOD`` taps.
    """
    first = phase * 0 + TAPS
    for t in tl.static_range(PERIOD):
        # Adds a multiple of the stride, because a remainder of a negative number is negative.
        gap = phase + PADDING + (STRIDE - 1) * t * DILATION
        if t < TAPS:
            first = tl.where(gap % STRIDE == 0, t, first)
    count = (TAPS - first + PERIOD - 1) // PERIOD
    distance = phase + PADDING - first * DILATION
    # Exact where a tap hits, and then the only value that is used.
    return first, count, (distance + STRIDE * DILATION * TAPS) // STRIDE - DILATION * TAPS


@triton.jit
def conv_taps(
    src, weight, bias, residual, dst,
    batch, src_h, src_w, dst_h, dst_w, rows, columns, cell_blocks, pixel_blocks,
    src_channels, dst_channels,
    src_n, src_c, src_y, src_x, dst_n, dst_c, dst_y, dst_x, res_n, res_c, res_y, res_x,
    weight_g, weight_k, weight_c, weight_r, weight_s,
    TRANSPOSED: tl.constexpr, TAPS_R: tl.constexpr, TAPS_S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    PERIOD_H: tl.constexpr, PERIOD_W: tl.constexpr,
    SRC_WIDTH: tl.constexpr, DST_WIDTH: tl.constexpr, MERGED: tl.constexpr, PARTS: tl.constexpr,
    CELLS: tl.constexpr, PIXELS: tl.constexpr, DEPTH: tl.constexpr, BREADTH: tl.constexpr,
    RELU: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``dst = relu?(conv(src, weight) + bias + residual)``, or the transpose of ``conv``.

    Arguments as `conv_rows` has them; ``rows`` x ``columns`` are the pixels of one phase of one
    image. Hits of a phase are ``PERIOD_H``, ``PERIOD_W`` taps apart; without phases, 1.
    """
    pid = tl.program_id(0)
    cell = cell_ids((pid % cell_blocks) * CELLS, CELLS)
    pid = pid // cell_blocks
    phase = pid // pixel_blocks
    pixel = along(offset(pid % pixel_blocks, WIDE) * PIXELS + tl.arange(0, PIXELS), 1, CELLS)
    column = pixel % columns
    row = (pixel // columns) % rows
    image = pixel // columns // rows
    exists = image < batch

    block = cell // PARTS
    k = along(tl.arange(0, DEPTH), 2, CELLS)
    c = along(tl.arange(0, BREADTH), 2, CELLS) + (cell % PARTS) * BREADTH
    k_row = along(tl.arange(0, DEPTH), 1, CELLS)
    from_channel = block * (MERGED * SRC_WIDTH) + k
    to_channel = block * (MERGED * DST_WIDTH) + c
    reads = exists & (from_channel < src_channels)
    columns_exist = (c < MERGED * DST_WIDTH) & (to_channel < dst_channels)
    filters = weight + (c % DST_WIDTH) * weight_c
    from_channel, to_channel = offset(from_channel, WIDE), offset(to_channel, WIDE)

    if TRANSPOSED:
        phase_h, phase_w = phase // STRIDE_W, phase % STRIDE_W
        r0, count_r, y0 = phase_taps(phase_h, PADDING_H, DILATION_H, STRIDE_H, PERIOD_H, TAPS_R)
        s0, count_s, x0 = phase_taps(phase_w, PADDING_W, DILATION_W, STRIDE_W, PERIOD_W, TAPS_S)
        y0, x0 = row + y0, column + x0
        y_step: tl.constexpr = -(DILATION_H * PERIOD_H // STRIDE_H)
        x_step: tl.constexpr = -(DILATION_W * PERIOD_W // STRIDE_W)
        to_row, to_column = row * STRIDE_H + phase_h, column * STRIDE_W + phase_w
    else:
        r0, count_r, s0, count_s = 0, TAPS_R, 0, TAPS_S
        y0, x0 = row * STRIDE_H - PADDING_H, column * STRIDE_W - PADDING_W
        y_step: tl.constexpr = DILATION_H
        x_step: tl.constexpr = DILATION_W
        to_row, to_column = row, column
    src += image * src_n + y0 * src_y + x0 * src_x + from_channel * src_c

    CHUNKS: tl.constexpr = (MERGED * SRC_WIDTH + DEPTH - 1) // DEPTH
    acc = zeros(PIXELS, BREADTH, CELLS)
    for step in range(count_r * count_s * CHUNKS):
        tap, first_k = step // CHUNKS, offset((step % CHUNKS) * DEPTH, WIDE)
        i, j = offset(tap // count_s, WIDE), offset(tap % count_s, WIDE)
        y, x = y0 + i * y_step, x0 + j * x_step
        inside = (y >= 0) & (y < src_h) & (x >= 0) & (x < src_w)
        valid = reads & inside & (first_k + k < MERGED * SRC_WIDTH)
        pixels = src + i * (y_step * src_y) + j * (x_step * src_x) + first_k * src_c
        tile = tl.load(pixels, mask=valid, other=0.0, cache_modifier=".ca")
        kk = first_k + k_row
        same = (kk // SRC_WIDTH == c // DST_WIDTH) & (kk < MERGED * SRC_WIDTH) & columns_exist
        at = (block * MERGED + kk // SRC_WIDTH) * weight_g + (kk % SRC_WIDTH) * weight_k
        at += (r0 + i * PERIOD_H) * weight_r + (s0 + j * PERIOD_W) * weight_s
        matrix = tl.load(filters + at, mask=same, other=0.0)
        acc = tl.dot(tile, matrix, acc, input_precision=PRECISION)

    valid = exists & columns_exist & (to_row < dst_h) & (to_column < dst_w)
    if bias is not None:
        bias = tl.load(bias + to_channel, mask=columns_exist, other=0.0).to(tl.float32)
    if residual is not None:
        residual += image * res_n + to_row * res_y + to_column * res_x + to_channel * res_c
        residual = tl.load(residual, mask=valid, other=0.0).to(tl.float32)
    acc = finish(acc, bias, residual, RELU)
    dst += image * dst_n + to_row * dst_y + to_column * dst_x + to_channel * dst_c
    tl.store(dst, acc.to(dst.dtype.element_ty), mask=valid)
