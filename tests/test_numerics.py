"""The measure of error that every backend is held to."""

import pytest
import torch
from problems import TOLERANCES, operand_shapes, problem, randn, truth

from resnext_kernels.verification import numerics

TOLERANCE = TOLERANCES[torch.float32]


def test_error_of_a_sum_that_cancels():
    """One sum of 64 products is next to nothing; float32 adds them with an error like theirs."""
    case = problem(1, groups=1, batch=1, size=(8, 8), kernel=(1, 1))
    grad, input = (randn(shape, torch.float32) for shape in operand_shapes(case, "wgrad"))
    grad[..., -1, -1] = 1
    input[..., -1, -1] -= truth(case, "wgrad", grad, input).item()
    expected = truth(case, "wgrad", grad, input)
    products = (grad.double() * input.double()).norm()
    rounded, wrong = expected + 2e-7 * products, expected + 2e-5 * products
    assert numerics.relative_error(rounded, expected) > TOLERANCE
    assert numerics.error(case, "wgrad", rounded, grad, input) < TOLERANCE
    assert numerics.error(case, "wgrad", wrong, grad, input) > TOLERANCE


@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("layout", ["contiguous", "expanded"])
def test_error_where_nothing_cancels(direction, layout):
    """Of random numbers, and of equal ones that add up, it is the relative error of the truth."""
    case = problem(8, size=(12, 13))
    operands = [randn(shape, torch.float32, layout) for shape in operand_shapes(case, direction)]
    expected = truth(case, direction, *operands)
    out = expected * (1 + 1e-3)
    assert numerics.error(case, direction, out, *operands) == pytest.approx(1e-3, rel=0.2)
    assert numerics.error(case, direction, expected, *operands) == 0
    assert numerics.error(case, direction, out[:1], *operands) == float("inf")
