"""Autocast, beside what it does to `F.conv2d`."""

import pytest
import torch
import torch.nn.functional as F
from problems import TOLERANCES, relative_error

import resnext_kernels as rk
from resnext_kernels import ops

LOW = [torch.bfloat16, torch.float16]
each_low_dtype = pytest.mark.parametrize("low", LOW, ids=lambda d: str(d)[6:])


def operands(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Input (2, 8, 6, 7), weight (8, 4, 3, 3), bias (8,), as leaves that need gradients."""
    shapes = (2, 8, 6, 7), (8, 4, 3, 3), (8,)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def both(*args):
    """Our output and that of `F.conv2d`, in two groups."""
    return [function(*args, 1, 1, 1, 2) for function in (rk.grouped_conv2d, F.conv2d)]


@each_low_dtype
@pytest.mark.parametrize("dtype", [torch.float32, *LOW, torch.float64], ids=lambda d: str(d)[6:])
def test_dtype_and_values(low, dtype):
    """float64 stays as it is, all else comes out in the dtype that autocast names."""
    args = operands(dtype)
    with torch.autocast("cpu", low):
        ours, theirs = both(*args)
    assert ours.dtype == theirs.dtype == (dtype if dtype == torch.float64 else low)
    assert ours.stride() == theirs.stride()
    rounded = [t.detach().to(ours.dtype).double() for t in args]
    expected = F.conv2d(*rounded, 1, 1, 1, 2)
    assert relative_error(ours, expected) < TOLERANCES.get(ours.dtype, 1e-13)


@each_low_dtype
def test_mixed_dtypes_are_cast_to_one(low):
    input, weight, bias = operands()
    with torch.autocast("cpu", low):
        ours, theirs = both(input.bfloat16(), weight, bias.half())
    assert ours.dtype == theirs.dtype == low
    assert relative_error(ours, theirs.double()) < TOLERANCES[low]


@each_low_dtype
def test_gradients_come_back_in_the_dtype_of_the_operands(low):
    args, grads = operands(), []
    grad = torch.randn(2, 8, 6, 7)
    with torch.autocast("cpu", low):
        outputs = both(*args)
    for output in outputs:
        grads.append(torch.autograd.grad(output, args, grad.to(low)))
    for ours, theirs in zip(*grads, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert relative_error(ours, theirs.double()) < TOLERANCES[low]


def test_backward_within_the_region():
    """Also of what was computed outside: a gradient keeps the dtype of its forward."""
    args = operands()
    outside = rk.grouped_conv2d(*args, 1, 1, 1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = rk.grouped_conv2d(*args, 1, 1, 1, 2)
        (inside.float() + outside).square().sum().backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.isfinite().all() for t in args)


def test_gradient_penalty_within_the_region():
    args = operands()
    with torch.autocast("cpu", torch.bfloat16):
        penalties = []
        for output in both(*args):
            grad = torch.autograd.grad(output.float().square().sum(), args[0], create_graph=True)[0]
            penalties.append(torch.autograd.grad(grad.square().sum(), args[1])[0])
    ours, theirs = penalties
    assert ours.dtype == theirs.dtype == torch.float32
    assert relative_error(ours, theirs.double()) < 2 * TOLERANCES[torch.bfloat16]


def test_regions_nest():
    """Without torch's cache of casts, which serves float16 leaves to the bfloat16 region."""
    args = operands()
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        with torch.autocast("cpu", enabled=False):
            full = both(*args)
        with torch.autocast("cpu", torch.float16, cache_enabled=False):
            half = both(*args)
        low = both(*args)
    after = both(*args)
    for outputs, dtype in (
        (full, torch.float32), (half, torch.float16), (low, torch.bfloat16), (after, torch.float32),
    ):  # fmt: skip
        assert [t.dtype for t in outputs] == [dtype] * 2
    torch.testing.assert_close(full[0], after[0], rtol=0, atol=0)


def test_disabled_region_keeps_refusing_mixed_dtypes():
    input, weight, _ = operands()
    with (
        torch.autocast("cpu", enabled=False),
        pytest.raises(rk.ProblemError, match="weight: dtype"),
    ):
        rk.grouped_conv2d(input.bfloat16(), weight, groups=2)


@each_low_dtype
def test_fused(low):
    input, weight, bias = operands()
    residual = torch.randn(2, 8, 6, 7)
    conv = ((1, 1), (1, 1), (1, 1), 2)
    with torch.autocast("cpu", low):
        out = ops.grouped_conv2d_fused(input, weight, bias, residual, *conv, "relu", "auto")
    rounded = [t.detach().to(low).double() for t in (input, weight, bias)]
    expected = (F.conv2d(*rounded, 1, 1, 1, 2) + residual.to(low).double()).relu()
    assert out.dtype == low
    assert relative_error(out, expected) < TOLERANCES[low]


@each_low_dtype
def test_module(low):
    module = rk.GroupedConv2d(8, 16, 3, padding=1, groups=4)
    with torch.autocast("cpu", low):
        out = module(torch.randn(2, 8, 5, 5))
    out.float().sum().backward()
    assert out.dtype == low
    assert module.weight.grad.dtype == module.bias.grad.dtype == torch.float32


def test_transforms_too():
    args = operands()
    with torch.autocast("cpu", torch.bfloat16):
        grads = torch.func.grad(lambda *a: rk.grouped_conv2d(*a, 1, 1, 1, 2).float().sum(), (0, 1))(
            *args
        )
        mapped = torch.func.vmap(lambda x: rk.grouped_conv2d(x, *args[1:], 1, 1, 1, 2))(args[0])
    assert [t.dtype for t in grads] == [torch.float32] * 2
    assert mapped.dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each_low_dtype
def test_cuda(low):
    args = [t.detach().cuda().requires_grad_() for t in operands()]
    with torch.autocast("cuda", low):
        ours, theirs = both(*args)
    assert ours.dtype == theirs.dtype == low
    assert relative_error(ours, theirs.double().cpu()) < TOLERANCES[low]


@pytest.mark.parametrize("operator", ["grouped_conv2d", "grouped_conv2d_fused"])
@pytest.mark.parametrize("device", ["CPU", "CUDA", "XPU"])
def test_devices_with_a_kernel_for_autocast(operator, device):
    name = f"resnext_kernels::{operator}"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, f"Autocast{device}")
