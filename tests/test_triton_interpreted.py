"""The Triton kernels in Triton's interpreter: values, layouts, epilogues.

A process interprets kernels from its start or not at all: `test_triton` runs this file in one of
its own.
"""

import dataclasses

import pytest
import torch
from problems import (
    CORE_PROBLEMS,
    TOLERANCES,
    operand_shapes,
    problem,
    randn,
    relative_error,
    run,
    truth,
)

from resnext_kernels import ops
from resnext_kernels.backends import triton
from resnext_kernels.problem import DIRECTIONS, ConvProblem
from resnext_kernels.verification import numerics

if not triton.INTERPRETED:
    pytest.skip("TRITON_INTERPRET=1 is not set", allow_module_level=True)

import triton.language as tl
from triton.runtime import interpreter

from resnext_kernels.backends.triton.kernels import (
    configs,
    conv,
    device,
    dgrad,
    fprop,
    tensors,
    wgrad,
)
from resnext_kernels.backends.triton.kernels.launch import Plans

pytestmark = pytest.mark.usefixtures("poisoned_memory")
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
DTYPES = list(TOLERANCES)
# One for each kernel and case: the ring, its parts, single taps, phases, the general kernel.
KINDS = [
    problem(4, groups=9, size=(7, 6)),
    problem(4, groups=5, dilation=(1, 2), size=(5, 8)),
    problem(32, 24, size=(3, 5)),
    problem(8, 5, groups=5, stride=(2, 1), padding=(0, 2)),
    problem(4, stride=(2, 2), groups=6, size=(5, 9)),
    problem(4, kernel=(5, 4), stride=(2, 3), dilation=(1, 2), size=(9, 11)),
]


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch):
    """The interpreter keeps bfloat16 as integers, and multiplies those: widen them for it."""
    create_dot = interpreter.InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype != tl.bfloat16:
            return handle
        bits = handle.data.astype("uint32") << 16
        return interpreter.TensorHandle(bits.view("float32"), tl.float32)

    def patched(self, left, right, *rest):
        return create_dot(self, widened(left), widened(right), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", patched)


@pytest.fixture(autouse=True)
def faster_interpreter(monkeypatch):
    """Without what takes it more than half of its time and tells nothing here.

    Each sum and product of integers is checked for overflow, as with TRITON_DEBUG, where launches
    turn it off; and each call of a device function patches the language that the launch patched.
    """
    builder, patch = interpreter.interpreter_builder, interpreter._patch_lang

    def patched(function):
        if any(tl.core.is_builtin(language.load) for language in (tl, tl.core)):
            return patch(function)
        return interpreter._LangPatchScope()

    monkeypatch.setattr(interpreter, "_patch_lang", patched)
    unchecked = dataclasses.replace(builder.options, sanitize_overflow=False)
    monkeypatch.setattr(builder, "options", unchecked)


@pytest.fixture(autouse=True)
def fresh_plans(monkeypatch):
    monkeypatch.setattr(fprop, "_PLANS", Plans(fprop.plan))
    monkeypatch.setattr(dgrad, "_PLANS", Plans(dgrad.plan))
    monkeypatch.setattr(wgrad, "_PLANS", Plans(wgrad.Plan))


def check(case, direction, dtype, layouts=("channels_last", "channels_last")):
    operands = [
        randn(shape, dtype, layout)
        for shape, layout in zip(operand_shapes(case, direction), layouts, strict=True)
    ]
    out = run(case, direction, "triton", *operands)
    assert numerics.error(case, direction, out, *operands) < TOLERANCES[dtype]
    return operands, out


# Of wide groups, for which the interpreter is slow, directions take turns too.
TURNS = [
    pytest.param(index, direction, id=f"{direction}-{case}")
    for index, case in enumerate(CORE_PROBLEMS)
    for direction in DIRECTIONS
    if case.in_width <= 64 or direction == DIRECTIONS[index % 3]
]


@pytest.mark.parametrize(("index", "direction"), TURNS)
def test_core_problems(index, direction, monkeypatch):
    """Dtypes, layouts and the devices that configurations are for take turns."""
    turn = index + DIRECTIONS.index(direction)
    dtype = DTYPES[turn % 3]
    layout = ["channels_last", "contiguous"][turn // 3 % 2]
    names = list(configs.load())
    name = names[turn % len(names)]
    monkeypatch.setattr(device, "name", lambda tensor: name)
    if turn % 2:  # rounds nothing in the interpreter, but has cells of its own
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    check(CORE_PROBLEMS[index], direction, dtype, (layout, layout))


@pytest.mark.parametrize("name", configs.load())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@each_direction
def test_configurations(direction, dtype, name, monkeypatch):
    """Wide groups: the classes that `test_core_problems` may not have met for each device."""
    monkeypatch.setattr(device, "name", lambda tensor: name)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    for width, stride in ((32, 2), (48, 1)):
        check(problem(width, size=(3, 5), batch=1, stride=(stride, stride)), direction, dtype)


@pytest.mark.parametrize("case", KINDS, ids=str)
@each_direction
def test_many_multiprocessors(case, direction, monkeypatch):
    """Strips of single rows, and as many splits as there may be, give the same bits each time."""
    monkeypatch.setattr(device, "multiprocessors", lambda tensor: 1000)
    monkeypatch.setattr(wgrad, "_LEAST_STEPS", 1)
    operands, out = check(case, direction, torch.float32)
    assert torch.equal(out, run(case, direction, "triton", *operands))


@pytest.mark.parametrize("case", KINDS, ids=str)
@each_direction
def test_offsets_of_64_bits(case, direction, monkeypatch):
    for module in (conv, wgrad):
        monkeypatch.setattr(module, "need_64_bits", lambda *tensors: True)
    check(case, direction, torch.float16, ("contiguous", "channels_last"))


def test_which_tensors_need_64_bits():
    def need(case, shape, strides):
        images = torch.empty(1, device="meta").as_strided(shape, strides)
        return tensors.need_64_bits(case, None, images)

    small, large = problem(8, kernel=(1, 1)), problem(8, kernel=(5, 5))
    last, strides = 2**31 - 1 - 15 - 16 * 6 - 112 * 5, (16 * 42, 1, 112, 16)
    assert need(small, (2, 16, 6, 7), (2**31, *strides[1:]))
    # As many as fit, of which a kernel of one tap reads nothing beyond the image but a step of 1.
    assert need(small, (2, 16, 6, 7), (last, *strides[1:]))
    assert not need(small, (2, 16, 6, 7), (last - 128, *strides[1:]))
    assert need(large, (2, 16, 6, 7), (last - 128, *strides[1:]))
    assert not need(large, (2, 16, 6, 7), (last - 7 * 128, *strides[1:]))


@pytest.mark.parametrize("case", KINDS, ids=str)
@each_direction
def test_large_contiguous_images_are_converted(case, direction, monkeypatch):
    monkeypatch.setattr(tensors, "IN_PLACE", 0)
    _, out = check(case, direction, torch.float32, ("contiguous", "contiguous"))
    assert out.is_contiguous()


@pytest.mark.parametrize("stride", [256, 4096])
@pytest.mark.parametrize("direction", ["fprop", "wgrad"])
def test_what_lies_behind_the_last_image_at_long_strides(direction, stride):
    """A column far outside times the stride would be one inside where it overflows."""
    case = problem(8, kernel=(1, 1), padding=(0, 0), size=(8, 8), stride=(1, stride))
    operands = []
    for shape in operand_shapes(case, direction):
        surroundings = torch.full((shape[0] + 2, *shape[1:]), torch.nan)
        inside = surroundings.contiguous(memory_format=torch.channels_last)[1:-1]
        operands.append(inside.copy_(torch.randn(shape)))
    out = run(case, direction, "triton", *operands)
    assert numerics.error(case, direction, out, *operands) < TOLERANCES[torch.float32]


LAYOUTS = ["channel_slice_last", "offset_last", "every_second", "expanded_pixels", "permuted"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("moved", [0, 1])
@each_direction
def test_layouts(direction, moved, layout):
    layouts = ["channels_last", "contiguous"]
    layouts[moved] = layout
    check(problem(3, 5, stride=(2, 1), size=(6, 5)), direction, torch.float32, layouts)


@pytest.mark.parametrize("case", KINDS, ids=str)
@pytest.mark.parametrize("parts", ["bias", "residual", "bias residual relu", "relu"])
def test_epilogue(case, parts):
    dtype = DTYPES[len(parts) % 3]
    input, weight = (randn(shape, dtype) for shape in operand_shapes(case, "fprop"))
    bias = randn((2 * case.out_channels,), dtype)[::2] if "bias" in parts else None
    residual = randn(case.output_shape, dtype, "channels_last") if "residual" in parts else None
    conv_arguments = (case.stride, case.padding, case.dilation, case.groups)
    activation = "relu" if "relu" in parts else "none"
    out = ops.grouped_conv2d_fused(
        input, weight, bias, residual, *conv_arguments, activation, "triton"
    )
    expected = truth(case, "fprop", input, weight)
    expected += 0 if bias is None else bias.double().view(-1, 1, 1)
    expected += 0 if residual is None else residual.double()
    expected = expected.relu() if activation == "relu" else expected
    assert relative_error(out, expected) < TOLERANCES[dtype]


@pytest.mark.parametrize("case", KINDS, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_weight_gradient_in_either_format(case, memory_format):
    case = dataclasses.replace(case, channels_last=True)
    grad, input = (randn(s, torch.float32) for s in operand_shapes(case, "wgrad"))
    out = triton.wgrad(case, grad, input, memory_format)
    assert out.is_contiguous(memory_format=memory_format)
    assert relative_error(out, truth(case, "wgrad", grad, input)) < TOLERANCES[torch.float32]


@pytest.mark.parametrize("relu", [False, True])
def test_not_a_number_reaches_its_merged_groups_alone(relu):
    """Groups that share a matrix share what is not finite; docs/triton-kernels.md says so."""
    case = problem(4, groups=12, size=(6, 7))
    input, weight = (randn(shape, torch.float32) for shape in operand_shapes(case, "fprop"))
    residual = torch.full(case.output_shape, -1000.0)
    input[1, 21, 3, 3] = float("nan")
    out = triton.fprop(case, input, weight, None, residual, relu)
    expected = torch.zeros(case.output_shape, dtype=torch.bool)
    expected[1, 16:32, 2:5, 2:5] = True
    assert torch.equal(out.isnan(), expected)


def test_problem_keeps_its_meaning():
    """`ConvProblem` as the kernels read it: pairs are (height, width)."""
    case = ConvProblem(
        1, 8, (5, 9), 8, (3, 1), (1, 2), (1, 0), (1, 1), 2, torch.float32, "cpu", True
    )
    for direction in DIRECTIONS:
        check(case, direction, torch.float32)
