"""The CPU kernels' way with contiguous images: copies in channels_last, a few images at a time."""

from __future__ import annotations

import pytest
import torch
from problems import TOLERANCES, operand_shapes, problem, randn, run, truth

import resnext_kernels.backends.cpu as cpu
from resnext_kernels.problem import ConvProblem
from resnext_kernels.verification import numerics

pytestmark = [
    pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message),
    pytest.mark.usefixtures("poisoned_memory"),
]
DTYPES = pytest.mark.parametrize("dtype", cpu.DTYPES, ids=lambda dtype: str(dtype)[6:])
FORMATS = torch.channels_last, torch.contiguous_format


@DTYPES
@pytest.mark.parametrize("channels", [2, 15, 16, 64, 67, 130])
@pytest.mark.parametrize("size", [(1, 2), (3, 5), (8, 8), (1, 67), (131, 1), (9, 15)], ids=str)
def test_images_in_planes_give_the_same(channels, size, dtype):
    """Not a bit of a copy is another: sums are those of channels_last, denormals not lost.

    The results are no denormals: some processors' conversion to bfloat16 makes those zero.
    """
    case = problem(1, groups=channels, batch=3, size=size, kernel=(1, 1), padding=(0, 0))
    input, weight = (randn(shape, dtype) for shape in operand_shapes(case, "fprop"))
    input[1] *= 2.0**-130
    weight *= 2.0**40
    results = [
        run(case, "fprop", "cpu", images, weight)
        for images in (input, input.contiguous(memory_format=torch.channels_last))
    ]
    assert torch.equal(*results)
    for result, expected in zip(results[0], truth(case, "fprop", input, weight), strict=True):
        assert numerics.relative_error(result, expected) < TOLERANCES[dtype]


@DTYPES
@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("width", [1, 2, 8, 32])
@pytest.mark.parametrize("stride", [1, 2])
def test_images_in_portions(direction, width, stride, dtype):
    """5 images of which 4 MiB hold one or two, and one image that they do not hold."""
    for channels, size, batch in ((64, (60, 55), 5), (64, (150, 151), 1)):
        groups = channels // width
        case = problem(width, groups=groups, batch=batch, size=size, stride=(stride, stride))
        operands = [randn(shape, dtype) for shape in operand_shapes(case, direction)]
        result = run(case, direction, "cpu", *operands)
        assert result.is_contiguous()
        assert numerics.error(case, direction, result, *operands) < TOLERANCES[dtype]
        if direction == "wgrad":  # of one operand in portions, the other as it lies
            operands[0] = operands[0].contiguous(memory_format=torch.channels_last)
            result = run(case, direction, "cpu", *operands)
            assert numerics.error(case, direction, result, *operands) < TOLERANCES[dtype]


@DTYPES
@pytest.mark.parametrize("images", FORMATS, ids=str)
@pytest.mark.parametrize("residuals", [*FORMATS, "in columns", "sliced"], ids=str)
def test_operands_in_any_format(images, residuals, dtype):
    shape, size = (3, 96, 70, 66), (70, 66)
    input = randn(shape, dtype).contiguous(memory_format=images)
    weight, bias = randn((96, 12, 3, 3), dtype), randn((96,), dtype)
    residual = randn(shape, dtype)
    if residuals == "in columns":
        residual = residual.transpose(2, 3).contiguous().transpose(2, 3)
    elif residuals == "sliced":
        residual = randn((3, 97, *size), dtype)[:, 1:]
    else:
        residual = residual.contiguous(memory_format=residuals)
    case = ConvProblem.of(input, weight, (1, 1), (1, 1), (1, 1), 8)
    result = cpu.fprop(case, input, weight, bias, residual, True)
    assert result.is_contiguous(memory_format=images)
    expected = truth(case, "fprop", input, weight) + bias.double().view(-1, 1, 1)
    expected = (expected + residual.double()).relu()
    assert numerics.relative_error(result, expected) < TOLERANCES[dtype]


@DTYPES
def test_images_of_a_slice(dtype):
    """Their channels lie in planes, but not right behind each other."""
    case = problem(4, groups=5, batch=3, size=(9, 8))
    input, weight = (randn(shape, dtype) for shape in operand_shapes(case, "fprop"))
    wide = randn((6, 40, 9, 8), dtype)
    wide[::2, 7:27] = input
    for images in (wide[::2, 7:27], input[:1, :1].expand(input.shape)):
        result = run(case, "fprop", "cpu", images, weight)
        assert numerics.error(case, "fprop", result, images, weight) < TOLERANCES[dtype]
