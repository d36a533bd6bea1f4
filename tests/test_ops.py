"""The operators beside `F.conv2d`: strides, dtypes, gradients, autocast, FLOPs, opcheck."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from problems import (
    LAYOUTS,
    TOLERANCES,
    problem,
    randn,
    relative_error,
    skip_unless_loaded,
    targets,
)
from torch.utils.flop_counter import FlopCounterMode

import resnext_kernels as rk
from resnext_kernels import ops
from resnext_kernels.backends import aten, cpu
from resnext_kernels.problem import ConvProblem

each_target = pytest.mark.parametrize(("backend", "device"), targets())
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
MEMORY_FORMATS = [torch.contiguous_format, torch.channels_last]
SHAPES = [
    problem(4),
    problem(8, batch=0),
    problem(8, 4, batch=1, stride=(2, 1)),
    problem(1, groups=1),
    problem(1, 4, groups=1, batch=0),
    problem(4, 1, groups=1),
    problem(1, groups=8),
    problem(8, size=(1, 1)),
    problem(8, size=(1, 1), kernel=(1, 1)),
    problem(1, batch=1, groups=1, size=(1, 1), kernel=(1, 1)),
    problem(4, size=(3, 3), padding=(0, 0)),
    problem(4, groups=4, size=(5, 1)),
]


def conv(case: ConvProblem) -> tuple:
    return case.stride, case.padding, case.dilation, case.groups


def leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().requires_grad_()


def described(tensor: torch.Tensor) -> tuple:
    """Shape, dtype, and the strides that tell of a layout: not those of sizes below 2."""
    strides = [s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
    return tuple(tensor.shape), tensor.dtype, strides


@pytest.mark.parametrize("case", SHAPES, ids=str)
@pytest.mark.parametrize("weight_format", MEMORY_FORMATS, ids=str)
@pytest.mark.parametrize(
    "dtype", [*TOLERANCES, torch.float64, torch.complex64], ids=lambda d: str(d)[6:]
)
@each_layout
def test_results_look_like_those_of_conv2d(case, dtype, layout, weight_format):
    """Shape, strides and dtype of the output, and of the gradients that autograd leaves."""
    input = randn(case.input_shape, dtype, layout)
    weight = randn(case.weight_shape, dtype).contiguous(memory_format=weight_format)
    bias = randn((case.out_channels, 1, 1, 1), dtype).flatten()
    seen = []
    for function in (F.conv2d, rk.grouped_conv2d):
        operands = [leaf(t) for t in (input, weight, bias)]
        output = function(*operands, *conv(case))
        output.backward(torch.ones_like(output))
        seen.append([output.stride(), *map(described, [output, *(t.grad for t in operands)])])
    assert seen[0] == seen[1]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 4), (4, 3), (7, 5)], ids=str)
@pytest.mark.parametrize("dilation", [1, 2, (2, 1)])
@pytest.mark.parametrize("shape", [(2, 16, 13, 15), (16, 13, 15)], ids=len)
@each_target
def test_named_padding_and_unbatched_input(backend, device, shape, kernel, padding, dilation):
    pair = (dilation, dilation) if isinstance(dilation, int) else dilation
    skip_unless_loaded(backend, device, problem(8, size=(13, 15), kernel=kernel, dilation=pair))
    input, weight = torch.randn(shape, device=device), torch.randn(16, 8, *kernel, device=device)
    bias = torch.randn(16, device=device)
    out = rk.grouped_conv2d(input, weight, bias, 1, padding, dilation, 2, backend=backend)
    args = [t.double().cpu() for t in (input, weight, bias)]
    expected = F.conv2d(*args, 1, padding, dilation, 2)
    assert relative_error(out, expected) < TOLERANCES[torch.float32]


def gradients_through(function, grad_through, operands, case, options):
    operands = [leaf(t) for t in operands]
    grad_through(function(*operands, *conv(case), **options)).backward()
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
@pytest.mark.parametrize("memory_format", MEMORY_FORMATS, ids=str)
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


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck(memory_format, bias):
    case = problem(2, 3, batch=2, size=(4, 3), stride=(2, 1), dilation=(1, 2))
    operands = [randn(case.input_shape, torch.float64).contiguous(memory_format=memory_format)]
    operands.append(randn(case.weight_shape, torch.float64))
    operands += [torch.randn(case.out_channels, dtype=torch.float64)] if bias else []
    operands = [leaf(t) for t in operands]

    def function(input, weight, bias=None):
        return rk.grouped_conv2d(input, weight, bias, *conv(case))

    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_gradcheck_of_fused(activation):
    case = problem(2, 3, batch=2, size=(4, 3))
    shapes = (case.input_shape, case.weight_shape, (case.out_channels,), case.output_shape)
    operands = [leaf(torch.randn(shape, dtype=torch.float64)) for shape in shapes]

    def function(*operands):
        return ops.grouped_conv2d_fused(*operands, *conv(case), activation, "auto")

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
        output = function(*operands[:3], *conv(case))
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


def test_another_backend_for_the_same_shapes_is_asked_anew():
    case = problem(8, groups=3)
    input, weight = (randn(s, torch.float16) for s in (case.input_shape, case.weight_shape))
    grad = ops.grouped_conv2d(input, weight, None, *case.convolution, "aten")
    backward = (grad, input, weight, *case.convolution, [True, True, False])
    ops.grouped_conv2d_backward(*backward, "aten")
    with pytest.raises(rk.ProblemError, match="'cpu' cannot serve fprop"):
        ops.grouped_conv2d(input, weight, None, *case.convolution, "cpu")
    with pytest.raises(rk.ProblemError, match="'cpu' cannot serve dgrad"):
        ops.grouped_conv2d_backward(*backward, "cpu")


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


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_flops(groups):
    """As torch counts them, save that it counts a grouped weight gradient ``groups`` times."""
    counts = {}
    for function in (F.conv2d, rk.grouped_conv2d):
        input, weight = leaf(torch.randn(2, 8, 9, 7)), leaf(torch.randn(16, 8 // groups, 3, 3))
        with FlopCounterMode(display=False) as counter:
            output = function(input, weight, None, 2, 1, 1, groups)
            forward = counter.get_total_flops()
            output.sum().backward()
        counts[function] = forward, counter.get_total_flops() - forward
    forward, backward = counts[rk.grouped_conv2d]
    assert forward == counts[F.conv2d][0] == 2 * output.numel() * weight[0].numel()
    assert backward == 2 * forward
    assert backward == counts[F.conv2d][1] or groups > 1


def test_flops_are_counted_where_someone_only_asked_for_the_counter():
    code = """if True:
        import importlib.util
        import torch
        import resnext_kernels as rk
        assert importlib.util.find_spec("torch.utils.flop_counter").name
        from torch.utils.flop_counter import FlopCounterMode
        with FlopCounterMode(display=False) as counter:
            rk.grouped_conv2d(torch.randn(1, 4, 5, 5), torch.randn(4, 2, 3, 3), groups=2)
        assert counter.get_total_flops() == 2 * 36 * 18
    """
    subprocess.run([sys.executable, "-c", code], check=True)


OPCHECK_CASES = {
    "contiguous": problem(4),
    "channels_last": problem(4, stride=(2, 1)),
    "permuted": problem(3, 5, batch=1, size=(5, 4)),
    "window_last": problem(1, groups=8),
}


@pytest.mark.parametrize("layout", OPCHECK_CASES)
@pytest.mark.parametrize("mask", [None, (True, True, True), (False, True, False)], ids=str)
def test_opcheck(layout, mask):
    """``mask`` None checks the forward operator, else the backward one of these outputs."""
    case = OPCHECK_CASES[layout]
    input, weight, grad = opcheck_operands(layout, case)
    bias = torch.randn(case.out_channels, requires_grad=True)
    if mask is None:
        torch.library.opcheck(ops.grouped_conv2d, (input, weight, bias, *conv(case), "auto"))
    else:
        args = (grad, input, weight, *conv(case), mask, "auto")
        torch.library.opcheck(ops.grouped_conv2d_backward, args)


@pytest.mark.parametrize("layout", OPCHECK_CASES)
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_opcheck_of_fused(layout, activation):
    case = OPCHECK_CASES[layout]
    input, weight, residual = opcheck_operands(layout, case)
    args = (input, weight, None, residual, *conv(case), activation, "auto")
    torch.library.opcheck(ops.grouped_conv2d_fused, args)


def opcheck_operands(layout: str, case: ConvProblem) -> list[torch.Tensor]:
    shapes = (case.input_shape, case.weight_shape, case.output_shape)
    return [randn(shape, torch.float32, layout).requires_grad_() for shape in shapes]
