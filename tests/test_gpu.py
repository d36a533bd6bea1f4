"""The CUDA kernels on a GPU: streams, graphs, memory, huge tensors, and problems drawn at random.

tests/test_parity.py holds them to the reference over the list of problems; `make gpu` runs both.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import (
    LAYOUTS,
    TOLERANCES,
    operand_shapes,
    problem,
    randn,
    relative_error,
    truth,
)
from problems import run as run_or_skip

import resnext_kernels as rk
from resnext_kernels import dispatch, ops
from resnext_kernels.backends import cuda
from resnext_kernels.bench import suites
from resnext_kernels.problem import DIRECTIONS, ConvProblem
from resnext_kernels.verification import numerics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
    pytest.mark.usefixtures("poisoned_memory"),
]
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
each_dtype = pytest.mark.parametrize("dtype", cuda.DTYPES, ids=lambda d: str(d)[6:])
each_layer = pytest.mark.parametrize(
    "layer",
    dict.fromkeys([*suites.SUITES["resnext50"], *suites.SUITES["resnext101_32x8d"]]),
    ids=str,
)


def operands(case: ConvProblem, direction: str, dtype: torch.dtype, layout="channels_last"):
    return [randn(s, dtype, layout, "cuda") for s in operand_shapes(case, direction)]


def run(case: ConvProblem, direction: str, first: torch.Tensor, second: torch.Tensor):
    """One direction of a problem that the kernels must not refuse."""
    try:
        return run_or_skip(case, direction, "cuda", first, second)
    except pytest.skip.Exception as refused:
        pytest.fail(f"{direction} of {case} is refused: {refused}")


def check(case: ConvProblem, direction: str, first: torch.Tensor, second: torch.Tensor) -> None:
    out = run(case, direction, first, second)
    assert numerics.error(case, direction, out, first, second) < TOLERANCES[first.dtype]


def test_the_kernels_are_here():
    assert cuda.LIBRARY.loaded, cuda.LIBRARY.message
    plain = dataclasses.replace(problem(8, groups=8), device="cuda", dtype=torch.bfloat16)
    assert cuda.not_supported_reasons(plain) == []
    assert cuda.isa().startswith("sm_")


@each_direction
@each_dtype
@each_layer
def test_resnext_layers(layer, dtype, direction):
    """Every layer that the package is for is served, and in half precision taken by "auto" where
    nothing was measured."""
    case = layer.problem(3, dtype, device="cuda")
    against = dispatch.auto_reasons_against(cuda, case, direction)
    assert not against or "aten measured faster" in against[0] or dtype == torch.float32
    check(case, direction, *operands(case, direction, dtype))


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [8, 16, 24, 32, 64])
def test_tf32_follows_torch(width, stride, direction, monkeypatch):
    case = problem(width, groups=3, size=(21, 18), stride=(stride, stride))
    tensors = operands(case, direction, torch.float32)
    expected = truth(case, direction, *tensors)
    check(case, direction, *tensors)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    error = relative_error(run(case, direction, *tensors), expected)
    assert error < TOLERANCES[torch.float32] if width == 8 else 1e-5 < error < 1e-3


@st.composite
def served(draw) -> ConvProblem:
    width = draw(st.sampled_from([1, 2, 4, 8, 16, 24, 32, 40, 64, 112]))
    groups = 8 // math.gcd(8, width) * draw(st.integers(1, 9))
    stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, 2))
    size = draw(st.tuples(*[st.integers(3 - min(2 * padding, 2), 70)] * 2))
    return problem(
        width, groups=groups, batch=draw(st.integers(1, 5)), size=size,
        stride=(stride, stride), padding=(padding, padding),
    )  # fmt: skip


@each_direction
@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
@given(
    case=served(),
    dtype=st.sampled_from(cuda.DTYPES),
    layouts=st.tuples(*[st.sampled_from(list(LAYOUTS))] * 2),
)
def test_any_problem_of_the_kernels(direction, case, dtype, layouts):
    case = dataclasses.replace(case, device="cuda", dtype=dtype)
    if cuda.not_supported_reasons(case):
        return
    shapes = operand_shapes(case, direction)
    tensors = [randn(s, dtype, y, "cuda") for s, y in zip(shapes, layouts, strict=True)]
    check(case, direction, *tensors)


@each_dtype
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("parts", ["bias", "residual", "bias residual"])
@pytest.mark.parametrize("width", [1, 4, 8, 16, 24, 32, 64])
def test_epilogue(width, parts, activation, dtype):
    for stride in (1, 2):
        case = problem(width, groups=3 * max(1, 8 // width), size=(13, 18), stride=(stride, stride))
        bias = torch.randn(case.out_channels, dtype=dtype, device="cuda")
        residual = randn(case.output_shape, dtype, "channels_last", "cuda")
        bias, residual = (
            tensor if name in parts else None
            for name, tensor in (("bias", bias), ("residual", residual))
        )
        input, weight = operands(case, "fprop", dtype)
        out = ops.grouped_conv2d_fused(
            input, weight, bias, residual, *case.convolution, activation, "cuda"
        )
        expected = truth(case, "fprop", input, weight)
        expected += 0 if bias is None else bias.double().cpu().view(-1, 1, 1)
        expected += 0 if residual is None else residual.double().cpu()
        expected = expected.relu() if activation == "relu" else expected
        assert relative_error(out, expected) < TOLERANCES[dtype]


@each_direction
def test_the_current_stream_is_used(direction):
    case = suites.SUITES["resnext50"][0].problem(2, torch.bfloat16, device="cuda")
    first, second = operands(case, direction, torch.bfloat16)
    late = torch.full_like(first, float("nan"))
    run(case, direction, late, second)  # whose kernels may be loaded for longer than it sleeps
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(first)  # some 25 ms after the call is queued
        out = run(case, direction, late, second)
    stream.synchronize()
    assert relative_error(out, truth(case, direction, first, second)) < TOLERANCES[out.dtype]


@each_direction
def test_nothing_waits_for_the_gpu(direction):
    case = problem(8, groups=8, size=(14, 14))
    tensors = operands(case, direction, torch.float16)
    run(case, direction, *tensors)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # which sees torch's own waiting alone
    try:
        torch.cuda._sleep(1_000_000_000)
        begin = time.monotonic()
        run(case, direction, *tensors)
        assert time.monotonic() - begin < 0.2, "of half a second that the GPU is busy"
    finally:
        torch.cuda.set_sync_debug_mode(before)
        torch.cuda.synchronize()


@each_direction
@each_layer
def test_graph_capture_and_replay(layer, direction):
    """A captured call computes anew from what its operands hold at each replay."""
    case = layer.problem(2, torch.bfloat16, device="cuda")
    tensors = operands(case, direction, torch.bfloat16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(case, direction, *tensors)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(case, direction, *tensors)
    for _ in range(2):
        for tensor in tensors:
            tensor.copy_(torch.randn_like(tensor))
        graph.replay()
        expected = truth(case, direction, *tensors)
        assert relative_error(out, expected) < TOLERANCES[torch.bfloat16]


def test_graph_of_a_training_step():
    layer = rk.GroupedConv2d(128, 128, 3, padding=1, groups=32)
    layer.backend = "cuda"
    layer = layer.cuda().bfloat16().to(memory_format=torch.channels_last)
    input = randn((4, 128, 14, 14), torch.bfloat16, "channels_last", "cuda").requires_grad_()
    eager = copy.deepcopy(layer)  # because the layer itself is made to replay the graph
    step = torch.cuda.make_graphed_callables(layer, (input,))
    for _ in range(2):
        sample = torch.randn_like(input).requires_grad_()
        grads, expected = (
            torch.autograd.grad(module(sample).square().sum(), [sample, *module.parameters()])
            for module in (step, eager)
        )
        assert all(
            relative_error(g, e.double().cpu()) < 1e-2 for g, e in zip(grads, expected, strict=True)
        )


@each_direction
@each_layer
def test_equal_bits_again(layer, direction):
    case = layer.problem(5, torch.bfloat16, device="cuda")
    tensors = operands(case, direction, torch.bfloat16)
    first = run(case, direction, *tensors)
    assert all(torch.equal(first, run(case, direction, *tensors)) for _ in range(5))


@each_direction
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_on_another_gpu_than_the_current_one(direction):
    case = suites.SUITES["resnext50"][0].problem(2, torch.bfloat16, device="cuda")
    tensors = [t.to("cuda:1") for t in operands(case, direction, torch.bfloat16)]
    with torch.cuda.device(0):
        check(case, direction, *tensors)
        assert torch.cuda.current_device() == 0


HUGE = {
    "fprop": "input and output",
    "dgrad": "both gradients",
    "wgrad": "both operands",
}


@pytest.mark.parametrize("direction", HUGE, ids=lambda d: f"{d}: {HUGE[d]}")
def test_more_than_2_to_the_31_elements(direction):
    """The last images are right where their offsets exceed 32 bits."""
    layer = suites.SUITES["resnext50"][0]
    batch = 2**31 // (layer.channels * layer.size**2) + 3
    case = layer.problem(batch, torch.bfloat16, device="cuda")
    if torch.cuda.mem_get_info()[0] < 5 * math.prod(case.input_shape) * 2:
        pytest.skip("not enough memory on this GPU")
    first = randn(operand_shapes(case, direction)[0], torch.bfloat16, "channels_last", "cuda")
    second = randn(operand_shapes(case, direction)[1], torch.bfloat16, "channels_last", "cuda")
    assert first.numel() > 2**31
    some = 2
    tail = dataclasses.replace(case, batch=some)
    if direction == "wgrad":
        # All but the images at the ends are zeros: the rest of the sum is known without a sum.
        first[some:-some] = 0
        out = run(case, direction, first, second)
        parts = [
            truth(tail, direction, first[s], second[s]) for s in (slice(some), slice(-some, None))
        ]
        expected = parts[0] + parts[1]
        assert relative_error(out, expected) < TOLERANCES[torch.bfloat16]
        return
    out = run(case, direction, first, second)
    for images in (slice(some), slice(-some, None)):
        expected = truth(tail, direction, first[images], second)
        assert relative_error(out[images], expected) < TOLERANCES[torch.bfloat16]
