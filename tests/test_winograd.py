"""What Winograd's way, by which the CPU kernels compute 3x3 taps, must not change."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from problems import TOLERANCES, operand_shapes, problem, randn, relative_error, run, truth

import resnext_kernels.backends.cpu as cpu

pytestmark = pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message)
DTYPES = pytest.mark.parametrize("dtype", cpu.DTYPES, ids=lambda dtype: str(dtype)[6:])
DIRECTIONS = pytest.mark.parametrize("direction", ["fprop", "dgrad"])
CASES = [
    *(
        problem(width, padding=(pad, 3 - pad), size=(9, 30))
        for width in (8, 24)
        for pad in range(4)
    ),
    problem(8, groups=3, size=(8, 9)),
    problem(8, 16, groups=3, size=(8, 9)),
    problem(40, 24, groups=1, size=(5, 57)),
    problem(16, groups=70, batch=1, size=(6, 6)),  # two chunks
    problem(64, groups=5, batch=3, size=(7, 7)),
    problem(16, groups=1, batch=1, size=(1, 64)),
    problem(112, groups=1, batch=1, size=(33, 2)),
    problem(9, 11, groups=4, batch=5, size=(3, 3)),
    problem(16, batch=7, size=(2, 5)),
    # Tiles row by row, where rows of them do not fill a block of some instruction set.
    *(problem(width, groups=3, size=(13, 14)) for width in (16, 24, 64)),
    *(problem(width, groups=3, size=(27, 26), stride=(2, 2)) for width in (24, 64)),
    problem(8, groups=4, size=(27, 28)),
    problem(32, 16, batch=1, padding=(2, 0), size=(12, 15)),
    problem(24, groups=1, batch=3, size=(9, 18)),
    *(
        problem(w, padding=(pad, 3 - pad), size=(18, 61), stride=(2, 2))
        for w in (8, 24)
        for pad in range(4)
    ),
    problem(40, 24, groups=1, size=(9, 70), stride=(2, 2)),
    problem(56, groups=7, batch=3, size=(14, 14), stride=(2, 2)),
    problem(17, 19, groups=5, batch=1, size=(33, 7), stride=(2, 2)),
    # dgrad at stride 2, for odd padding; four pixels a tile, of which the last have one to four.
    *(
        problem(w, padding=pads, size=(17 + w % 3, 58 + w % 4), stride=(2, 2))
        for w in (8, 16, 25, 34, 59)
        for pads in ((1, 1), (1, 3), (3, 1), (3, 3))
    ),
    problem(8, 32, groups=3, size=(21, 24), stride=(2, 2)),
    problem(72, 8, groups=2, batch=3, size=(14, 15), stride=(2, 2)),
    problem(16, groups=70, batch=2, size=(12, 13), stride=(2, 2)),
    problem(64, groups=1, batch=6, size=(4, 3), stride=(2, 2)),
    problem(32, groups=2, batch=30, size=(1, 2), stride=(2, 2)),
]


@DTYPES
@DIRECTIONS
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case, direction, dtype):
    operands = [randn(shape, dtype) for shape in operand_shapes(case, direction)]
    result = run(case, direction, "cpu", *operands)
    assert relative_error(result, truth(case, direction, *operands)) < TOLERANCES[dtype]


@DIRECTIONS
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [8, 24, 64, 168])
def test_as_accurate_as_products_summed_in_order(width, stride, direction):
    case = problem(width, groups=2, batch=1, size=(24, 32), stride=(stride, stride))
    source, weight = (randn(shape, torch.float32) for shape in operand_shapes(case, direction))
    matrices = weight.view(2, width, width, 3, 3)
    if direction == "fprop":
        pixels = F.unfold(source, 3, padding=1, stride=stride)
    else:  # the taps turned, over gradients with zeros between them
        matrices = matrices.transpose(1, 2).flip(3, 4)
        spread = torch.zeros(1, 2 * width, case.in_size[0] + 2, case.in_size[1] + 2)
        spread[..., 1:-1:stride, 1:-1:stride] = source
        pixels = F.unfold(spread, 3)
    pixels = pixels.view(2, 9 * width, 1, -1)
    in_order = torch.zeros(2, width, pixels.shape[-1])
    for w, x in zip(matrices.reshape(2, width, -1).unbind(-1), pixels.unbind(1), strict=True):
        in_order.addcmul_(w[..., None], x)
    expected = truth(case, direction, source, weight)
    ours = relative_error(run(case, direction, "cpu", source, weight), expected)
    # Beside sums of a quarter as many products the transforms' own roundings count for more.
    most = 1.6 if (direction, stride) == ("dgrad", 2) else 1.2
    assert ours < most * relative_error(in_order.view_as(expected), expected)


@DIRECTIONS
@pytest.mark.parametrize("stride", [1, 2])
def test_sums_of_pixels_beyond_the_largest_number(direction, stride):
    """They are infinite in a patch's transform, and in no result."""
    case = problem(32, size=(19, 20), stride=(stride, stride))
    shapes = operand_shapes(case, direction)
    operands = [
        3e38 * randn(shapes[0], torch.float32).sign(),
        1e-3 * randn(shapes[1], torch.float32),
    ]
    result = run(case, direction, "cpu", *operands)
    assert relative_error(result, truth(case, direction, *operands)) < TOLERANCES[torch.float32]


@DTYPES
def test_an_infinite_pixel_beside_an_epilogue(dtype):
    """What is computed anew gets its residual once."""
    case = dataclasses.replace(problem(24, groups=3, batch=2, size=(11, 12)), dtype=dtype)
    input, weight, bias, residual = (
        randn(shape, dtype, "channels_last" if len(shape) == 4 else "contiguous")
        for shape in (case.input_shape, case.weight_shape, (72,), case.output_shape)
    )
    input[1, 30, 5, 5] = float("inf")
    conv = case.stride, case.padding, case.dilation, case.groups
    sums = F.conv2d(input.double(), weight.double(), bias.double(), *conv) + residual.double()
    result = cpu.fprop(case, input, weight, bias, residual, True)
    expected = sums.relu()
    assert torch.equal(result.isinf(), expected.isinf()) and expected.isinf().any()
    finite = expected.isfinite()
    assert relative_error(result.where(finite, 0), expected.where(finite, 0)) < TOLERANCES[dtype]
