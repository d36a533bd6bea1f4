"""What the CUDA kernels are tested on in the simulator, and how their results are judged."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from cuda_sim import Gpu, Options
from problems import PROBLEMS, TOLERANCES, WIDTHS, operand_shapes, problem, relative_error
from torch import Tensor

from resnext_kernels.problem import ConvProblem, Direction

KIB = 1024
GPUS = (Gpu(2, 100 * KIB, 100 * KIB), Gpu(132, 227 * KIB, 228 * KIB), Gpu(7, 99 * KIB, 100 * KIB))
OPTIONS = (
    Options(),
    Options(order="reverse", early_copies=True),
    Options(order="random", seed=1),
)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TF32_TOLERANCE = 1e-3
# Half the distance of two numbers next to each other is at most this part of them.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
SIZES = ((1, 1), (1, 40), (40, 1), (2, 2), (7, 7), (16, 17), (3, 300))


def is_served(p: ConvProblem, dtype: torch.dtype) -> bool:
    """Whether the kernels are there for a problem."""
    widths = (p.in_width, p.out_width)
    most = 64 if dtype == torch.float32 else 192
    return (
        p.batch > 0
        and p.kernel == (3, 3)
        and p.stride in ((1, 1), (2, 2))
        and p.dilation == (1, 1)
        and p.in_channels % 8 == p.out_channels % 8 == 0
        and max(widths) <= most
        and (widths in ((1, 1), (2, 2), (4, 4)) or not any(width % 8 for width in widths))
    )


def is_for_tf32(p: ConvProblem) -> bool:
    """Whether exact float32 would be slower than the memory."""
    return is_served(p, torch.float32) and max(p.in_width, p.out_width) > 8


def _problems() -> Iterator[ConvProblem]:
    yield from PROBLEMS
    for width in WIDTHS:
        # More than one block's channels, and a rest of them.
        groups = 144 // width // 8 * 8 if width <= 8 else 80 // width + 2
        for stride in (1, 2):
            yield problem(width, groups=groups, size=(9, 20), stride=(stride,) * 2)
            yield problem(width, groups=8 // min(width, 8) * 2, size=(5, 6),
                          stride=(stride,) * 2, padding=(0, 0))  # fmt: skip
    for width in range(8, 200, 8):
        yield problem(width, size=(5, 6), stride=(1 + width // 8 % 2,) * 2)
    for widths in ((8, 24), (40, 16), (16, 64), (72, 48), (24, 168), (112, 64)):
        yield problem(*widths, groups=3, size=(8, 11))
        yield problem(*widths, groups=3, size=(8, 11), stride=(2, 2))
    for width in (4, 8, 16, 32, 48):
        for stride in (1, 2):
            for size in SIZES:
                yield problem(width, groups=96 // width, size=size, stride=(stride,) * 2)
            for padding in ((0, 1), (2, 0), (2, 2), (4, 3)):
                yield problem(width, size=(6, 9), stride=(stride,) * 2, padding=padding)
    yield problem(4, groups=32, batch=7, size=(8, 8))
    # As many small images in a chunk as it takes.
    for side, batch in ((1, 40), (2, 50), (3, 60), (5, 23)):
        yield problem(8, groups=9, batch=batch, size=(side, side))
        yield problem(40, groups=2, batch=batch, size=(2 * side, 2 * side), stride=(2, 2))


ALL = list(dict.fromkeys(_problems()))
SERVED = [p for p in ALL if any(is_served(p, dtype) for dtype in DTYPES)]


def images(shape: tuple[int, ...], dtype: torch.dtype, sliced: bool = False) -> Tensor:
    """Random channels_last images, or a slice of larger ones, at a multiple of 16 bytes."""
    n, c, h, w = shape
    if not sliced:
        return torch.randn(n, h, w, c, dtype=dtype).permute(0, 3, 1, 2)
    whole = torch.randn(n + 1, h + 2, w + 3, c + 24, dtype=dtype)
    return whole[1:, 1:-1, 2:-1, 8:-16].permute(0, 3, 1, 2)


def weights(p: ConvProblem, dtype: torch.dtype) -> Tensor:
    return torch.randn(p.weight_shape, dtype=dtype)


def check(out: Tensor, truth: Tensor, tf32_sums: Tensor | None = None) -> None:
    """``out`` is right as a whole and in each of its numbers.

    In TF32 pixels lose less than 2^-10 of themselves, and weights up to 2^-11; ``tf32_sums``:
    ``truth`` of the absolute values of the operands.
    """
    difference = (out.double() - truth).abs()
    bound = ROUNDING[out.dtype] * truth.abs() + 1e-5 * truth.abs().max()
    if tf32_sums is None:
        assert relative_error(out, truth) < TOLERANCES[out.dtype]
    else:
        assert relative_error(out, truth) < TF32_TOLERANCE
        bound += (2.0**-10 + 2.0**-11) * tf32_sums
    assert (difference <= bound).all()


def operands(p: ConvProblem, direction: Direction, dtype: torch.dtype, sliced: bool) -> list:
    first, second = operand_shapes(p, direction)
    if direction == "wgrad":
        return [images(first, dtype, sliced), images(second, dtype, sliced)]
    return [images(first, dtype, sliced), weights(p, dtype)]
