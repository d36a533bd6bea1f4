"""The convolutions of `optimize_for_inference`: precision, weights laid out once, recorders."""

import copy

import pytest
import torch
from fusible import images, small
from small_models import relative_error
from torch import nn

import resnext_kernels as rk


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model, x = small(), images(torch.float32)
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(x.double())
        error = relative_error(rk.optimize_for_inference(model.to(dtype))(x.to(dtype)), truth)
        assert error < 2 * relative_error(model(x.to(dtype)), truth)


def test_autocast():
    model, x = small(), images(torch.float32)
    fast = rk.optimize_for_inference(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out, ref = fast(x), model(x)
    assert out.dtype == ref.dtype == torch.bfloat16
    truth = model.double()(x.double())
    assert relative_error(out, truth) < 2 * relative_error(ref, truth)


@torch.no_grad()
def test_weights_laid_out_once_follow_changes():
    """In place, of dtype and back, of the shape of images."""
    fast = rk.optimize_for_inference(small())
    x = images(torch.float32)
    for change in (
        lambda: None,
        lambda: fast.conv1.weight.mul_(2),
        lambda: fast.double(),
        lambda: fast.float(),
        lambda: fast.bfloat16(),
        lambda: fast.float(),
        lambda: setattr(fast.conv1, "weight", nn.Parameter(torch.randn_like(fast.conv1.weight))),
    ):
        change()
        dtype = fast.conv1.weight.dtype
        for batch in (1, 2, 3, 1):
            part = x.to(dtype).repeat(2, 1, 1, 1)[:batch]
            truth = copy.deepcopy(fast).double()(part.double())
            assert relative_error(fast(part), truth) < (1e-5 if dtype != torch.bfloat16 else 3e-2)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_transforms_and_other_recorders():
    model, x = small().double(), images()
    fast = rk.optimize_for_inference(model)
    ref = model(x)
    assert relative_error(torch.func.vmap(fast)(x[:, None])[:, 0], ref) < 1e-12
    assert relative_error(torch.fx.symbolic_trace(fast)(x), ref) < 1e-12
    assert relative_error(torch.jit.trace(fast, x)(x), ref) < 1e-12
    assert relative_error(fast.conv1(x[0]), fast.conv1(x[:1])[0]) < 1e-12
