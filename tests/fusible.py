"""Models for the tests of `optimize_for_inference`, and the comparison with the original."""

import torch
from small_models import randomise, relative_error, tiny
from torch import nn

import resnext_kernels as rk


def small(**options):
    return randomise(tiny(layers=(1, 2), **options)).eval()


def block(**options):
    """A grouped convolution and its batch normalisation."""
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
    return {"conv": conv, "bn": nn.BatchNorm2d(8), "relu": nn.ReLU(inplace=True)} | options


class Own(nn.Module):
    """A user's model: its parts by name, and its forward as a function of itself and images."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.run(self, x)


def own(run, **parts):
    return randomise(Own(run, **parts)).eval().double()


def images(dtype=torch.float64, channels=3):
    return torch.randn(2, channels, 32, 32, dtype=dtype)


def assert_same(model, fast, x):
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        with torch.no_grad():
            assert relative_error(fast(given.clone()), model(given.clone())) < 1e-12


def optimised(model, channels=8):
    """The optimised model, compared with the original."""
    fast = rk.optimize_for_inference(model)
    assert_same(model, fast, images(channels=channels))
    return fast


def parts_of(fast, kind):
    return [name for name, module in fast.named_modules() if isinstance(module, kind)]
