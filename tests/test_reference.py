"""The float64 reference against PyTorch's own convolution in float64."""

import pytest
import torch
import torch.nn.functional as F
from problems import PROBLEMS, problem_id, randn, relative_error

from resnext_kernels import reference


@pytest.mark.parametrize("problem", PROBLEMS, ids=problem_id)
def test_reference(problem):
    input = randn(problem.input_shape, torch.float64).requires_grad_()
    weight = randn(problem.weight_shape, torch.float64).requires_grad_()
    bias = randn((problem.out_channels, 1, 1, 1), torch.float64).flatten()
    output = F.conv2d(
        input, weight, bias, problem.stride, problem.padding, problem.dilation, problem.groups
    )
    grad = torch.randn_like(output)
    to_input, to_weight = torch.autograd.grad(output, (input, weight), grad)
    assert relative_error(reference.fprop(problem, input, weight, bias), output) < 1e-13
    assert relative_error(reference.dgrad(problem, grad, weight), to_input) < 1e-13
    assert relative_error(reference.wgrad(problem, grad, input), to_weight) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reference_computes_in_float64(dtype):
    """Operands of less precision are taken as they are, with no rounding on the way."""
    case = PROBLEMS[0]
    input, weight = randn(case.input_shape, dtype), randn(case.weight_shape, dtype)
    out = reference.fprop(case, input, weight, None)
    assert out.dtype == torch.float64
    assert torch.equal(out, reference.fprop(case, input.double(), weight.double(), None))
