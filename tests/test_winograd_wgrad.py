"""What Winograd's way, by which the CPU kernels compute gradients of 3x3 taps, must not change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from problems import TOLERANCES, operand_shapes, problem, randn, relative_error, run, truth

import resnext_kernels.backends.cpu as cpu

pytestmark = pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message)
DTYPES = pytest.mark.parametrize("dtype", cpu.DTYPES, ids=lambda dtype: str(dtype)[6:])
CASES = [
    *(
        problem(24, padding=(pad, 3 - pad), size=size, stride=(stride, stride))
        for stride, size in ((1, (9, 30)), (2, (18, 61)))
        for pad in range(4)
    ),
    problem(16, groups=3, size=(8, 9)),
    problem(16, 32, groups=3, size=(8, 9)),
    problem(40, 24, groups=1, size=(5, 57)),
    problem(17, 19, groups=5, batch=2, size=(33, 7)),
    problem(32, groups=5, batch=5, size=(7, 7)),  # blocks of tiles of several images
    problem(16, groups=70, batch=1, size=(11, 10)),  # two chunks
    problem(16, groups=1, batch=1, size=(2, 97)),
    problem(112, groups=1, batch=2, size=(33, 4)),
    problem(20, batch=7, size=(2, 5)),
    problem(40, 24, groups=1, size=(9, 70), stride=(2, 2)),
    problem(56, groups=7, batch=3, size=(16, 15), stride=(2, 2)),
    problem(17, 19, groups=5, batch=1, size=(33, 12), stride=(2, 2)),
]


@DTYPES
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case, dtype):
    operands = [randn(shape, dtype) for shape in operand_shapes(case, "wgrad")]
    result = run(case, "wgrad", "cpu", *operands)
    assert relative_error(result, truth(case, "wgrad", *operands)) < TOLERANCES[dtype]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [16, 64])
def test_as_accurate_as_products_summed_in_order(width, stride):
    case = problem(width, groups=2, batch=1, size=(24, 40), stride=(stride, stride))
    grad_output, input = (randn(shape, torch.float32) for shape in operand_shapes(case, "wgrad"))
    pixels = F.unfold(input, 3, padding=1, stride=stride).view(2, 1, 9 * width, -1)
    in_order = torch.zeros(2, width, 9 * width)
    grads = grad_output.flatten(2).view(2, width, 1, -1)
    for g, x in zip(grads.unbind(-1), pixels.unbind(-1), strict=True):
        in_order.addcmul_(g, x)
    expected = truth(case, "wgrad", grad_output, input)
    ours = relative_error(run(case, "wgrad", "cpu", grad_output, input), expected)
    assert ours < 1.2 * relative_error(in_order.view_as(expected), expected)


@pytest.mark.parametrize("large", ["grad_output", "input"])
def test_sums_of_pixels_beyond_the_largest_number(large):
    """They are infinite in a tile's transform, and in no gradient."""
    case = problem(16, size=(9, 10))
    operands = [
        scale * randn(shape, torch.float32).sign()
        for shape, scale in zip(
            operand_shapes(case, "wgrad"),
            (3e38, 1e-3) if large == "grad_output" else (1e-3, 3e38),
            strict=True,
        )
    ]
    result = run(case, "wgrad", "cpu", *operands)
    assert relative_error(result, truth(case, "wgrad", *operands)) < TOLERANCES[torch.float32]


@DTYPES
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_pixel_without_a_finite_value_stays_in_its_channel(value, dtype):
    case = problem(24, groups=3, batch=2, size=(11, 12))
    grad_output, input = (randn(shape, dtype) for shape in operand_shapes(case, "wgrad"))
    input[1, 30, 5, 5] = value
    result = run(case, "wgrad", "cpu", grad_output, input)
    touched = ~torch.isfinite(result)
    expected = torch.zeros_like(touched)
    expected[24:48, 6] = True
    assert torch.equal(touched, expected)
