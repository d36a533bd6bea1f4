"""The problems, the strides and the measure of error that all tests of the kernels share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from resnext_kernels import ops, reference
from resnext_kernels.backends import BACKENDS
from resnext_kernels.problem import ConvProblem, Direction, ProblemError

TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
WIDTHS = (1, 2, 3, 4, 5, 8, 16, 24, 32, 40, 48, 56, 64, 112, 120, 168)
KERNELS = ((1, 1), (3, 3), (5, 5), (7, 7), (1, 3))
Shape = tuple[int, ...]


def problem(
    width: int,
    out_width: int | None = None,
    *,
    groups: int = 2,
    batch: int = 2,
    size: tuple[int, int] = (6, 7),
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] | None = None,
    dilation: tuple[int, int] = (1, 1),
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
    yield problem(1, 1, groups=40, size=(9, 33))
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
        for stride in (1, 2, 3):
            yield problem(4, kernel=kernel, stride=(stride, stride), size=(11, 10))
            yield problem(8, kernel=kernel, stride=(stride, stride), padding=(0, 0), size=(13, 15),
                          dilation=(2, 2))  # fmt: skip
        for padding in range(4):
            yield problem(4, kernel=kernel, padding=(padding, padding), size=(8, 9))
    for stride, padding, dilation in (
        ((1, 2), (0, 2), (1, 2)),
        ((2, 1), (3, 1), (2, 1)),
        ((3, 1), (2, 3), (1, 3)),
        ((1, 3), (1, 0), (2, 2)),
        ((5, 4), (1, 1), (1, 1)),
    ):
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


def problem_id(problem: ConvProblem) -> str:
    return ("core " if problem in CORE_PROBLEMS else "") + str(problem)


def _channels_last(shape: Sequence[int], **options) -> Tensor:
    n, c, h, w = shape
    return torch.randn(n, h, w, c, **options).permute(0, 3, 1, 2)


def _offset(shape: Sequence[int], **options) -> Tensor:
    """Starts one element into its storage, hence off every vector's alignment."""
    return torch.randn(torch.Size(shape).numel() + 1, **options)[1:].view(*shape)


LAYOUTS: dict[str, Callable[..., Tensor]] = {
    "contiguous": torch.randn,
    "channels_last": _channels_last,
    "channel_slice": lambda s, **o: torch.randn(s[0], s[1] + 3, *s[2:], **o)[:, 2:-1],
    "channel_slice_last": lambda s, **o: _channels_last((s[0], s[1] + 5, *s[2:]), **o)[:, 3:-2],
    "window": lambda s, **o: torch.randn(*s[:2], s[2] + 2, s[3] + 3, **o)[:, :, 1:-1, 2:-1],
    "window_last": lambda s, **o: _channels_last((*s[:2], s[2] + 2, s[3] + 3), **o)[
        :, :, 1:-1, 1:-2
    ],
    "every_second": lambda s, **o: torch.randn(*[2 * d for d in s], **o)[::2, ::2, ::2, ::2],
    "every_second_last": lambda s, **o: _channels_last((*s[:3], 2 * s[3]), **o)[..., ::2],
    "offset": _offset,
    "offset_last": lambda s, **o: _offset((s[0], s[2], s[3], s[1]), **o).permute(0, 3, 1, 2),
    "permuted": lambda s, **o: torch.randn(*s[::-1], **o).permute(3, 2, 1, 0),
    "transposed": lambda s, **o: torch.randn(s[0], s[1], s[3], s[2], **o).mT,
    "expanded_batch": lambda s, **o: torch.randn(1, *s[1:], **o).expand(*s),
    "expanded_channels": lambda s, **o: torch.randn(s[0], 1, *s[2:], **o).expand(*s),
    "expanded_pixels": lambda s, **o: torch.randn(*s[:2], 1, 1, **o).expand(*s),
    "expanded": lambda s, **o: torch.randn(1, 1, 1, 1, **o).expand(*s),
}


def randn(shape: Shape, dtype: torch.dtype, layout: str = "contiguous", device="cpu") -> Tensor:
    """Normal numbers of ``dtype`` with the strides that ``layout`` names."""
    return LAYOUTS[layout](shape, dtype=dtype, device=device)


def relative_error(out: Tensor, truth: Tensor) -> float:
    """``||out - truth|| / ||truth||`` in float64, for finite ``out`` of ``truth``'s shape."""
    out, truth = out.detach(), truth.detach()
    assert out.shape == truth.shape
    assert out.isfinite().all(), f"{int((~out.isfinite()).sum())} of {out.numel()} are not finite"
    error = (out.double().cpu() - truth).norm()
    return float(error / truth.norm()) if error else 0.0


def operand_shapes(problem: ConvProblem, direction: Direction) -> tuple[Shape, Shape]:
    """Shapes of the two operands, in the order in which a backend takes them."""
    output, input, weight = problem.output_shape, problem.input_shape, problem.weight_shape
    shapes = {"fprop": (input, weight), "dgrad": (output, weight), "wgrad": (output, input)}
    return shapes[direction]


def truth(problem: ConvProblem, direction: Direction, first: Tensor, second: Tensor) -> Tensor:
    """The float64 reference of one direction, on the CPU."""
    first, second = first.cpu(), second.cpu()
    if direction == "fprop":
        return reference.fprop(problem, first, second, None)
    return getattr(reference, direction)(problem, first, second)


def targets() -> list[tuple[str, str]]:
    """Each backend with each device to test it on."""
    cuda = ["cuda"] if torch.cuda.is_available() else []
    devices = {"aten": ["cpu", *cuda], "cpu": ["cpu"]}
    return [(name, device) for name in BACKENDS for device in devices.get(name, cuda or ["cpu"])]


def run(
    problem: ConvProblem, direction: Direction, backend: str, first: Tensor, second: Tensor
) -> Tensor:
    """Run one direction through the operators.

    Where the backend refuses the problem, check that it says why, and skip the test.
    """
    conv = (problem.stride, problem.padding, problem.dilation, problem.groups)
    shape = problem.input_shape if direction == "dgrad" else problem.weight_shape
    unread = first.new_full(shape, float("nan"))
    input, weight = {
        "fprop": (first, second), "dgrad": (unread, second), "wgrad": (second, unread),
    }[direction]  # fmt: skip
    called = ConvProblem.of(input, weight, *conv)
    reasons = BACKENDS[backend].not_supported_reasons(called, direction)
    mask = [direction == "dgrad", direction == "wgrad", False]
    try:
        if direction == "fprop":
            out = ops.grouped_conv2d(input, weight, None, *conv, backend)
        else:
            grads = ops.grouped_conv2d_backward(first, input, weight, *conv, mask, backend)
            out = grads[mask.index(True)]
    except ProblemError as error:
        assert reasons, f"{backend} refuses for no reason: {error}"
        assert all(text in str(error) for text in [*reasons, repr(backend), direction])
        pytest.skip("; ".join(reasons))
    assert not reasons, f"{backend} serves what it refuses: {reasons}"
    return out


def skip_unless_loaded(backend: str, device: str) -> None:
    """Skip the test where a backend cannot serve the plainest problem on a device."""
    plain = dataclasses.replace(problem(8), device=device)
    reasons = BACKENDS[backend].not_supported_reasons(plain, "fprop")
    if reasons:
        pytest.skip("; ".join(reasons))
