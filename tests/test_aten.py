"""Where oneDNN errs or crashes behind the backend "aten" on a CPU, and must not be asked."""

import math

import pytest
import torch
from problems import TOLERANCES, operand_shapes, problem, randn, run

from resnext_kernels import ops
from resnext_kernels.verification import numerics

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def check(case, direction, first, second):
    out = run(case, direction, "aten", first, second)
    assert out.dtype == torch.bfloat16
    error = numerics.error(case, direction, out, first, second)
    assert error < TOLERANCES[torch.bfloat16]


def operands(case, direction):
    shapes = operand_shapes(case, direction)
    return [randn(shape, torch.bfloat16, "channels_last") for shape in shapes]


@pytest.mark.parametrize("width", [2, 16])
def test_wgrad_of_taps_that_meet_only_padding(width):
    """It leaves theirs unwritten: whatever was in that memory before."""
    case = problem(width, groups=1, batch=1, size=(1, 1), stride=(2, 2))
    for _ in range(50):
        junk = [torch.full(case.weight_shape, math.nan, dtype=torch.bfloat16) for _ in range(20)]
        del junk
        check(case, "wgrad", *operands(case, "wgrad"))


@pytest.mark.parametrize("size", [(2, 1), (3, 2), (1, 3)])
def test_wgrad_reads_nothing_behind_the_images(size):
    """With a stride wider than the images it reads there, and NaN times zero is NaN."""
    case = problem(1, groups=1, batch=1, size=size, kernel=(1, 1), stride=(1, 4))
    grad, pixels = operands(case, "wgrad")
    followed = torch.full((64,), math.nan, dtype=torch.bfloat16)
    input = followed.as_strided(pixels.shape, pixels.stride()).copy_(pixels)
    check(case, "wgrad", grad, input)


DILATED = [
    problem(5, 1, groups=3, size=(19, 44), kernel=(7, 6), padding=(1, 0), dilation=(2, 2)),
    problem(18, 4, groups=1, size=(9, 31), dilation=(2, 1)),
    problem(2, groups=20, size=(12, 60), stride=(1, 2), padding=(2, 1), dilation=(3, 1)),
    problem(2, groups=8, size=(60, 80), kernel=(1, 1), dilation=(2, 2)),
]


@pytest.mark.parametrize("case", DILATED, ids=str)
def test_wgrad_of_a_dilation_in_wide_images(case):
    """It skips dilated rows twice where the channels of a group do not fill blocks of 16."""
    check(case, "wgrad", *operands(case, "wgrad"))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("batch, kernel", [(2, (3, 1)), (2, (1, 3)), (1, (3, 3))])
def test_strides_of_sizes_of_one(dtype, batch, kernel):
    """They mean nothing, but torch's own convolutions look there for groups and images."""
    padding = tuple(size // 2 for size in kernel)
    case = problem(2, 4, groups=8, batch=batch, size=(9, 7), kernel=kernel, padding=padding)
    input, weight, grad = (
        with_odd_strides(randn(shape, dtype, "channels_last"))
        for shape in (case.input_shape, case.weight_shape, case.output_shape)
    )
    out = ops.grouped_conv2d(input, weight, None, *case.convolution, "aten")
    to_input, to_weight, _ = ops.grouped_conv2d_backward(
        grad, input, weight, *case.convolution, [True, True, False], "aten"
    )
    for direction, result, first, second in (
        ("fprop", out, input, weight),
        ("dgrad", to_input, grad, weight),
        ("wgrad", to_weight, grad, input),
    ):
        assert numerics.error(case, direction, result, first, second) < TOLERANCES[dtype], direction


def with_odd_strides(tensor):
    strides = [1 if n == 1 else step for n, step in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.as_strided(tensor.shape, strides)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fprop_of_padding_alone(dtype):
    """It crashes in strides that step over the whole width of the images, and not in bf16 only."""
    case = problem(4, 2, batch=1, size=(2, 1), kernel=(1, 1), stride=(1, 2), padding=(0, 1),
                   dilation=(1, 2))  # fmt: skip
    input = randn(case.input_shape, dtype, "channels_last")
    weight, residual = (randn(shape, dtype) for shape in (case.weight_shape, case.output_shape))
    bias = randn((case.out_channels, 1, 1, 1), dtype).flatten()
    out = ops.grouped_conv2d_fused(input, weight, bias, residual, *case.convolution, "none", "aten")
    expected = bias.double().view(-1, 1, 1) + residual.double()
    assert out.dtype == dtype
    assert numerics.relative_error(out, expected) < TOLERANCES[dtype]
    assert not run(case, "fprop", "aten", input, weight).any()
