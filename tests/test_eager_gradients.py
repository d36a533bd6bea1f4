"""The short way of calls that are differentiated: forwards and backwards round the dispatcher."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from problems import LAYOUTS, randn
from small_calls import WINDOW, assert_near, convolve, operands
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import resnext_kernels as rk
from resnext_kernels import eager, ops

FORWARD, BACKWARD = "resnext_kernels::grouped_conv2d", "resnext_kernels::grouped_conv2d_backward"


def dispatched(call: Callable[[], object]) -> set[str]:
    """Which of this package's operators the dispatcher saw during a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return {event.key for event in profile.key_averages()} & {FORWARD, BACKWARD}


def gradients(conv: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    return torch.autograd.grad(conv(*tensors).square().sum(), wanted)


def by_torch(*tensors: Tensor) -> Tensor:
    return F.conv2d(*tensors, *WINDOW)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 1, 2)], ids=str)
def test_gradients_are_short_and_alike(wanted, layout):
    tensors = (
        randn((2, 8, 6, 7), torch.float32, layout), randn((8, 4, 3, 3), torch.float32, layout),
        torch.randn(8),
    )  # fmt: skip
    for place in wanted:
        tensors[place].requires_grad_()
    expected = gradients(by_torch, *tensors)
    through_operators = gradients(lambda *t: ops.grouped_conv2d(*t, *WINDOW, "auto"), *tensors)
    for _ in range(2):  # with a new plan, and with one that was kept
        for short, operator, theirs in zip(
            gradients(convolve, *tensors), through_operators, expected, strict=True
        ):
            assert_near(short, theirs)
            assert torch.equal(short, operator) and short.stride() == operator.stride()
    assert not dispatched(lambda: gradients(convolve, *tensors))


@pytest.mark.parametrize("inference", [(0, 1, 2), (0,), (1,), (1, 2)], ids=str)
def test_inference_tensors_as_by_conv2d(inference):
    """Where all are such, a model built and fed in inference mode, nothing is recorded outside."""
    tensors = [tensor.requires_grad_(place > 0) for place, tensor in enumerate(operands())]
    with torch.inference_mode():
        for place in inference:
            tensors[place] = tensors[place].clone().requires_grad_(place > 0)
    if len(inference) == 3:
        out, expected = convolve(*tensors), by_torch(*tensors)
        assert_near(out, expected)
        assert out.requires_grad == expected.requires_grad
        assert out.is_inference() == expected.is_inference()
    else:
        for conv in (convolve, by_torch):
            with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
                conv(*tensors)


def test_the_graph_tells_its_node():
    x, w, b = operands()
    out = convolve(x.requires_grad_(), w, b)
    assert type(out.grad_fn).__name__ == f"{eager.GroupedConv2dFunction.__name__}Backward"
    assert out.requires_grad and not out._is_view()
    with torch.no_grad():
        assert convolve(x, w, b).grad_fn is None


def test_second_derivatives_are_dispatched():
    x, w, b = (tensor.requires_grad_() for tensor in operands())

    def penalty(conv: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(conv(x, w, b).square().sum(), (x, w), create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in first), (x, w, b))

    for ours, theirs in zip(penalty(convolve), penalty(by_torch), strict=True):
        assert_near(ours, theirs)
    assert BACKWARD in dispatched(lambda: penalty(convolve))


@pytest.mark.parametrize("expand", [False, True])
def test_output_gradients_of_any_strides(expand):
    x, w, _ = operands()
    x.requires_grad_()
    grad = (
        torch.ones(()).expand(2, 8, 6, 7) if expand else torch.randn(7, 8, 6, 2).permute(3, 1, 2, 0)
    )
    (ours,), (theirs,) = (
        torch.autograd.grad(conv(x, w, None), x, grad) for conv in (convolve, by_torch)
    )
    assert_near(ours, theirs)


def test_operands_changed_in_between_are_refused():
    x, w, b = (tensor.requires_grad_() for tensor in operands())
    out = convolve(x, w, b)
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_twice_backwards_is_equal():
    x, w, b = (tensor.requires_grad_() for tensor in operands())
    out = convolve(x, w, b).square().sum()
    first = torch.autograd.grad(out, (x, w, b), retain_graph=True)
    for a, again in zip(first, torch.autograd.grad(out, (x, w, b)), strict=True):
        assert torch.equal(a, again)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_recompute(reentrant):
    x, w, b = (tensor.requires_grad_() for tensor in operands())

    expected = gradients(by_torch, x, w, b)
    checkpoint(convolve, x, w, b, use_reentrant=reentrant).square().sum().backward()
    for tensor, theirs in zip((x, w, b), expected, strict=True):
        assert_near(tensor.grad, theirs)


def test_modes_see_the_way_back():
    x, w, b = (tensor.requires_grad_() for tensor in operands())
    out = convolve(x, w, b).sum()
    with FlopCounterMode(display=False) as counter:
        out.backward()
    assert counter.get_total_flops() == 2 * 2 * x.numel() * w[0].numel()


def test_autocast_casts_what_is_differentiated():
    x, w, b = (tensor.requires_grad_() for tensor in operands())
    with torch.autocast("cpu", torch.bfloat16):
        out = convolve(x, w, b)
    assert out.dtype == torch.bfloat16
    assert torch.autograd.grad(out.float().sum(), x)[0].dtype == torch.float32


class Undefined(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@pytest.mark.parametrize("residual", [None, "input"])
@pytest.mark.parametrize("short", [True, False])
def test_undefined_gradients_stay_undefined(short, residual):
    """Zeros would let an optimizer's weight decay change the weight."""
    x, w = (torch.randn(s, requires_grad=True) for s in ((2, 8, 5, 5), (8, 4, 3, 3)))
    conv = (1, 1), (1, 1), (1, 1), 2
    if residual:
        out = ops.grouped_conv2d_fused(x, w, None, x, *conv, "relu", "auto")
    elif short:
        out = rk.grouped_conv2d(x, w, None, *conv)
    else:
        out = ops.grouped_conv2d(x, w, None, *conv, "auto")
    Undefined.apply(out).sum().backward()
    assert x.grad is None and w.grad is None
