"""Augmented assignments in models that `optimize_for_inference` records write in place."""

import pickle

import pytest
import torch
from fusible import assert_same, block, images, optimised, own

ON_FLOATS = ("+=", "-=", "*=", "/=", "//=", "%=", "**=")
ON_INTEGERS = ("&=", "|=", "^=", "<<=", ">>=")


def assign(left, operator, right):
    names = {"left": left, "right": right}
    exec(f"left {operator} right", names)
    return names["left"]


@pytest.mark.parametrize("operator", ON_FLOATS)
def test_another_name_sees_the_write(operator):
    def run(self, x):
        out = self.bn(self.conv(x))
        seen = out.abs()
        assign(seen, operator, 0.75)
        return torch.cat([seen, assign(out.abs(), operator, 2 + out.abs())])

    fast = optimised(own(run, **block()))
    assert_same(pickle.loads(pickle.dumps(fast)), fast, images(channels=8))


@pytest.mark.parametrize("operator", ON_INTEGERS)
def test_another_name_sees_the_write_to_integers(operator):
    def run(self, x):
        out = self.bn(self.conv(x))
        whole = seen = (8 * x).long() + 100
        assign(whole, operator, 3)
        return out * seen

    optimised(own(run, **block()))


@pytest.mark.parametrize("operator", [*ON_FLOATS, *ON_INTEGERS])
def test_numbers_are_not_written_to(operator):
    def run(self, x):
        size = height = x.shape[2]
        return self.bn(self.conv(x)) * assign(size, operator, 3) + height

    optimised(own(run, **block()))


def test_a_product_of_matrices_makes_a_new_tensor():
    def run(self, x):
        out = before = self.bn(self.conv(x))
        out = assign(out, "@=", x.mT)
        return out + before

    optimised(own(run, **block()))


@pytest.mark.parametrize("operator", ON_FLOATS)
def test_a_write_through_a_view_keeps_the_format(operator):
    def run(self, x):
        out = self.conv(x)
        assign(out.flatten(1), operator, 2)
        return out.sum()

    assert not optimised(own(run, **block())).report.fused
