"""Bad input gets an error naming argument, value and expectation, where `F.conv2d` raises too."""

import re

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode, is_fake

import resnext_kernels as rk
from resnext_kernels import ops
from resnext_kernels.backends import BACKENDS

CONV = ((1, 1), (1, 1), (1, 1), 2)


def ones(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.ones(shape, dtype=dtype, device=device)


def good() -> dict:
    """A call that is right: each bad one differs from it as its row in the table tells."""
    return {"input": ones(2, 8, 5, 6), "weight": ones(8, 4, 3, 3), "bias": ones(8), "stride": 1,
            "padding": 1, "dilation": 1, "groups": 2}  # fmt: skip


def bad(message: str, **changes):
    """A row: the start or the telling part of the message, and the arguments that provoke it."""
    return pytest.param(message, changes, id=message)


def of_dtype(dtype: torch.dtype) -> dict:
    return {"input": ones(2, 8, 5, 6).to(dtype), "weight": ones(8, 4, 3, 3).to(dtype), "bias": None}


BAD_NUMBERS = [
    bad("groups=0: expected a positive divisor of the input channels (8)", groups=0),
    bad("groups=-2: expected a positive divisor", groups=-2),
    bad("groups=3: expected a positive divisor", groups=3),
    bad("and of the output channels (9)", weight=ones(9, 4, 3, 3), bias=None),
    bad("groups=2.0: expected an int", groups=2.0),
    bad("groups=True: expected an int", groups=True),
    bad("groups=None: expected an int", groups=None),
    bad("groups='2': expected an int", groups="2"),
    bad("stride=0: expected values >= 1", stride=0),
    bad("stride=(1, -1): expected values >= 1", stride=(1, -1)),
    bad("stride=1.0: expected an int", stride=1.0),
    bad("stride=2.5: expected an int", stride=(1, 2.5)),
    bad("stride=True: expected an int", stride=True),
    bad("stride=None: expected an int", stride=None),
    bad("stride=(1, 1, 1): expected an int or a pair of ints", stride=(1, 1, 1)),
    bad("stride=range(1, 3): expected an int", stride=range(1, 3)),
    bad("stride=(): expected an int or a pair of ints", stride=()),
    bad("stride=tensor([1, 1]): expected an int", stride=torch.tensor([1, 1])),
    bad("padding=-1: expected values >= 0", padding=-1),
    bad("padding=(0, -1): expected values >= 0", padding=(0, -1)),
    bad("padding=0.5: expected an int", padding=0.5),
    bad("padding=None: expected an int", padding=None),
    bad("padding='full': expected 'same', 'valid', an int or a pair", padding="full"),
    bad("padding='SAME': expected 'same', 'valid', an int or a pair", padding="SAME"),
    bad("stride=(2, 2): expected 1 with padding='same'", padding="same", stride=2),
    bad("dilation=0: expected values >= 1", dilation=0),
    bad("dilation=1.5: expected an int", dilation=1.5),
]
BAD_SHAPES = [
    bad("input: shape (), expected 3 or 4 dimensions", input=ones()),
    bad("input: shape (8,), expected 3 or 4 dimensions", input=ones(8)),
    bad("input: shape (8, 5), expected 3 or 4 dimensions", input=ones(8, 5)),
    bad("input: shape (1, 2, 8, 5, 6), expected 3 or 4", input=ones(1, 2, 8, 5, 6)),
    bad("input: height 0, expected at least 1", input=ones(2, 8, 0, 6), padding=2),
    bad("input: width 0, expected at least 1", input=ones(2, 8, 5, 0), padding=2),
    bad("weight: shape (8, 4, 3), expected 4 dimensions", weight=ones(8, 4, 3)),
    bad("weight: shape (8, 4), expected 4 dimensions", weight=ones(8, 4), padding="same"),
    bad("weight: shape (8, 4, 3, 3, 1), expected 4 dim", weight=ones(8, 4, 3, 3, 1)),
    bad("weight: shape (8, 3, 3, 3), expected (K > 0, 4, R, S)", weight=ones(8, 3, 3, 3)),
    bad("weight: shape (8, 8, 3, 3), expected (K > 0, 4, R, S)", weight=ones(8, 8, 3, 3)),
    bad("weight: shape (0, 4, 3, 3), expected (K > 0", weight=ones(0, 4, 3, 3), bias=None),
    bad("weight: kernel height 0, expected at least 1", weight=ones(8, 4, 0, 3)),
    bad("weight: kernel width 0, expected at least 1", weight=ones(8, 4, 3, 0)),
    bad("weight: kernel width 0, expected", weight=ones(8, 4, 3, 0), padding="same"),
    bad("kernel height 8, expected at most the padded input height 7", weight=ones(8, 4, 8, 3)),
    bad("kernel width 9, expected at most the padded input width 8", weight=ones(8, 4, 3, 9)),
    bad("dilated kernel height 9, expected at most the padded input height 7", dilation=4),
    bad("kernel width 9, expected at most", input=ones(0, 8, 5, 6), weight=ones(8, 4, 3, 9)),
    bad("bias: shape (7,), expected (8,)", bias=ones(7)),
    bad("bias: shape (1,), expected (8,)", bias=ones(1)),
    bad("bias: shape (8, 1), expected (8,)", bias=ones(8, 1)),
    bad("bias: shape (), expected (8,)", bias=ones()),
]
BAD_TYPES = [
    bad("input: dtype torch.bool, expected one of torch.float32", **of_dtype(torch.bool)),
    bad("input: dtype torch.float8_e5m2, expected one of", **of_dtype(torch.float8_e5m2)),
    bad("weight: dtype torch.float64, expected torch.float32", weight=ones(8, 4, 3, 3).double()),
    bad("weight: dtype torch.complex64, expected", weight=ones(8, 4, 3, 3).cfloat()),
    bad("weight: dtype torch.float32, expected torch.float16", input=ones(2, 8, 5, 6).half()),
    bad("bias: dtype torch.bfloat16, expected torch.float32", bias=ones(8).bfloat16()),
    bad("expected torch.bfloat16", **of_dtype(torch.bfloat16) | {"bias": ones(8)}),
]
# Refused on every device alike, though `F.conv2d` lets it pass on some.
STRICTER = [
    bad(f"stride={2**63}: expected an int of 64 bits", stride=2**63),
    bad(f"groups={-(2**70)}: expected an int of 64 bits", groups=-(2**70)),
    bad("input: dtype torch.int64, expected one of torch.float32", **of_dtype(torch.int64)),
    bad("input: dtype torch.uint8, expected one of torch.float32", **of_dtype(torch.uint8)),
    bad("weight: on meta, expected cpu as the input", weight=ones(8, 4, 3, 3, device="meta")),
    bad("weight: on cpu, expected meta as the input", input=ones(2, 8, 5, 6, device="meta")),
    bad("bias: on meta, expected cpu as the input", bias=ones(8, device="meta")),
]
BAD = [*BAD_NUMBERS, *BAD_SHAPES, *BAD_TYPES]
NO_TENSORS = {
    "input": ([1.0], numpy.ones((2, 8, 5, 6)), None),
    "weight": ([1.0], numpy.ones((8, 4, 3, 3)), None, 1),
    "bias": ([1.0] * 8, numpy.ones(8), 1.0, "8"),
}


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize(("message", "changes"), [*BAD, *STRICTER])
def test_bad_input(message, changes, backend):
    args = good() | changes
    copies = {k: v.clone() for k, v in args.items() if isinstance(v, torch.Tensor) and v.is_cpu}
    with pytest.raises(rk.ProblemError, match=re.escape(message)):
        rk.grouped_conv2d(**args, backend=backend)
    assert all(_same(args[name], copy) for name, copy in copies.items())
    rk.grouped_conv2d(**good())


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    first, second = (t.flatten().view(torch.uint8) for t in (first, second))
    return torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("message", "changes"), BAD)
def test_conv2d_raises_too(message, changes):
    with pytest.raises((RuntimeError, TypeError)) as error:
        F.conv2d(**good() | changes)
    handlers = (ValueError, RuntimeError)
    assert issubclass(rk.ProblemError, handlers[0]) and issubclass(rk.ProblemError, handlers[1])
    assert not isinstance(error.value, rk.ProblemError)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in NO_TENSORS.items() for value in values]
)
def test_no_tensor(name, value):
    args = good() | {name: value}
    with pytest.raises(TypeError, match=f"{name}: {type(value).__name__}, expected a Tensor"):
        rk.grouped_conv2d(**args)
    with pytest.raises(TypeError):
        F.conv2d(**args)


@pytest.mark.parametrize(("message", "changes"), BAD)
def test_what_cannot_run_cannot_be_traced(message, changes):
    with FakeTensorMode() as mode:
        args = good() | changes
        args |= {k: mode.from_tensor(v) for k, v in args.items() if _is_operand(k, v)}
        with pytest.raises(rk.ProblemError, match=re.escape(message)):
            rk.grouped_conv2d(**args)


def _is_operand(name: str, value: object) -> bool:
    """Of the constants made before the mode was on, only the operands become fake."""
    return name in NO_TENSORS and isinstance(value, torch.Tensor) and not is_fake(value)


NUMBERS = {"numpy": numpy.int64(2), "tensor": torch.tensor(2)}
PAIRS = {
    "numpy pair": (numpy.int32(2), 1),
    "tensor pair": (torch.tensor(2), 1),
    "list": [2, 1],
    "list of one": [2],
    "size": torch.Size([2, 1]),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[(name, kind) for name in ("stride", "padding", "dilation") for kind in NUMBERS | PAIRS],
        *[("groups", kind) for kind in NUMBERS],
    ],
)
def test_integers_of_any_kind(name, kind):
    args = good() | {name: (NUMBERS | PAIRS)[kind]}
    torch.testing.assert_close(rk.grouped_conv2d(**args), F.conv2d(**args))


def test_complex_input_is_left_to_aten():
    args = {name: ones.cfloat() if isinstance(ones, torch.Tensor) else ones
            for name, ones in good().items()}  # fmt: skip
    assert torch.equal(rk.grouped_conv2d(**args), F.conv2d(**args))
    with pytest.raises(rk.ProblemError, match=r"input: dtype torch\.complex64, expected one of"):
        rk.grouped_conv2d(**args, backend="cpu")


@pytest.mark.parametrize("backend", ["auto", "cpu", "aten"])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_sparse_operands(name, backend):
    rk.grouped_conv2d(**good(), backend=backend)  # of the same shapes
    args = good() | {name: good()[name].to_sparse()}
    message = rf"{name}: layout torch\.sparse_coo, expected torch\.strided"
    with pytest.raises(rk.ProblemError, match=message):
        rk.grouped_conv2d(**args, backend=backend)
    with pytest.raises(RuntimeError):
        F.conv2d(**args)


LIKE_OUTPUT = [
    (ones(2, 8, 5, 5), r"shape \(2, 8, 5, 5\), expected \(2, 8, 5, 6\) as the output"),
    (ones(1, 8, 5, 6), r"shape \(1, 8, 5, 6\), expected \(2, 8, 5, 6\) as the output"),
    (ones(2, 8, 5, 6).half(), r"dtype torch\.float16, expected torch\.float32 as the input"),
    (ones(2, 8, 5, 6, device="meta"), r"device meta, expected cpu as the input"),
]


@pytest.mark.parametrize(("tensor", "message"), LIKE_OUTPUT)
def test_gradient_and_residual_must_be_like_the_output(tensor, message):
    input, weight = ones(2, 8, 5, 6), ones(8, 4, 3, 3)
    with pytest.raises(rk.ProblemError, match=f"grad_output: {message}"):
        ops.grouped_conv2d_backward(tensor, input, weight, *CONV, [True] * 3, "auto")
    with pytest.raises(rk.ProblemError, match=f"residual: {message}"):
        ops.grouped_conv2d_fused(input, weight, None, tensor, *CONV, "relu", "auto")


def test_unknown_activation():
    args = ones(2, 8, 5, 6), ones(8, 4, 3, 3), None, None, *CONV
    with pytest.raises(rk.ProblemError, match="activation='gelu': expected one of"):
        ops.grouped_conv2d_fused(*args, "gelu", "auto")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, (0, 1), r"stride=\(0, 1\): expected values >= 1"),
        (1, (0, -1), r"padding=\(0, -1\): expected values >= 0"),
        (2, (1, 0), r"dilation=\(1, 0\): expected values >= 1"),
        (0, (1, 1, 1), r"stride=\(1, 1, 1\): expected a pair of ints"),
        (1, (1,), r"padding=\(1,\): expected a pair of ints"),
        (2, (), r"dilation=\(\): expected a pair of ints"),
    ],
)
def test_operator_checks_what_it_is_given(place, value, message):
    conv = [*CONV[:place], value, *CONV[place + 1 :]]
    with pytest.raises(rk.ProblemError, match=message):
        ops.grouped_conv2d(ones(2, 8, 5, 6), ones(8, 4, 3, 3), None, *conv, "auto")
