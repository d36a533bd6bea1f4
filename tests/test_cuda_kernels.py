"""The CUDA kernels, run by the block simulator of cuda_sim/, against the float64 reference."""

from __future__ import annotations

import dataclasses
import functools
import mmap
import random

import cuda_sim
import pytest
import torch
from cuda_cases import (
    ALL,
    DTYPES,
    GPUS,
    KIB,
    OPTIONS,
    SERVED,
    check,
    images,
    is_for_tf32,
    is_served,
    operands,
    weights,
)
from cuda_sim import Gpu, Options, SimulatorError
from problems import problem, relative_error, truth
from torch import Tensor

from resnext_kernels import reference
from resnext_kernels.problem import DIRECTIONS, ConvProblem, Direction

MAP_NORESERVE = 0x4000  # of Linux; Python has no name for it
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    cuda_sim.kernels()


@pytest.mark.parametrize("p", SERVED, ids=str)
@each_direction
def test_directions(p: ConvProblem, direction: Direction) -> None:
    """Every problem in float32 and in 2 bytes; their two formats, the GPUs, orders and layouts in
    turn."""
    turn = SERVED.index(p)
    dtypes = (DTYPES[(turn + DIRECTIONS.index(direction)) % 2], torch.float32)
    for i, dtype in enumerate(dtype for dtype in dtypes if is_served(p, dtype)):
        a, b = operands(p, direction, dtype, sliced=(turn + i) % 2 == 1)
        gpu, options = GPUS[(turn + i) % 3], OPTIONS[(turn // 3 + i) % 3]
        result = getattr(cuda_sim, direction)(p, a, b, gpu=gpu, options=options)
        check(result.out, truth(p, direction, a, b))


@pytest.mark.parametrize("p", [p for p in SERVED if is_for_tf32(p)], ids=str)
@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_tf32(p: ConvProblem, direction: Direction) -> None:
    turn = SERVED.index(p)
    a, b = operands(p, direction, torch.float32, sliced=turn % 2 == 1)
    result = getattr(cuda_sim, direction)(
        p, a, b, tf32=True, gpu=GPUS[turn % 3], options=OPTIONS[turn // 3 % 3]
    )
    (launch,) = result.launches
    assert launch["mma_tf32"] > 0
    check(result.out, truth(p, direction, a, b), truth(p, direction, a.abs(), b.abs()))


@pytest.mark.parametrize(
    ("dtype", "tf32"), [(torch.bfloat16, False), (torch.float16, False), (torch.float32, True)]
)
@pytest.mark.parametrize("tiles", [2, 4, 6, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_every_kernel_of_wide_groups(direction, stride, tiles, dtype, tf32) -> None:
    """With 8 ``tiles`` destination channels a block, which tell by the instructions."""
    widths = (24, 8 * tiles) if direction == "fprop" else (8 * tiles, 24)
    p = problem(*widths, size=(15, 18), stride=(stride, stride))
    a, b = operands(p, direction, dtype, sliced=True)
    result = getattr(cuda_sim, direction)(p, a, b, tf32=tf32, gpu=Gpu(2))
    (launch,) = result.launches
    of_weights = 0 if tf32 and direction == "dgrad" else tiles // 2  # for those of two of pixels
    mma = launch["mma_k16"] + launch["mma_k8"] + launch["mma_tf32"]
    assert mma * (2 + of_weights) == launch["ldmatrix"] * 2 * tiles
    sums = truth(p, direction, a.abs(), b.abs()) if tf32 else None
    check(result.out, truth(p, direction, a, b), sums)


@pytest.mark.parametrize("width", [16, 24, 32])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_weights_are_rounded_to_tf32(direction: Direction, stride: int, width: int) -> None:
    """Dropping their low bits would cost 4.2e-4; these pixels have none."""
    p = problem(width, size=(12, 15), stride=(stride, stride))
    a, b = operands(p, direction, torch.float32, sliced=False)
    a = a.bfloat16().float()
    error = relative_error(
        getattr(cuda_sim, direction)(p, a, b, tf32=True).out, truth(p, direction, a, b)
    )
    assert 1e-4 < error < 3e-4


@pytest.mark.parametrize("width", [1, 4, 8])
@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_groups_that_are_exact_at_the_speed_of_memory(direction: Direction, width: int) -> None:
    p = problem(width, groups=16, size=(5, 6))
    a, b = operands(p, direction, torch.float32, sliced=False)
    run = getattr(cuda_sim, direction)
    assert torch.equal(run(p, a, b, tf32=True).out, run(p, a, b).out)


@pytest.mark.parametrize(
    ("most", "dtype", "arguments"),
    [(192, torch.bfloat16, {}), (64, torch.float32, {}), (64, torch.float32, {"tf32": True})],
    ids=str,
)
@pytest.mark.parametrize("stride", [1, 2])
@each_direction
def test_the_widest_groups_fit_every_gpu(direction, stride, most, dtype, arguments) -> None:
    arguments = {} if direction == "wgrad" else arguments
    for widths in ((most, most), (8, most), (most, 8)):
        p = problem(*widths, groups=1, batch=1, size=(2, 19), stride=(stride, stride))
        a, b = operands(p, direction, dtype, sliced=False)
        out = getattr(cuda_sim, direction)(p, a, b, gpu=GPUS[2], **arguments).out
        sums = truth(p, direction, a.abs(), b.abs()) if arguments else None
        check(out, truth(p, direction, a, b), sums)


def random_problem(numbers: random.Random) -> ConvProblem:
    width = numbers.choice((1, 2, 4, *range(8, 80, 8)))
    out_width = numbers.choice((width, numbers.randrange(8, 80, 8))) if width >= 8 else width
    return problem(
        width,
        out_width,
        groups=numbers.randrange(8, 200, 8) // width if width <= 8 else numbers.randrange(1, 5),
        batch=numbers.randrange(1, 5),
        size=(numbers.randrange(3, 36), numbers.randrange(3, 36)),
        stride=(numbers.choice((1, 2)),) * 2,
        padding=(numbers.randrange(3), numbers.randrange(3)),
    )


@pytest.mark.parametrize("draw", range(20))
@each_direction
def test_random_problems(direction: Direction, draw: int) -> None:
    numbers = random.Random(torch.initial_seed())
    p = random_problem(numbers)
    gpu = Gpu(numbers.randrange(1, 40), 227 * KIB, 228 * KIB)
    options = Options(order="random", seed=numbers.randrange(2**32))
    dtype = numbers.choice([dtype for dtype in DTYPES if is_served(p, dtype)])
    a, b = operands(p, direction, dtype, sliced=numbers.random() < 0.5)
    tf32 = dtype == torch.float32 and direction != "wgrad" and is_for_tf32(p)
    arguments = {"tf32": True} if tf32 else {}
    result = getattr(cuda_sim, direction)(p, a, b, gpu=gpu, options=options, **arguments)
    sums = truth(p, direction, a.abs(), b.abs()) if tf32 else None
    check(result.out, truth(p, direction, a, b), sums)


EPILOGUES = [(bias, residual, relu) for bias in (0, 1) for residual in (0, 1) for relu in (0, 1)]


@pytest.mark.parametrize(
    ("dtype", "tf32"), [*((dtype, False) for dtype in DTYPES), (torch.float32, True)], ids=str
)
@pytest.mark.parametrize(("bias", "residual", "relu"), EPILOGUES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [1, 4, 8, 16, 32, 40])
def test_epilogue(width, stride, bias, residual, relu, dtype, tf32) -> None:
    p = problem(width, groups=max(2, 72 // width), size=(9, 11), stride=(stride,) * 2)
    a, w = images(p.input_shape, dtype, sliced=True), weights(p, dtype)
    b = torch.randn(p.out_channels, dtype=dtype) if bias else None
    r = images(p.output_shape, dtype, sliced=True) if residual else None
    result = cuda_sim.fprop(
        p, a, w, b, r, bool(relu), out=images(p.output_shape, dtype, sliced=True), tf32=tf32,
        gpu=GPUS[0],
    )  # fmt: skip
    expected = reference.fprop(p, a, w, b)
    expected = expected + r.double() if r is not None else expected
    expected = expected.relu() if relu else expected
    in_tf32 = tf32 and is_for_tf32(p)
    check(result.out, expected, truth(p, "fprop", a.abs(), w.abs()) if in_tf32 else None)


@pytest.mark.parametrize(
    ("dtype", "tf32"), [*((dtype, False) for dtype in DTYPES), (torch.float32, True)], ids=str
)
@pytest.mark.parametrize("width", [8, 24])
def test_relu_keeps_nan(width: int, dtype: torch.dtype, tf32: bool) -> None:
    p = problem(width, size=(5, 6))
    a, w = images(p.input_shape, dtype), weights(p, dtype)
    r = images(p.output_shape, dtype)
    absent = torch.rand(p.output_shape) < 0.1
    r[absent] = float("nan")
    out = cuda_sim.fprop(p, a, w, None, r, True, tf32=tf32).out
    assert torch.equal(out.isnan(), absent) and (out[~absent] >= 0).all()


@pytest.mark.parametrize(
    ("direction", "dtype", "arguments"),
    [
        *((d, dtype, {}) for d in DIRECTIONS for dtype in (torch.bfloat16, torch.float32)),
        *((d, torch.float32, {"tf32": True}) for d in ("fprop", "dgrad")),
    ],
    ids=str,
)
@pytest.mark.parametrize("width", [8, 40])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_bits_in_every_order(
    direction: Direction, stride: int, width: int, dtype: torch.dtype, arguments: dict
) -> None:
    p = problem(width, groups=80 // width, size=(12, 15), stride=(stride, stride))
    a, b = operands(p, direction, dtype, sliced=False)
    simulate = functools.partial(getattr(cuda_sim, direction), **arguments)
    first, *others = [simulate(p, a, b, gpu=GPUS[0], options=options).out for options in OPTIONS]
    assert all(torch.equal(first, other) for other in others)


def far_apart(images: Tensor) -> Tensor:
    """A copy in memory of more than 2^31 elements, of which little is ever touched."""
    n, c, h, w = images.shape
    strides = (2**31 + 64, 1, 2**28 + 8, c)
    elements = sum((d - 1) * s for d, s in zip(images.shape, strides, strict=True)) + 1
    size = elements * images.element_size()
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    whole = torch.frombuffer(memory, dtype=images.dtype)
    return whole.as_strided(images.shape, strides).copy_(images)


@pytest.mark.parametrize(
    ("width", "dtype"),
    [(4, torch.float16), (16, torch.bfloat16), (40, torch.float16), (8, torch.float32),
     (16, torch.float32)],
)  # fmt: skip
@pytest.mark.parametrize("stride", [1, 2])
@each_direction
def test_more_than_2_31_elements(direction: Direction, stride: int, width: int, dtype) -> None:
    p = problem(width, groups=4, size=(6, 7), stride=(stride, stride))
    a, b = operands(p, direction, dtype, sliced=False)
    expected = truth(p, direction, a, b)
    if direction == "wgrad":
        check(cuda_sim.wgrad(p, far_apart(a), far_apart(b)).out, expected)
        return
    out = far_apart(torch.zeros(expected.shape, dtype=a.dtype))
    tf32 = dtype == torch.float32 and is_for_tf32(p)
    result = getattr(cuda_sim, direction)(p, far_apart(a), b, out=out, tf32=tf32)
    check(result.out, expected, truth(p, direction, a.abs(), b.abs()) if tf32 else None)


def test_not_supported_reason() -> None:
    """The launchers serve exactly what they are meant to."""
    for p in ALL:
        for dtype in DTYPES:
            if p.batch:
                reason = cuda_sim.not_supported_reason(p, dtype)
                assert (reason is None) == is_served(p, dtype), f"{p}: {reason}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernel": (5, 5)}, "kernels other than 3x3"),
        ({"stride": (2, 1)}, "strides other than 1 and 2"),
        ({"stride": (3, 3)}, "strides other than 1 and 2"),
        ({"dilation": (2, 1)}, "dilation"),
        ({"in_channels": 12, "out_channels": 12, "groups": 3}, "no multiple of 8"),
    ],
)
@each_direction
def test_refuses(change: dict, reason: str, direction: Direction) -> None:
    p = dataclasses.replace(problem(4, groups=4, size=(9, 9)), **change)
    a, b = operands(p, direction, torch.bfloat16, sliced=False)
    with pytest.raises(SimulatorError, match=reason):
        getattr(cuda_sim, direction)(p, a, b)
