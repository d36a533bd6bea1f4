"""The operators before the Triton kernels: checked, compiled, exported, differentiated.

For a process with Triton's interpreter, as `test_triton_interpreted` is.
"""

import dataclasses
import itertools

import pytest
import torch
from problems import TOLERANCES, operand_shapes, problem, relative_error

import resnext_kernels as rk
from resnext_kernels import dispatch, ops
from resnext_kernels.backends import triton
from resnext_kernels.problem import DIRECTIONS

if not triton.INTERPRETED:
    pytest.skip("TRITON_INTERPRET=1 is not set", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def test_auto_passes_over_the_interpreter():
    case = dataclasses.replace(problem(8), channels_last=True)
    assert triton.not_supported_reasons(case) == []
    for direction in DIRECTIONS:
        assert dispatch.choose(case, direction) is not triton
        assert "interpreted" in dispatch.auto_reasons_against(triton, case, direction)[0]


def operator_arguments():
    input, weight = torch.randn(2, 8, 5, 6).to(memory_format=torch.channels_last), (8, 4, 3, 3)
    return input.requires_grad_(), torch.randn(weight, requires_grad=True), torch.randn(8)


def test_opcheck():
    input, weight, bias = operator_arguments()
    conv_arguments = ((2, 2), (1, 1), (1, 1), 2)
    torch.library.opcheck(ops.grouped_conv2d, (input, weight, bias, *conv_arguments, "triton"))
    out = ops.grouped_conv2d(input, weight, bias, *conv_arguments, "triton")
    grad = torch.randn_like(out)
    arguments = (grad, input, weight, *conv_arguments, [True, True, True], "triton")
    torch.library.opcheck(ops.grouped_conv2d_backward, arguments)
    arguments = (input, weight, bias, out.detach(), *conv_arguments, "relu", "triton")
    torch.library.opcheck(ops.grouped_conv2d_fused, arguments)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
        self.bias = torch.nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        conv = {"padding": 1, "groups": 2, "backend": "triton"}
        return rk.grouped_conv2d(x * 2, self.weight, self.bias, **conv).relu()


def assert_same(results, expected):
    for result, other in zip(results, expected, strict=True):
        assert result.stride() == other.stride()
        assert relative_error(result, other.detach().double()) < TOLERANCES[torch.float32]


def test_compiled_training_step():
    model, input = Block(), operator_arguments()[0]
    parameters = [input, *model.parameters()]
    expected = torch.autograd.grad(model(input).square().sum(), parameters)
    model.compile(backend="aot_eager", fullgraph=True)
    assert_same(torch.autograd.grad(model(input).square().sum(), parameters), expected)


def test_export():
    model, input = Block().eval(), operator_arguments()[0].detach()
    batch = {"x": {0: torch.export.Dim("batch", min=2, max=64)}}
    program = torch.export.export(model, (input,), dynamic_shapes=batch)
    more = torch.cat([input, input, input])
    assert_same([program.module()(more)], [model(more)])


def test_gradients_as_of_conv2d():
    """First and second derivatives through the operators, by another implementation."""
    case = problem(4, groups=3, stride=(2, 1))
    leaves = [torch.randn(s, requires_grad=True) for s in operand_shapes(case, "fprop")]

    def gradients(backend):
        out = rk.grouped_conv2d(
            *leaves, None, case.stride, case.padding, case.dilation, case.groups, backend=backend
        )
        first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        return list(itertools.chain(first, second))

    for ours, theirs in zip(gradients("triton"), gradients("aten"), strict=True):
        assert relative_error(ours, theirs.detach().double()) < 10 * TOLERANCES[torch.float32]
