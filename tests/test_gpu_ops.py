"""The operators of the CUDA kernels on a GPU: what they check, compiled, by torch's own rules."""

from __future__ import annotations

import pytest
import torch
from problems import TOLERANCES, operand_shapes, problem, randn, relative_error

import resnext_kernels as rk
from resnext_kernels import ops
from resnext_kernels.backends import cuda

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
    pytest.mark.usefixtures("poisoned_memory"),
]
OPS = torch.ops.resnext_kernels_cuda if cuda.LIBRARY.loaded else None


def last(*shape: int, dtype=torch.bfloat16) -> torch.Tensor:
    return randn(shape, dtype, "channels_last", "cuda")


@pytest.mark.parametrize(
    "changed, expected",
    [
        ({"input": lambda: last(1, 16, 5, 5, dtype=torch.float64)}, "expected float16, bfloat"),
        ({"input": lambda: last(1, 16, 5, 5, dtype=torch.float32)}, "output: expected the dtype"),
        ({"weight": lambda: last(16, 8, 3, 3, dtype=torch.float16)}, "weight: expected the dtype"),
        ({"weight": lambda: last(16, 4, 3, 3)}, "groups=2: expected a divisor"),
        ({"weight": lambda: last(16, 8, 3, 3).contiguous()}, "weight: .* expected dense"),
        ({"weight": lambda: last(16, 8, 3, 3).cpu()}, "weight: expected on cuda:0"),
        ({"input": lambda: last(1, 16, 5, 5).contiguous()}, "input: strides .* expected 1 for"),
        ({"input": lambda: last(1, 20, 5, 5)[:, 2:18]}, "input: .* multiple"),
        ({"output": lambda: last(1, 16, 5, 4)}, r"output: .*, expected \(1, 16, 5, 5\)"),
        ({"output": lambda: last(1, 16, 1, 5).expand(1, 16, 5, 5)}, "output: .* expected dense"),
        ({"bias": lambda: last(1, 8, 1, 1)[0, :, 0, 0]}, r"bias: shape \(8\), expected \(16\)"),
        ({"residual": lambda: last(2, 16, 5, 5)}, "residual: shape"),
        ({"stride": [0, 1]}, r"stride=\(0, 1\): expected 2 values >= 1"),
        ({"padding": [1]}, r"padding=\(1\): expected 2 values >= 0"),
        ({"groups": 0}, "groups=0: expected a divisor"),
    ],
)  # fmt: skip
def test_the_private_operators_check_what_the_kernels_rely_on(changed, expected):
    arguments = {
        "input": last(1, 16, 5, 5), "weight": last(16, 8, 3, 3), "bias": None, "residual": None,
        "output": last(1, 16, 5, 5), "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1],
        "groups": 2, "relu": False, "allow_tf32": False,
    }  # fmt: skip
    OPS.fprop(**arguments)
    changed = {name: value() if callable(value) else value for name, value in changed.items()}
    with pytest.raises(RuntimeError, match=expected):
        OPS.fprop(**(arguments | changed))
    torch.cuda.synchronize()


def test_a_compiled_training_step():
    layer = rk.GroupedConv2d(64, 64, 3, stride=2, padding=1, groups=8)
    layer.backend = "cuda"
    layer = layer.cuda().half().to(memory_format=torch.channels_last)
    input = randn((2, 64, 14, 14), torch.float16, "channels_last", "cuda").requires_grad_()
    wanted = [input, *layer.parameters()]
    eager = torch.autograd.grad(layer(input).square().sum(), wanted)
    compiled = torch.compile(layer, fullgraph=True)
    for got, expected in zip(
        torch.autograd.grad(compiled(input).square().sum(), wanted), eager, strict=True
    ):
        assert relative_error(got, expected.double().cpu()) < TOLERANCES[torch.float16]


def test_opcheck():
    case = problem(8, groups=4, size=(9, 7))
    input, weight = (randn(s, torch.bfloat16, device="cuda") for s in operand_shapes(case, "fprop"))
    conv = (case.stride, case.padding, case.dilation, case.groups)
    torch.library.opcheck(ops.grouped_conv2d, (input, weight, None, *conv, "cuda"))
