"""The operators beside `F.conv2d`: strides, dtypes, named padding, FLOPs, opcheck."""

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
from resnext_kernels.problem import ConvProblem

each_target = pytest.mark.parametrize(("backend", "device"), targets())
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
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


def described(tensor: torch.Tensor) -> tuple:
    """Shape, dtype, and the strides that tell of a layout: not those of sizes below 2."""
    strides = [s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
    return tuple(tensor.shape), tensor.dtype, strides


@pytest.mark.parametrize("case", SHAPES, ids=str)
@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last], ids=str)
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
        operands = [t.detach().requires_grad_() for t in (input, weight, bias)]
        output = function(*operands, *case.convolution)
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


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_flops(groups):
    """As torch counts them, save that it counts a grouped weight gradient ``groups`` times."""
    counts = {}
    for function in (F.conv2d, rk.grouped_conv2d):
        shapes = (2, 8, 9, 7), (16, 8 // groups, 3, 3)
        input, weight = (torch.randn(shape, requires_grad=True) for shape in shapes)
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
        torch.library.opcheck(ops.grouped_conv2d, (input, weight, bias, *case.convolution, "auto"))
    else:
        args = (grad, input, weight, *case.convolution, mask, "auto")
        torch.library.opcheck(ops.grouped_conv2d_backward, args)


@pytest.mark.parametrize("layout", OPCHECK_CASES)
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_opcheck_of_fused(layout, activation):
    case = OPCHECK_CASES[layout]
    input, weight, residual = opcheck_operands(layout, case)
    args = (input, weight, None, residual, *case.convolution, activation, "auto")
    torch.library.opcheck(ops.grouped_conv2d_fused, args)


def opcheck_operands(layout: str, case: ConvProblem) -> list[torch.Tensor]:
    shapes = (case.input_shape, case.weight_shape, case.output_shape)
    return [randn(shape, torch.float32, layout).requires_grad_() for shape in shapes]
