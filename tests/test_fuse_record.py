"""Forwards whose graph would not tell all they do: recorded all the same, left alone or refused."""

from __future__ import annotations

import pickle

import pytest
import torch
from fusible import block, optimised, own, parts_of
from problems import relative_error
from torch import nn

import resnext_kernels as rk
from resnext_kernels.problem import ProblemError


class Whole(nn.Module):
    """A part, and a convolution after it."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.last = part, nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.last(self.part(x))


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.kept = None
        self.register_buffer("calls", torch.ones(()))
        self.outputs = {}


class Keeps(Part):
    """Control flow on a tensor, after something was kept for later calls."""

    def forward(self, x):
        if self.kept is None:
            self.kept = self.scale.exp()
        y = self.conv(x) * self.kept
        return -y if y.sum() > 1e9 else y


class KeepsItsOutput(Part):
    def forward(self, x):
        self.kept = self.conv(x)
        return -self.kept if self.kept.sum() > 1e9 else self.kept


class Counts(Part):
    def forward(self, x):
        self.calls.add_(1)
        return self.conv(x) * self.calls


class CountsAnew(Part):
    def forward(self, x):
        self.calls = self.calls + 1
        return self.conv(x) * self.calls


class Draws(Part):
    def forward(self, x):
        return self.conv(x) + torch.rand(1)


class ReturnsWhatHooksCollect(Part):
    def __init__(self) -> None:
        super().__init__()
        self.conv.register_forward_hook(self.collect)

    def collect(self, module, inputs, output):
        self.outputs["conv"] = output

    def forward(self, x):
        self.conv(x)
        return list(self.outputs.values())


@pytest.mark.parametrize("kind", [Keeps, KeepsItsOutput, Counts, CountsAnew])
@torch.no_grad()
def test_such_a_part_stays_as_it_is(kind):
    model = Whole(kind()).eval()
    fast = rk.optimize_for_inference(model)
    assert "part" in fast.report.left
    for _ in range(3):
        x = torch.randn(2, 8, 7, 9)
        assert relative_error(fast(x), model(x).double()) < 1e-5
    if kind is not KeepsItsOutput:  # whose output, of a call, torch.save would write as well
        pickle.loads(pickle.dumps(fast))


def test_what_a_failed_recording_leaves_behind_is_gone():
    fast = rk.optimize_for_inference(Whole(KeepsItsOutput()).eval())
    assert fast.part.kept is None and pickle.dumps(fast)


@torch.no_grad()
def test_random_numbers_are_drawn_anew():
    fast, x = rk.optimize_for_inference(Whole(Draws()).eval()), torch.randn(2, 8, 7, 9)
    assert not torch.equal(fast(x), fast(x))


@pytest.mark.parametrize(
    ("kind", "reason"), [(Counts, "writes to a buffer"), (Draws, "draws random numbers")]
)
def test_a_model_that_does_so_itself_is_refused(kind, reason):
    with pytest.raises(ProblemError, match=reason):
        rk.optimize_for_inference(kind().eval())


@pytest.mark.parametrize("warm", [False, True])
def test_what_hooks_collect_is_refused(warm):
    model = ReturnsWhatHooksCollect().eval()
    if warm:
        model.outputs["conv"] = torch.ones(2, 8, 7, 9)
    with pytest.raises(ProblemError, match="returns what hooks on its parts collect"):
        rk.optimize_for_inference(model)


def test_a_hook_beside_what_is_returned_is_none_of_it():
    model = Whole(Part().conv).eval()
    seen = []
    model.part.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    rk.optimize_for_inference(model)(torch.randn(2, 8, 7, 9))
    assert seen == [(2, 8, 7, 9)]


def test_a_normalisation_after_a_relu_is_told_as_such():
    class Net(Part):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x):
            y = self.conv(x).relu()
            return self.norm(y) + y

    report = rk.optimize_for_inference(Net().eval()).report
    assert report.left == {"norm": "it does not follow a convolution"}


class Halved(nn.Dropout):
    """One that cannot be recorded."""

    def forward(self, x):
        return x / 2 if x.sum() < torch.inf else x


@pytest.mark.parametrize("kind", [nn.ReLU, nn.Identity, nn.Dropout, Halved])
def test_forwards_that_are_not_torchs_stay(kind):
    part = kind()
    if kind is not Halved:
        part.forward = lambda x: x / 2
    model = own(lambda self, x: self.part(self.bn(self.conv(x))), **block(part=part))
    assert parts_of(optimised(model), kind) == ["part"]


def test_a_sum_may_be_written_into_what_a_convolution_reads():
    def run(self, x):
        copy = x * 1
        out = self.conv(copy)
        torch.add(x, 1, out=copy)
        return self.relu(out + copy)

    optimised(own(run, **block()))
