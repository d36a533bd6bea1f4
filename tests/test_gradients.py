"""The operators' gradients beside those of `F.conv2d`: any strides, second derivatives."""

import pytest
import torch
import torch.nn.functional as F
from problems import TOLERANCES, problem, randn, relative_error, skip_unless_loaded, targets

import resnext_kernels as rk
from resnext_kernels import ops
from resnext_kernels.backends import aten, cpu

each_target = pytest.mark.parametrize(("backend", "device"), targets())
each_format = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=str
)


def leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().requires_grad_()


def gradients_through(function, grad_through, operands, case, options):
    operands = [leaf(t) for t in operands]
    grad_through(function(*operands, *case.convolution, **options)).backward()
    return [t.grad for t in operands]


GRAD_THROUGH = {
    "sum": lambda y: y.sum(),
    "mean over pixels": lambda y: y.mean((2, 3)).square().sum(),
    "expanded": lambda y: (y + y[:1].detach()).sum((0, 2)).square().sum(),
    "cat": lambda y: torch.cat([y, y.sin()], 1).square().sum(),
    "split": lambda y: sum((i + 1) * t.sum() for i, t in enumerate(y.chunk(2, 1))),
    "permuted": lambda y: y.permute(3, 2, 1, 0).contiguous().square().sum(),
    "window": lambda y: y[:, 1:, ::2, 1:-1].square().sum(),
    "channels_last": lambda y: y.contiguous(memory_format=torch.channels_last).square().sum(),
}


@pytest.mark.parametrize("way", GRAD_THROUGH)
@each_format
@pytest.mark.parametrize(
    "case", [problem(4, size=(6, 8)), problem(3, 5, stride=(2, 1), size=(9, 8))], ids=str
)
@each_target
def test_gradients_of_any_strides(backend, device, case, memory_format, way):
    """The strides that autograd gives to the output's gradient are whatever follows leaves."""
    skip_unless_loaded(backend, device, case)
    input = randn(case.input_shape, torch.float32, device=device)
    input = input.contiguous(memory_format=memory_format)
    weight = randn(case.weight_shape, torch.float32, device=device)
    bias = torch.randn(case.out_channels, device=device)
    operands, through = [input, weight, bias], GRAD_THROUGH[way]
    doubled = [t.double().cpu() for t in operands]
    expected = gradients_through(F.conv2d, through, doubled, case, {})
    grads = gradients_through(rk.grouped_conv2d, through, operands, case, {"backend": backend})
    for grad, truth in zip(grads, expected, strict=True):
        assert relative_error(grad, truth) < TOLERANCES[torch.float32]


@each_format
@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck(memory_format, bias):
    case = problem(2, 3, batch=2, size=(4, 3), stride=(2, 1), dilation=(1, 2))
    operands = [randn(case.input_shape, torch.float64).contiguous(memory_format=memory_format)]
    operands.append(randn(case.weight_shape, torch.float64))
    operands += [torch.randn(case.out_channels, dtype=torch.float64)] if bias else []
    operands = [leaf(t) for t in operands]

    def function(input, weight, bias=None):
        return rk.grouped_conv2d(input, weight, bias, *case.convolution)

    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_gradcheck_of_fused(activation):
    case = problem(2, 3, batch=2, size=(4, 3))
    shapes = (case.input_shape, case.weight_shape, (case.out_channels,), case.output_shape)
    operands = [leaf(torch.randn(shape, dtype=torch.float64)) for shape in shapes]

    def function(*operands):
        return ops.grouped_conv2d_fused(*operands, *case.convolution, activation, "auto")

    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(
    "case", [problem(8, 16, size=(6, 5)), problem(8, 4, size=(6, 5), stride=(2, 1))], ids=str
)
@each_target
def test_double_backward(backend, device, case, dtype, wanted):
    """A penalty on the gradients named by ``wanted``, differentiated by all operands."""
    skip_unless_loaded(backend, device, case)
    input, weight = (randn(s, dtype, device=device) for s in (case.input_shape, case.weight_shape))
    bias = torch.randn(case.out_channels, dtype=dtype, device=device)
    grad = randn(case.output_shape, dtype, device=device)

    def penalised(function, *operands):
        operands = [leaf(t) for t in operands]
        output = function(*operands[:3], *case.convolution)
        grads = torch.autograd.grad(output, operands[:3], operands[3], create_graph=True)
        sum(grads[i].square().sum() for i in wanted).backward()
        return [t.grad for t in operands]

    def served(*args):
        return rk.grouped_conv2d(*args, backend=backend)

    operands = [input, weight, bias, grad]
    expected = penalised(F.conv2d, *(t.double().cpu() for t in operands))
    for out, truth in zip(penalised(served, *operands), expected, strict=True):
        assert (out is None) == (truth is None)
        if truth is not None:
            assert relative_error(out, truth) < TOLERANCES[dtype]


def test_backward_twice_gives_the_same():
    input, weight = leaf(torch.randn(2, 8, 7, 7)), leaf(torch.randn(8, 4, 3, 3))
    output = rk.grouped_conv2d(input, weight, None, 1, 1, 1, 2)
    grad = torch.randn_like(output)
    first = torch.autograd.grad(output, (input, weight), grad, retain_graph=True)
    second = torch.autograd.grad(output, (input, weight), grad)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)], ids=str)
def test_gradients_nobody_needs_are_not_computed(monkeypatch, needs):
    done = []
    for backend in (aten, cpu):
        for direction in ("dgrad", "wgrad"):
            monkeypatch.setattr(backend, direction, _recorded(done, getattr(backend, direction)))
    operands = [torch.randn(2, 8, 7, 7), torch.randn(8, 4, 3, 3), torch.randn(8)]
    for operand, needed in zip(operands, needs, strict=True):
        operand.requires_grad_(bool(needed))
    rk.grouped_conv2d(*operands, 1, 1, 1, 2).square().sum().backward()
    assert [t.grad is not None for t in operands] == [bool(n) for n in needs]
    assert done == [name for name, needed in zip(("dgrad", "wgrad"), needs, strict=False) if needed]


def _recorded(done: list[str], function):
    def wrapper(*args):
        done.append(function.__name__)
        return function(*args)

    return wrapper


def test_nothing_is_recorded_without_grad():
    weight = leaf(torch.randn(8, 4, 3, 3))
    with torch.no_grad():
        assert not rk.grouped_conv2d(torch.randn(1, 8, 5, 5), weight, groups=2).requires_grad
    with torch.inference_mode():
        assert rk.grouped_conv2d(torch.randn(1, 8, 5, 5), weight, groups=2).is_inference()


def test_relu_of_fused_stops_infinite_gradients():
    """Where the activation is off the gradient is 0, whatever arrives: never inf * 0."""
    input, weight = torch.ones(1, 2, 2, 2), leaf(-torch.ones(2, 1, 1, 1))
    out = ops.grouped_conv2d_fused(
        input, weight, None, None, (1, 1), (0, 0), (1, 1), 2, "relu", "auto"
    )
    out.backward(torch.full_like(out, float("inf")))
    assert torch.equal(weight.grad, torch.zeros_like(weight))
