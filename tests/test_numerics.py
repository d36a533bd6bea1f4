"""The measure of error that every backend is held to, and the settings it is taken under."""

import math

import pytest
import torch
from problems import TOLERANCES, operand_shapes, problem, randn, truth

from resnext_kernels.backends import aten
from resnext_kernels.verification import checks, numerics, trials

TOLERANCE = TOLERANCES[torch.float32]
CASE = problem(1, groups=1, batch=1, size=(8, 8), kernel=(1, 1))


def test_relative_error():
    expected = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert numerics.relative_error(expected.float(), expected) == 0
    assert numerics.relative_error(torch.tensor([3.0, 4.5]), expected) == pytest.approx(0.1)
    assert numerics.relative_error(torch.zeros(2), torch.zeros(2).double()) == 0
    for wrong in (torch.ones(2), torch.tensor([0.0, math.nan]), torch.zeros(3)):
        assert numerics.relative_error(wrong, torch.zeros(2).double()) == math.inf
    assert numerics.relative_error(torch.tensor([math.inf, 4.0]), expected) == math.inf


def cancelling() -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient and input of one weight, whose 64 products add up to next to nothing."""
    grad, input = (randn(shape, torch.float32) for shape in operand_shapes(CASE, "wgrad"))
    grad[..., -1, -1] = 1
    input[..., -1, -1] -= truth(CASE, "wgrad", grad, input).item()
    return grad, input


def test_error_of_a_sum_that_cancels():
    """float32 adds the products with an error like theirs."""
    grad, input = cancelling()
    expected = truth(CASE, "wgrad", grad, input)
    products = (grad.double() * input.double()).norm()
    rounded, wrong = expected + 2e-7 * products, expected + 2e-5 * products
    assert numerics.relative_error(rounded, expected) > TOLERANCE
    assert numerics.error(CASE, "wgrad", rounded, grad, input) < TOLERANCE
    assert numerics.error(CASE, "wgrad", wrong, grad, input) > TOLERANCE


@pytest.mark.parametrize("added", [2e-7, 2e-5])
def test_verify_measures_so_too(added, monkeypatch):
    grad, input = cancelling()
    drawn = iter([grad, input])
    wrong = truth(CASE, "wgrad", grad, input) + added * (grad.double() * input.double()).norm()
    monkeypatch.setattr(checks, "CHECKED", (CASE,))
    monkeypatch.setattr(trials, "randn", lambda *args: next(drawn))
    monkeypatch.setattr(aten, "wgrad", lambda *args: wrong.float())
    outcome = trials.run(checks.Check("wgrad", torch.float32, 0), "cpu", ["aten"], seed=0)["aten"]
    assert outcome.error == pytest.approx(added, rel=0.05)
    assert bool(outcome.missed) == (added > TOLERANCE)


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


def rounded(expected: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return expected.to(dtype).double()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("relu", [False, True])
def test_a_single_wrong_element_shows_among_many(dtype, relu):
    expected = torch.randn(100_000, dtype=torch.float64)
    expected = expected.relu() if relu else expected
    out = rounded(expected, dtype)
    assert numerics.relative_error(out, expected) < TOLERANCES[dtype] / 3
    usual = expected.norm() / len(expected) ** 0.5
    out[77] += 0.5 * usual
    assert (out - expected).norm() / expected.norm() < TOLERANCES[torch.bfloat16]
    assert numerics.relative_error(out, expected) > TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("count", [1, 2, 100, 100_000])
def test_rounding_alone_is_no_miss_whatever_the_range(dtype, count):
    """One element that stands out, one beside which all are zero, and all of different sizes."""
    expected = torch.randn(3, count, dtype=torch.float64)
    expected[0, 1:] *= 1e-3
    expected[1, 1:] = 0
    expected[2] = torch.logspace(-4, 4, count, dtype=torch.float64)
    for row in expected:
        assert numerics.relative_error(rounded(row, dtype), row) < TOLERANCES[dtype] / 2


def test_of_few_elements_the_norm_decides():
    for count in (1, 7, 900):
        expected, wrong = torch.randn(2, count, dtype=torch.float64)
        norms = float((wrong - expected).norm() / expected.norm())
        assert numerics.relative_error(wrong, expected) == pytest.approx(norms)


def test_strict_leaves_everything_as_it_was():
    before = torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()
    with pytest.raises(KeyError), numerics.strict():
        assert torch.empty(8).isnan().all() and not torch.backends.cudnn.allow_tf32
        raise KeyError
    after = torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()
    assert after == before
