"""Every backend against the float64 reference: values, strides of the operands, repeatability."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import (
    CORE_PROBLEMS,
    LAYOUTS,
    PROBLEMS,
    TOLERANCES,
    operand_shapes,
    problem,
    problem_id,
    randn,
    relative_error,
    run,
    skip_unless_loaded,
    targets,
    truth,
)

from resnext_kernels import ops
from resnext_kernels.backends import cpu
from resnext_kernels.problem import DIRECTIONS, ConvProblem
from resnext_kernels.verification import numerics

pytestmark = pytest.mark.usefixtures("poisoned_memory")

each_target = pytest.mark.parametrize(("backend", "device"), targets())
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda d: str(d)[6:])


def check(problem, direction, backend, device, dtype, layouts=("contiguous", "contiguous")):
    """One direction is right, gives the same bits again, and writes to neither operand."""
    operands = [
        randn(shape, dtype, layout, device)
        for shape, layout in zip(operand_shapes(problem, direction), layouts, strict=True)
    ]
    copies = [operand.clone() for operand in operands]
    out = run(problem, direction, backend, *operands)
    assert out.dtype == dtype
    assert numerics.error(problem, direction, out, *operands) < TOLERANCES[dtype]
    assert all(map(torch.equal, operands, copies))
    if backend != "aten":
        assert torch.equal(out, run(problem, direction, backend, *operands))


@pytest.mark.parametrize("problem", PROBLEMS, ids=problem_id)
@each_dtype
@each_direction
@each_target
def test_directions(problem, direction, backend, device, dtype):
    check(problem, direction, backend, device, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("other", ["contiguous", "channels_last"])
@pytest.mark.parametrize("moved", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@each_direction
@each_target
def test_layouts(direction, backend, device, dtype, layout, other, moved):
    layouts = (layout, other) if moved == 0 else (other, layout)
    for case in (problem(8, size=(7, 9)), problem(3, 5, stride=(2, 1), size=(6, 5))):
        check(case, direction, backend, device, dtype, layouts)


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("parts", ["", "bias", "residual", "bias residual"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second", "offset_last"])
@each_dtype
@each_target
def test_epilogue(backend, device, dtype, layout, parts, activation):
    skip_unless_loaded(backend, device)
    refused = []
    for case in (cases := CORE_PROBLEMS[::5]):
        input = randn(case.input_shape, dtype, layout, device)
        weight = randn(case.weight_shape, dtype, device=device)
        try:
            run(case, "fprop", backend, input, weight)
        except pytest.skip.Exception as skipped:  # other problems may be served
            refused.append(str(skipped))
        else:
            check_epilogue(case, backend, input, weight, layout, parts, activation)
    if len(refused) == len(cases):
        pytest.skip(refused[0])


def check_epilogue(case, backend, input, weight, layout, parts, activation):
    dtype, device = input.dtype, input.device
    bias = residual = None
    if "bias" in parts:
        bias = randn((1, case.out_channels, 1, 2), dtype, device=device)[0, :, 0, 0]
    if "residual" in parts:
        residual = randn(case.output_shape, dtype, layout, device)
    out = ops.grouped_conv2d_fused(
        input, weight, bias, residual, case.stride, case.padding, case.dilation, case.groups,
        activation, backend,
    )  # fmt: skip
    expected = truth(case, "fprop", input, weight)
    expected += 0 if bias is None else bias.double().cpu().view(-1, 1, 1)
    expected += 0 if residual is None else residual.double().cpu()
    expected = expected.relu() if activation == "relu" else expected
    assert relative_error(out, expected) < TOLERANCES[dtype]
    assert out.is_contiguous(memory_format=ConvProblem.of(
        input, weight, case.stride, case.padding, case.dilation, case.groups
    ).memory_format)  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@each_dtype
@each_target
def test_bias_gradient(backend, device, dtype, layout):
    case = problem(8, batch=3, size=(9, 11))
    grad = randn(case.output_shape, dtype, layout, device)
    input, weight = (randn(s, dtype, device=device) for s in (case.input_shape, case.weight_shape))
    out = ops.grouped_conv2d_backward(
        grad, input, weight, case.stride, case.padding, case.dilation, case.groups,
        [False, False, True], backend,
    )[2]  # fmt: skip
    assert out.dtype == dtype
    assert relative_error(out, grad.double().cpu().sum((0, 2, 3))) < TOLERANCES[dtype]


def check_taint(problem, direction, backend, device, operands, tainted, at, value):
    """One non-finite element taints what the definition reads it for, and nothing beside.

    Returns what is tainted.
    """
    clean = [operand.clone() for operand in operands]
    clean[tainted][at] = 0
    expected = truth(problem, direction, *clean)
    marks = [torch.ones_like(operand) for operand in operands]
    marks[tainted].zero_()[at] = 1
    hit = truth(problem, direction, *marks) != 0
    operands = [operand.clone() for operand in clean]
    operands[tainted][at] = value
    out = run(problem, direction, backend, *operands).cpu()
    assert not out[hit].isfinite().any()
    assert relative_error(out.where(~hit, 0), expected.where(~hit, 0)) < TOLERANCES[out.dtype]
    return out[hit]


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("case", CORE_PROBLEMS[::3], ids=str)
@each_target
def test_non_finite_values_stay_where_they_belong(backend, device, direction, value, case):
    if 0 in case.input_shape or 0 in case.output_shape:
        pytest.skip("nothing to taint")
    if backend == "triton":
        pytest.skip("groups that share a matrix share these values: test_triton_interpreted")
    shapes = operand_shapes(case, direction)
    operands = [randn(shape, torch.float32, device=device) for shape in shapes]
    at = (-1, shapes[0][1] // 2, shapes[0][2] // 2, -1)
    check_taint(case, direction, backend, device, operands, 0, at, value)


BORDERS = [
    *(problem(width, stride=(stride,) * 2) for width in (1, 2, 3, 4, 8, 24) for stride in (1, 2)),
    problem(4, groups=9, padding=(0, 0), size=(3, 9)),
    problem(8, 5, groups=3, kernel=(5, 7), size=(9, 12), stride=(1, 3), dilation=(2, 1)),
    problem(2, groups=5, padding=(3, 3), size=(2, 3), dilation=(1, 2)),
    problem(16, batch=1, size=(3, 29)),
    problem(40, batch=1, size=(3, 51), stride=(1, 2)),
]


@pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message)
@pytest.mark.parametrize("case", BORDERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("tainted", [0, 1])
@each_direction
def test_cpu_borders_contribute_nothing(direction, tainted, dtype, case):
    """What is not finite in a corner spreads neither by padding nor to a neighbouring tap."""
    operands = [randn(shape, dtype) for shape in operand_shapes(case, direction)]
    for corner in ((0, 0, 0, 0), (-1, -1, -1, -1)):
        args = (case, direction, "cpu", "cpu", operands, tainted, corner)
        assert check_taint(*args, float("nan")).isnan().all()
        assert check_taint(*args, float("inf")).isinf().all()


@pytest.mark.parametrize("threads", [2, 3, 7])
@each_direction
@each_target
def test_threads(backend, device, direction, threads):
    """Work is split right among more threads than there are rows, groups or images."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for case in CORE_PROBLEMS[1::5]:
            check(case, direction, backend, device, torch.float32, ("channels_last", "contiguous"))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_threads_with_pixels_of_their_own(direction, dtype):
    """Enough pixels to be dealt out, and more weights than are worked on together."""
    before = torch.get_num_threads()
    for batch, size, stride in ((1, (28, 27), 1), (3, (33, 30), 2), (4, (11, 13), 2)):
        case = problem(256, 256, groups=8, batch=batch, size=size, stride=(stride, stride))
        operands = [randn(s, dtype, "channels_last") for s in operand_shapes(case, direction)]
        try:
            outs = []
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                outs.append(run(case, direction, "cpu", *operands))
        finally:
            torch.set_num_threads(before)
        assert numerics.error(case, direction, outs[0], *operands) < TOLERANCES[dtype]
        assert all(torch.equal(outs[0], out) for out in outs)


@pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("width", [1, 4, 8, 16])
@pytest.mark.parametrize("size", [(112, 112), (1, 100_000)], ids=str)
def test_cpu_wgrad_of_many_equal_pixels(width, kernel, size):
    """In one sum of all of them each rounds the same way."""
    case = problem(width, batch=4, size=size, kernel=(kernel, kernel))
    shapes = operand_shapes(case, "wgrad")
    grad, input = torch.full(shapes[0], 0.7), torch.full(shapes[1], 0.3)
    out = run(case, "wgrad", "cpu", grad, input)
    assert numerics.error(case, "wgrad", out, grad, input) < TOLERANCES[torch.float32]


@st.composite
def problems(draw) -> ConvProblem:
    def pair(least, most):
        return draw(st.tuples(*[st.integers(least, most)] * 2))

    kernel, padding, dilation = pair(1, 5), pair(0, 3), pair(1, 2)
    size = tuple(
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 14))
        for d, k, p in zip(dilation, kernel, padding, strict=True)
    )
    return problem(
        draw(st.integers(1, 20)), draw(st.integers(1, 20)), groups=draw(st.integers(1, 5)),
        batch=draw(st.integers(0, 3)), size=size, kernel=kernel, stride=pair(1, 3),
        padding=padding, dilation=dilation,
    )  # fmt: skip


@each_direction
@each_target
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    case=problems(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    layouts=st.tuples(*[st.sampled_from(list(LAYOUTS))] * 2),
)
def test_any_problem(backend, device, direction, case, dtype, layouts):
    skip_unless_loaded(backend, device)
    if 0 not in case.input_shape:
        check(case, direction, backend, device, dtype, layouts)


ISAS = cpu.ISAS[::-1]  # from the least


@pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message)
@pytest.mark.skipif("RESNEXT_KERNELS_CPU_ISA" in os.environ, reason="runs inside such a process")
@pytest.mark.parametrize("isa", ISAS)
def test_each_instruction_set(isa):
    if ISAS.index(isa) > ISAS.index(cpu.isa()):
        pytest.skip(f"this machine has {cpu.isa()} at best")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    wanted = "isa_in_use"
    if isa != cpu.isa():  # on which all tests run anyway
        wanted += " or cpu-cpu and (float32 or bfloat16) and core or cpu_borders or relayout"
    command += [str(Path(__file__).with_name("test_relayout.py")), "-k", wanted]
    done = subprocess.run(
        command,
        env=os.environ | {"RESNEXT_KERNELS_CPU_ISA": isa},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@pytest.mark.skipif("RESNEXT_KERNELS_CPU_ISA" not in os.environ, reason="an ISA was not asked for")
def test_isa_in_use():
    assert cpu.isa() == os.environ["RESNEXT_KERNELS_CPU_ISA"]
