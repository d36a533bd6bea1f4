"""The problems that every kernel is checked on."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..problem import ConvProblem, Pair

WIDTHS = (1, 2, 3, 4, 5, 8, 16, 24, 32, 40, 48, 56, 64, 112, 120, 168)
KERNELS = ((1, 1), (3, 3), (5, 5), (7, 7), (1, 3))


def problem(
    width: int,
    out_width: int | None = None,
    *,
    groups: int = 2,
    batch: int = 2,
    size: Pair = (6, 7),
    kernel: Pair = (3, 3),
    stride: Pair = (1, 1),
    padding: Pair | None = None,
    dilation: Pair = (1, 1),
) -> ConvProblem:
    """A float32 problem on the CPU; ``padding`` None keeps the image size at stride 1."""
    if padding is None:
        padding = (dilation[0] * (kernel[0] // 2), dilation[1] * (kernel[1] // 2))
    return ConvProblem(
        batch, width * groups, size, (out_width or width) * groups, kernel,
        stride, padding, dilation, groups, torch.float32, "cpu", False,
    )  # fmt: skip


def _core() -> Iterator[ConvProblem]:
    """The few that every variant of a kernel runs: every width, and one of each other kind."""
    for index, width in enumerate(WIDTHS):
        yield problem(width, stride=(1 + index % 2,) * 2)
        yield problem(width, batch=1, size=(4, 17), stride=(2 - index % 2,) * 2)
    for kernel in KERNELS:
        yield problem(8, kernel=kernel, size=(9, 8))
        yield problem(4, kernel=kernel, stride=(3, 2), dilation=(2, 1), size=(17, 15))
    yield problem(4, 8, groups=32, size=(14, 14))
    yield problem(5, 3, batch=3, groups=3)
    yield problem(1, 1, groups=44, size=(9, 33))
    yield problem(16, 24, batch=1, size=(1, 1))
    yield problem(32, 8, padding=(0, 2), stride=(2, 1))


def _more() -> Iterator[ConvProblem]:
    yield from _widths_and_groups()
    yield from _windows()
    yield from _images()


def _widths_and_groups() -> Iterator[ConvProblem]:
    for width, out_width in (
        (1, 2), (1, 4), (2, 1), (3, 5), (4, 2), (8, 16), (16, 4), (24, 40), (64, 32), (7, 13),
    ):  # fmt: skip
        yield problem(width, out_width)
        yield problem(width, out_width, groups=1, kernel=(1, 1))
    for groups in (1, 3, 5, 8, 32, 64):
        yield problem(4, groups=groups, size=(5, 5))
        yield problem(8, groups=groups, size=(4, 4), stride=(2, 2))


def _windows() -> Iterator[ConvProblem]:
    for kernel in (*KERNELS, (3, 1), (2, 2), (4, 3)):
        for step in (1, 2, 3):
            yield problem(4, kernel=kernel, stride=(step, step), size=(11, 10))
            yield problem(8, kernel=kernel, stride=(step, step), padding=(0, 0), size=(13, 15),
                          dilation=(2, 2))  # fmt: skip
        for pad in range(4):
            yield problem(4, kernel=kernel, padding=(pad, pad), size=(8, 9))
    turned: tuple[tuple[Pair, Pair, Pair], ...] = (
        ((1, 2), (0, 2), (1, 2)),
        ((2, 1), (3, 1), (2, 1)),
        ((3, 1), (2, 3), (1, 3)),
        ((1, 3), (1, 0), (2, 2)),
        ((5, 4), (1, 1), (1, 1)),
    )
    for stride, padding, dilation in turned:
        yield problem(8, stride=stride, padding=padding, dilation=dilation, size=(9, 12))
        yield problem(5, 4, stride=stride, padding=padding, dilation=dilation, size=(9, 12))


def _images() -> Iterator[ConvProblem]:
    for size in ((1, 1), (1, 9), (9, 1), (2, 2), (3, 31), (31, 3), (17, 16), (28, 28), (33, 65)):
        yield problem(4, size=size)
        yield problem(8, size=size, stride=(2, 2))
        yield problem(1, groups=8, size=size)
    yield problem(2, batch=1, size=(224, 224))
    yield problem(4, batch=1, size=(224, 224), stride=(2, 2))
    yield problem(4, kernel=(7, 7), size=(2, 2))
    yield problem(4, kernel=(3, 3), padding=(3, 3), size=(1, 1), stride=(2, 2))
    for batch in (0, 1, 3, 5):
        yield problem(8, batch=batch)
        yield problem(4, 2, batch=batch, stride=(2, 2))


CORE_PROBLEMS = list(dict.fromkeys(_core()))
PROBLEMS = list(dict.fromkeys([*CORE_PROBLEMS, *_more()]))
