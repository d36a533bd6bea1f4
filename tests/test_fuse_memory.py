"""Writes to what is a view in one memory format and a copy in another: results stay the same."""

import operator
import pickle

import pytest
import torch
import torch.nn.functional as F
from fusible import block, images, optimised, own
from small_models import relative_error
from torch import nn

import resnext_kernels as rk

WRITES = {
    "flatten": lambda self, y: y.flatten(1).mul_(2),
    "function": lambda self, y: torch.flatten(y, 2).relu_(),
    "module": lambda self, y: self.flat(y).add_(1),
    "reshape": lambda self, y: torch.sigmoid_(y.reshape(2, -1)),
    "ravel": lambda self, y: y.ravel().clamp_(min=0),
    "contiguous": lambda self, y: y.contiguous().mul_(2),
    "a copy in the original": lambda self, y: y.permute(0, 2, 3, 1).contiguous().mul_(2),
    "views of it": lambda self, y: y.flatten(2).chunk(2, 1)[0].unsqueeze(0).mT.mul_(2),
    "it after a view": lambda self, y: y.detach().transpose(2, 3).flatten(2)[:, 1:].mul_(2),
    "item": lambda self, y: y.flatten(1).__setitem__(0, 0),
    "inplace": lambda self, y: F.relu(y.flatten(1), True),
    "inplace of a module": lambda self, y: self.relu(y.flatten(1)),
    "out": lambda self, y: torch.mul(y, 3, out=y.contiguous()),
}


@pytest.mark.parametrize("kind", WRITES)
@pytest.mark.parametrize("groups", [1, 2])
def test_a_write_in_another_shape_is_read(kind, groups):
    def run(self, x):
        y = self.bn(self.conv(x))
        WRITES[kind](self, y)
        return self.last(y)

    parts = block(conv=nn.Conv2d(8, 8, 3, padding=1, groups=groups), flat=nn.Flatten(2))
    fast = optimised(own(run, **parts, last=nn.Conv2d(8, 4, 1)))
    assert list(fast.report.fused) == ["last"]
    assert "in another shape" in fast.report.left["conv"]


def test_view_that_is_written_to():
    def run(self, x):
        y = self.bn(self.conv(x))
        y.view(-1).mul_(2)
        return y

    model, x = own(run, **block()), images(channels=8)
    assert relative_error(rk.optimize_for_inference(model)(x), model(x)) < 1e-12


VIEWS = {
    "positions": lambda y: y.view(2, -1, 16),
    "one size": lambda y: y.view((2, -1)),
    "keyword": lambda y: y.view(size=(2, -1)),
    "of another's shape": lambda y: y.view_as(y.flatten()),
    "of a dtype": lambda y: y.view(torch.int64).view(dtype=torch.float64),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_views_that_channels_last_forbids(kind):
    model, x = own(lambda self, x: VIEWS[kind](self.conv(x)), **block()), images(channels=8)
    fast = rk.optimize_for_inference(model)
    assert relative_error(fast(x), model(x)) < 1e-12


STRIDES = {
    "as_strided": lambda y: y.relu().as_strided((2, 8), (8, 1)),
    "function": lambda y: torch.as_strided(y[1:], (4, 4), (2, 1)),
    "stride": lambda y: y * y.stride(1),
    "complex": lambda y: torch.view_as_complex(y[..., :2]).abs(),
    "another dtype": lambda y: y.view(torch.float32)[..., 1::2],
}


@pytest.mark.parametrize("kind", STRIDES)
def test_strides_that_are_read(kind):
    parts = block(first=nn.Conv2d(8, 8, 1))
    model = own(lambda self, x: STRIDES[kind](self.bn(self.conv(self.first(x)))), **parts)
    fast, x = rk.optimize_for_inference(model), images(channels=8)
    assert relative_error(fast(x), model(x)) < 1e-12
    assert set(fast.report.left) == {"first", "conv", "bn"}


WRITES_TO_CONSTANTS = {
    "item": lambda y: (c := torch.zeros(2, 8, 32, 32), c.__setitem__(0, y[0]), c)[2],
    "sum": lambda y: operator.iadd(torch.zeros(2, 8, 32, 32), y),
    "out": lambda y: torch.mul(y, 2, out=torch.zeros(2, 8, 32, 32).double()),
}


@pytest.mark.parametrize("kind", WRITES_TO_CONSTANTS)
def test_writes_to_a_tensor_of_each_call(kind):
    """`torch.fx` would record one tensor for all calls, and not what is read of it."""
    inner = own(lambda self, x: WRITES_TO_CONSTANTS[kind](self.bn(self.conv(x))), **block())
    outer = own(lambda self, x: self.conv(self.inner(x).double()), **block(), inner=inner)
    fast = optimised(outer)
    assert "it writes to a tensor" in fast.report.left["inner"]
    assert list(fast.report.fused) == ["conv"]
    with pytest.raises(rk.ProblemError, match="it writes to a tensor that each call makes anew"):
        rk.optimize_for_inference(inner)


def test_a_write_that_is_read_in_the_other_shape():
    def run(self, x):
        y = self.conv(x)
        flat = y.flatten(1)
        y.mul_(2)
        return flat

    assert not optimised(own(run, **block())).report.fused


HARMLESS = {
    "not read again": lambda y: F.relu(y.flatten(1), inplace=True),
    "before": lambda y: y.mul_(2).flatten(1) + y.flatten(1),
    "a view in every format": lambda y: (y.permute(0, 2, 3, 1)[..., :3].mul_(2), y)[1],
    "a copy in every format": lambda y: y.mean((2, 3)).view(2, -1, 1, 1).relu_() * y,
    "size": lambda y: y.flatten(2).relu_().view(y.shape),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_other_writes_do_not_matter(kind):
    fast = optimised(own(lambda self, x: HARMLESS[kind](self.bn(self.conv(x))), **block()))
    assert not fast.report.left


def views_of_its_input(self, x):
    return self.conv(x if x.sum() > 0 else -x).view(2, -1).mul(2).view_as(x)


def writes_to_its_input(self, x):
    return self.conv(F.relu(x, inplace=True) if x.sum() > 0 else x.neg_()) + 1


class Writes(nn.Module):
    def forward(self, x, other=None):
        if x.sum() != 0:
            x.mul_(2)
        return x if other is None else x + other


@pytest.mark.parametrize("part", [views_of_its_input, writes_to_its_input])
def test_parts_that_are_not_looked_into(part):
    def run(self, x):
        x = self.bn(self.conv(x)) - 1
        return self.last(x + self.part(x)) + x

    parts = block(part=own(part, **block()), last=nn.Conv2d(8, 8, 3, padding=1))
    model, x = own(run, **parts), images(channels=8)
    fast = rk.optimize_for_inference(model)
    assert list(fast.report.left) == ["part"]
    assert fast.conv.at_entry and fast.last.at_entry
    for same in (fast, pickle.loads(pickle.dumps(fast))):
        assert relative_error(same(x), model(x)) < 1e-12


OTHER_NAMES = {
    "sum in place": lambda self, y: (z := y.add_(1), self.part(z), y)[2],
    "view": lambda self, y: (z := y[:1], self.part(y), z)[2],
    "both": lambda self, y: self.part(y, y.detach()),
}


@pytest.mark.parametrize("kind", OTHER_NAMES)
def test_parts_that_write_to_what_has_two_names(kind):
    model = own(lambda self, x: OTHER_NAMES[kind](self, self.conv(x)), **block(part=Writes()))
    assert optimised(model).report.left["conv"].startswith("its memory format shows")
