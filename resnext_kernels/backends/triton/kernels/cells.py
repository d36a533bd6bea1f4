"""Cutting channels into cells, the blocks of a block diagonal that the kernels multiply by.

A cell holds as many whole groups as fit the least matrix instruction, or one wider group, or a part
of one. Its sides are powers of two, as tiles must be; channels that fill them up are masked.
"""

from __future__ import annotations

from dataclasses import dataclass

_LEAST = 16  # what a matrix instruction takes at least, along every side
# Without matrix instructions a tile of products takes far more registers.
_MOST = {"half": 64, "tf32": 64, "ieee": 16}
_NARROW = 32
_SUMS_OF_NARROW, _SUMS_OF_WIDE = 9, 3  # float32 tiles that fit the registers


@dataclass(frozen=True)
class ConvCells:
    """Cells of fprop and dgrad: (``depth`` source channels) x (``breadth`` destination channels).

    A cell has ``merged`` groups, or one of ``parts`` into which the destination channels of a group
    are cut; its source channels are taken ``depth`` at a time. ``count`` cells make up the result.
    """

    merged: int
    depth: int
    breadth: int
    parts: int
    count: int
    whole: bool  # no channel is masked

    @property
    def side(self) -> int:
        """The longer side, by which configurations are kept."""
        return max(self.depth, self.breadth)


@dataclass(frozen=True)
class WgradCells:
    """Cells of wgrad: (``height`` output channels) x (``breadth`` input channels) of the weight.

    A cell has ``merged`` groups, or one of ``out_parts`` x ``in_parts`` parts of a group. A program
    keeps the sums of up to ``sums`` taps.
    """

    merged: int
    height: int
    breadth: int
    out_parts: int
    in_parts: int
    count: int
    sums: int
    whole: bool

    @property
    def side(self) -> int:
        """The longer side, by which configurations are kept."""
        return max(self.height, self.breadth)


def conv_cells(groups: int, src_width: int, dst_width: int, precision: str) -> ConvCells:
    """Cells for ``groups`` of ``src_width`` channels that give ``dst_width`` channels each."""
    merged = _merged(groups, src_width, dst_width)
    src, dst = merged * src_width, merged * dst_width
    depth, breadth = _side(src, precision), _side(dst, precision)
    parts = -(-dst // breadth)
    whole = groups % merged == 0 and src % depth == 0 and dst % breadth == 0
    return ConvCells(merged, depth, breadth, parts, -(-groups // merged) * parts, whole)


def wgrad_cells(groups: int, in_width: int, out_width: int, precision: str) -> WgradCells:
    """Cells for ``groups`` of ``in_width`` input and ``out_width`` output channels."""
    merged = _merged(groups, in_width, out_width)
    inner, outer = merged * in_width, merged * out_width
    breadth, height = _side(inner, precision), _side(outer, precision)
    narrow = max(breadth, height) <= _NARROW
    if narrow:
        height = _LEAST  # leaves registers for the sums of all taps of a 3x3 kernel
    out_parts, in_parts = -(-outer // height), -(-inner // breadth)
    count = -(-groups // merged) * out_parts * in_parts
    whole = groups % merged == 0 and inner % breadth == 0 and outer % height == 0
    sums = _SUMS_OF_NARROW if narrow else _SUMS_OF_WIDE
    return WgradCells(merged, height, breadth, out_parts, in_parts, count, sums, whole)


def _merged(groups: int, *widths: int) -> int:
    """As many groups as fit the least cell, and at least one."""
    return min(groups, max(1, _LEAST // max(widths)))


def _side(channels: int, precision: str) -> int:
    """The side of a cell that holds ``channels``, or a part of them."""
    return min(_MOST[precision], max(_LEAST, power_of_two(channels)))


def power_of_two(count: int) -> int:
    """The least power of two that is not below ``count`` >= 1."""
    return 1 << (count - 1).bit_length()


def cells_of_program(most: int, count: int) -> int:
    """How many of ``count`` cells a program takes: ``most`` or the power of two that holds all."""
    return min(most, power_of_two(count))
