"""One check of `verify`: what is drawn for it, and that no wrong result of a backend passes."""

import math

import pytest
import torch

from resnext_kernels import ops
from resnext_kernels.backends import aten, cpu
from resnext_kernels.problem import DIRECTIONS
from resnext_kernels.verification import checks, numerics, trials


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_one_wrong_element_of_many_is_caught(direction, monkeypatch):
    """In bfloat16 it vanishes in the norm of all."""
    shape = "weight_shape" if direction == "wgrad" else "input_shape"
    largest = max(checks.CHECKED, key=lambda p: math.prod(getattr(p, shape)))
    check = checks.Check(direction, torch.bfloat16, 2 * checks.CHECKED.index(largest))
    real = getattr(aten, direction)

    def wrong(*args):
        out = real(*args)
        size = out.float().square().mean().sqrt()
        out[-1, -1, -1, -1] += size
        return out

    monkeypatch.setattr(aten, direction, wrong)
    outcome = trials.run(check, "cpu", ["aten"], seed=0)["aten"]
    assert outcome.missed and outcome.error == pytest.approx(1 / 30, rel=0.2)


def without(part):
    """A backend's fprop that forgets bias, residual or ReLU."""
    real = aten.fprop

    def wrong(problem, input, weight, *epilogue):
        kept = [None if i == part else value for i, value in enumerate(epilogue)]
        return real(problem, input, weight, *kept)

    return wrong


@pytest.mark.parametrize("part", range(3))
def test_each_part_of_the_epilogue_is_drawn_and_checked(part, monkeypatch):
    """It is missed wherever it was drawn, and nowhere else."""
    monkeypatch.setattr(aten, "fprop", without(part))
    drawn = set()
    for number in range(60, 160):
        check = checks.Check("fused", torch.float32, number)
        trial = trials.Trial(check, "cpu", 3)
        parts = (trial.bias is not None, trial.residual is not None, trial.relu)
        drawn.add(parts)
        assert bool(trial.run("aten", 1).missed) == parts[part]
    assert drawn == set(trials.EPILOGUES)


def test_a_wrong_gradient_by_the_bias_is_caught(monkeypatch):
    """Where fprop goes through the function that users call; there the bias itself counts too."""
    real, kinds = ops.gradients, set()
    monkeypatch.setattr(
        ops, "gradients", lambda *args: tuple(g if g is None else g * 1.01 for g in real(*args))
    )
    for number in range(20):
        trial = trials.Trial(checks.Check("fprop", torch.float32, number), "cpu", 3)
        public = trial.grad is not None
        kinds.add(public)
        missed = trial.run("aten", 1).missed
        assert ("gradient by the bias: relative error" in missed) == public == bool(missed)
    assert kinds == {True, False}


def test_sums_of_equal_gradients_stay_in_the_range_of_float16(monkeypatch):
    largest = max(checks.CHECKED, key=lambda p: math.prod(p.out_size))
    check = checks.Check("fprop", torch.float16, 2 * checks.CHECKED.index(largest))
    layouts = ["channels_last", "contiguous", "expanded_pixels"]
    monkeypatch.setattr(checks.Check, "layouts", lambda *args: layouts)
    drawn = [trials.Trial(check, "cpu", seed) for seed in range(20)]
    assert any(trial.grad is not None for trial in drawn)
    assert not any(trial.run("aten", 1).missed for trial in drawn)


def test_a_backend_that_cannot_be_asked_is_missed_and_the_others_go_on(monkeypatch):
    def broken(problem):
        raise OSError("no such symbol")

    monkeypatch.setattr(cpu, "not_supported_reasons", broken)
    check = checks.Check("dgrad", torch.float32, 1)
    found = trials.run(check, "cpu", ["cpu", "aten"], seed=0)
    assert found["cpu"].missed.endswith("OSError: no such symbol") and not found["aten"].missed


@pytest.mark.parametrize("then", [None, ValueError("after it wrote")])
def test_operands_that_were_written_to_are_whole_for_the_next_backend(then, monkeypatch):
    """Also expanded ones, to which copy_ cannot write."""
    real = aten.dgrad

    def wrong(problem, grad_output, weight):
        out = real(problem, grad_output, weight)
        weight.untyped_storage().fill_(0)
        if then:
            raise then
        return out

    for number in range(1, 40, 2):
        trial = trials.Trial(checks.Check("dgrad", torch.float32, number), "cpu", 0)
        with monkeypatch.context() as patch:
            patch.setattr(aten, "dgrad", wrong)
            assert trial.run("aten", 1).missed
        assert not trial.run("aten", 1).missed


@pytest.mark.parametrize("dtype", numerics.TOLERANCES)
def test_all_threads_where_they_cost_no_more_than_they_show(dtype, monkeypatch):
    """ATen's float16 on a CPU opens a region for every group: seconds on a busy machine."""
    seen, real = [], aten.dgrad

    def noting(*args):
        seen.append(torch.get_num_threads())
        return real(*args)

    monkeypatch.setattr(aten, "dgrad", noting)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for number in (0, 1):
            trials.run(checks.Check("dgrad", dtype, number), "cpu", ["aten"], seed=0)
    finally:
        torch.set_num_threads(before)
    assert seen == [1 if dtype == torch.float16 else 3, 1]


def test_operands_depend_on_the_seed_and_the_check_alone():
    one, other = (checks.Check("dgrad", torch.float32, n) for n in (1, 3))

    def first(check, seed):
        return trials.Trial(check, "cpu", seed).first

    assert torch.equal(first(one, 5), first(one, 5))
    assert not torch.equal(first(one, 5), first(one, 6))
    assert first(one, 5).flatten()[0] != first(other, 5).flatten()[0]
