"""The Triton kernels on a GPU, beside what tests/test_parity.py has: streams, graphs, devices."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from problems import TOLERANCES, operand_shapes, problem, randn, relative_error, run, truth

import resnext_kernels as rk
from resnext_kernels.backends import triton
from resnext_kernels.problem import DIRECTIONS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
    pytest.mark.skipif(not triton.LIBRARY.loaded, reason=triton.LIBRARY.message),
]
LAYER = problem(4, groups=32, batch=8, size=(56, 56))
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)


def operands(case, direction, dtype=torch.bfloat16, device="cuda"):
    return [randn(s, dtype, "channels_last", device) for s in operand_shapes(case, direction)]


@each_direction
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_layer(direction, dtype):
    first, second = operands(LAYER, direction, dtype)
    out = run(LAYER, direction, "triton", first, second)
    assert relative_error(out, truth(LAYER, direction, first, second).cpu()) < TOLERANCES[dtype]


@each_direction
def test_tf32(direction, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    first, second = operands(LAYER, direction, torch.float32)
    out = run(LAYER, direction, "triton", first, second)
    assert relative_error(out, truth(LAYER, direction, first, second).cpu()) < 1e-3


@each_direction
def test_graph(direction):
    """A captured call computes anew from what its operands hold at each replay."""
    first, second = operands(LAYER, direction)
    run(LAYER, direction, "triton", first, second)  # compiles, which a capture must not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(LAYER, direction, "triton", first, second)
    first.copy_(torch.randn_like(first))
    out.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, run(LAYER, direction, "triton", first, second))


@each_direction
def test_current_stream(direction):
    """What a side stream is still computing is waited for on that stream alone."""
    first, second = operands(LAYER, direction)
    run(LAYER, direction, "triton", first, second)  # compiled for longer than it sleeps
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        first.mul_(2)
        out = run(LAYER, direction, "triton", first, second)
    stream.synchronize()
    assert torch.equal(out, run(LAYER, direction, "triton", first, second))


@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="needs two GPUs")
@each_direction
def test_another_device(direction):
    first, second = operands(LAYER, direction, device="cuda:1")
    out = run(LAYER, direction, "triton", first, second)
    assert out.device == first.device and torch.cuda.current_device() == 0
    expected = run(LAYER, direction, "triton", first.to("cuda:0"), second.to("cuda:0"))
    assert torch.equal(out.cpu(), expected.cpu())


def test_more_than_2_31_elements():
    """The last image of a huge batch is what it is alone."""
    case = dataclasses.replace(LAYER, batch=5400)
    if torch.cuda.mem_get_info()[0] < 10 << 30:
        pytest.skip("needs 10 GiB of memory")
    image = randn((1, *case.input_shape[1:]), torch.bfloat16, "channels_last", "cuda")
    weight = randn(case.weight_shape, torch.bfloat16, device="cuda")
    batch = image.expand(case.batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    assert batch.numel() > 2**31
    conv = {"padding": 1, "groups": case.groups, "backend": "triton"}
    out = rk.grouped_conv2d(batch, weight, **conv)
    assert torch.equal(out[-1:], rk.grouped_conv2d(image, weight, **conv))
