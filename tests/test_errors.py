"""Bad input gets an error naming argument, value and expectation, wherever `F.conv2d` raises one."""

import numpy
import pytest
import torch
import torch.nn.functional as F

import resnext_kernels as rk
from resnext_kernels import ops
from resnext_kernels.backends import BACKENDS

CONV = ((1, 1), (1, 1), (1, 1), 2)


def ones(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.ones(*shape, dtype=dtype, device=device)


def good() -> dict:
    return {"input": ones(2, 8, 5, 6), "weight": ones(8, 4, 3, 3), "bias": ones(8), "stride": 1,
            "padding": 1, "dilation": 1, "groups": 2}  # fmt: skip


BAD = {
    "groups zero": ({"groups": 0}, r"groups=0: expected a positive divisor .*\(8\)"),
    "groups negative": ({"groups": -2}, r"groups=-2: expected a positive divisor"),
    "groups no divisor": ({"groups": 3}, r"groups=3: expected a positive divisor"),
    "groups of outputs": ({"weight": ones(9, 4, 3, 3), "bias": None}, r"groups=2: .*channels \(9\)"),
    "groups float": ({"groups": 2.0}, r"groups=2\.0: expected an int"),
    "groups bool": ({"groups": True}, r"groups=True: expected an int"),
    "groups None": ({"groups": None}, r"groups=None: expected an int"),
    "groups text": ({"groups": "2"}, r"groups='2': expected an int"),
    "stride zero": ({"stride": 0}, r"stride=0: expected values >= 1"),
    "stride negative": ({"stride": (1, -1)}, r"stride=\(1, -1\): expected values >= 1"),
    "stride float": ({"stride": 1.0}, r"stride=1\.0: expected an int"),
    "stride float in pair": ({"stride": (1, 2.5)}, r"stride=2\.5: expected an int"),
    "stride bool": ({"stride": True}, r"stride=True: expected an int"),
    "stride None": ({"stride": None}, r"stride=None: expected an int"),
    "stride triple": ({"stride": (1, 1, 1)}, r"stride=\(1, 1, 1\): expected an int or a pair"),
    "stride empty": ({"stride": ()}, r"stride=\(\): expected an int or a pair"),
    "stride tensor": ({"stride": torch.tensor([1, 1])}, r"stride=tensor\(\[1, 1\]\): expected an int"),
    "padding negative": ({"padding": -1}, r"padding=-1: expected values >= 0"),
    "padding pair negative": ({"padding": (0, -1)}, r"padding=\(0, -1\): expected values >= 0"),
    "padding float": ({"padding": 0.5}, r"padding=0\.5: expected an int"),
    "padding None": ({"padding": None}, r"padding=None: expected an int"),
    "padding text": ({"padding": "full"}, r"padding='full': expected 'same', 'valid'"),
    "padding SAME": ({"padding": "SAME"}, r"padding='SAME': expected 'same', 'valid'"),
    "same strided": ({"padding": "same", "stride": 2}, r"stride=\(2, 2\): expected 1 with padding='same'"),
    "dilation zero": ({"dilation": 0}, r"dilation=0: expected values >= 1"),
    "dilation float": ({"dilation": 1.5}, r"dilation=1\.5: expected an int"),
    "input rank 0": ({"input": ones()}, r"input: shape \(\), expected 3 or 4 dim"),
    "input rank 1": ({"input": ones(8)}, r"input: shape \(8,\), expected 3 or 4 dim"),
    "input rank 2": ({"input": ones(8, 5)}, r"input: shape \(8, 5\), expected 3 or 4 dim"),
    "input rank 5": ({"input": ones(1, 2, 8, 5, 6)}, r"input: shape \(1, 2, 8, 5, 6\), expected 3 or 4"),
    "input no height": ({"input": ones(2, 8, 0, 6), "padding": 2}, r"input: height 0, expected at least 1"),
    "input no width": ({"input": ones(2, 8, 5, 0), "padding": 2}, r"input: width 0, expected at least 1"),
    "input bool": ({"input": ones(2, 8, 5, 6, dtype=torch.bool), "weight": ones(8, 4, 3, 3, dtype=torch.bool), "bias": None},
                   r"input: dtype torch\.bool, expected one of .*float32"),
    "input float8": ({"input": ones(2, 8, 5, 6).to(torch.float8_e4m3fn), "weight": ones(8, 4, 3, 3).to(torch.float8_e4m3fn), "bias": None},
                     r"input: dtype torch\.float8_e4m3fn, expected one of"),
    "weight rank 3": ({"weight": ones(8, 4, 3)}, r"weight: shape \(8, 4, 3\), expected 4 dim"),
    "weight rank 5": ({"weight": ones(8, 4, 3, 3, 1)}, r"weight: shape \(8, 4, 3, 3, 1\), expected 4 dim"),
    "weight rank 3 same": ({"weight": ones(8, 4, 3), "padding": "same"}, r"weight: shape \(8, 4, 3\), expected 4"),
    "weight channels": ({"weight": ones(8, 3, 3, 3)}, r"weight: shape \(8, 3, 3, 3\), expected \(K > 0, 4, R, S\)"),
    "weight of dense": ({"weight": ones(8, 8, 3, 3)}, r"weight: shape \(8, 8, 3, 3\), expected \(K > 0, 4"),
    "weight no outputs": ({"weight": ones(0, 4, 3, 3), "bias": None}, r"weight: shape \(0, 4, 3, 3\), expected \(K > 0"),
    "weight no rows": ({"weight": ones(8, 4, 0, 3)}, r"weight: kernel height 0, expected at least 1"),
    "weight no columns": ({"weight": ones(8, 4, 3, 0)}, r"weight: kernel width 0, expected at least 1"),
    "weight no rows same": ({"weight": ones(8, 4, 0, 3), "padding": "same"}, r"weight: kernel height 0, expected"),
    "kernel too high": ({"weight": ones(8, 4, 8, 3)}, r"kernel height 8, expected at most the padded input height 7"),
    "kernel too wide": ({"weight": ones(8, 4, 3, 9)}, r"kernel width 9, expected at most the padded input width 8"),
    "kernel dilated": ({"dilation": 4}, r"dilated kernel height 9, expected at most the padded input height 7"),
    "kernel of empty batch": ({"input": ones(0, 8, 5, 6), "weight": ones(8, 4, 9, 9)}, r"kernel height 9, expected at most"),
    "weight dtype": ({"weight": ones(8, 4, 3, 3, dtype=torch.float64)}, r"weight: dtype torch\.float64, expected torch\.float32"),
    "weight complex": ({"weight": ones(8, 4, 3, 3, dtype=torch.complex64)}, r"weight: dtype torch\.complex64, expected"),
    "input half": ({"input": ones(2, 8, 5, 6, dtype=torch.half)}, r"weight: dtype torch\.float32, expected torch\.float16"),
    "bias dtype": ({"bias": ones(8, dtype=torch.bfloat16)}, r"bias: dtype torch\.bfloat16, expected torch\.float32"),
    "bias float of bfloat16": ({"input": ones(2, 8, 5, 6).bfloat16(), "weight": ones(8, 4, 3, 3).bfloat16()},
                               r"bias: dtype torch\.float32, expected torch\.bfloat16"),
    "bias short": ({"bias": ones(7)}, r"bias: shape \(7,\), expected \(8,\)"),
    "bias of one": ({"bias": ones(1)}, r"bias: shape \(1,\), expected \(8,\)"),
    "bias matrix": ({"bias": ones(8, 1)}, r"bias: shape \(8, 1\), expected \(8,\)"),
    "bias scalar": ({"bias": ones()}, r"bias: shape \(\), expected \(8,\)"),
}  # fmt: skip
NO_TENSORS = {
    "input": ([1.0], numpy.ones((2, 8, 5, 6)), None),
    "weight": ([1.0], numpy.ones((8, 4, 3, 3)), None, 1),
    "bias": ([1.0] * 8, numpy.ones(8), 1.0, "8"),
}
# What `F.conv2d` lets pass, but the kernels of other devices or dtypes could not.
STRICTER = {
    "input integer": ({"input": ones(2, 8, 5, 6, dtype=torch.int64), "weight": ones(8, 4, 3, 3, dtype=torch.int64), "bias": None},
                      r"input: dtype torch\.int64, expected one of torch\.float32"),
    "input uint8": ({"input": ones(2, 8, 5, 6, dtype=torch.uint8), "weight": ones(8, 4, 3, 3, dtype=torch.uint8), "bias": None},
                    r"input: dtype torch\.uint8, expected one of"),
    "weight on meta": ({"weight": ones(8, 4, 3, 3, device="meta")}, r"weight: on meta, expected cpu as the input"),
    "input on meta": ({"input": ones(2, 8, 5, 6, device="meta")}, r"weight: on cpu, expected meta as the input"),
    "bias on meta": ({"bias": ones(8, device="meta")}, r"bias: on meta, expected cpu as the input"),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("name", [*BAD, *STRICTER])
def test_bad_input(name, backend):
    changes, message = (BAD | STRICTER)[name]
    args = good() | changes
    copies = {k: v.clone() for k, v in args.items() if isinstance(v, torch.Tensor) and v.is_cpu}
    with pytest.raises(rk.ProblemError, match=message) as error:
        rk.grouped_conv2d(**args, backend=backend)
    assert isinstance(error.value, (ValueError, RuntimeError))
    assert all(torch.equal(args[name], copy) for name, copy in copies.items())
    if name in BAD:
        with pytest.raises((RuntimeError, TypeError)):
            F.conv2d(**args)
    rk.grouped_conv2d(**good())


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in NO_TENSORS.items() for value in values]
)
def test_no_tensor(name, value):
    args = good() | {name: value}
    with pytest.raises(TypeError, match=f"{name}: {type(value).__name__}, expected a Tensor"):
        rk.grouped_conv2d(**args)
    with pytest.raises(TypeError):
        F.conv2d(**args)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_on_meta_and_in_fake_tensors(name):
    """What cannot run must not trace either."""
    changes, message = BAD[name]
    with (
        torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode,
        pytest.raises(rk.ProblemError, match=message),
    ):
        args = good() | changes
        rk.grouped_conv2d(
            **{k: mode.from_tensor(v) if _tensor_operand(k, v) else v for k, v in args.items()}
        )


def _tensor_operand(name: str, value: object) -> bool:
    return name in NO_TENSORS and isinstance(value, torch.Tensor)


INTEGERS = {
    "numpy": numpy.int64(2),
    "numpy pair": (numpy.int32(2), 1),
    "tensor": torch.tensor(2),
    "tensor pair": (torch.tensor(2), 1),
    "list": [2, 1],
    "list of one": [2],
    "size": torch.Size([2, 1]),
}


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("name", ["stride", "padding", "dilation", "groups"])
def test_integers_of_any_kind(name, kind):
    if name == "groups" and kind not in ("numpy", "tensor"):
        pytest.skip("groups is one number")
    args = good() | {name: INTEGERS[kind]}
    torch.testing.assert_close(rk.grouped_conv2d(**args), F.conv2d(**args))


def test_complex_input_is_left_to_aten():
    args = {name: ones.cfloat() if isinstance(ones, torch.Tensor) else ones
            for name, ones in good().items()}  # fmt: skip
    assert torch.equal(rk.grouped_conv2d(**args), F.conv2d(**args))
    with pytest.raises(rk.ProblemError, match=r"input: dtype torch\.complex64, expected one of"):
        rk.grouped_conv2d(**args, backend="cpu")


def test_backward_names_a_bad_gradient():
    input, weight = ones(2, 8, 5, 6), ones(8, 4, 3, 3)
    for grad, message in (
        (
            ones(2, 8, 5, 5),
            r"grad_output: torch\.float32 of shape \(2, 8, 5, 5\), expected .*5, 6\)",
        ),
        (ones(2, 8, 5, 6).double(), r"grad_output: torch\.float64 .* expected torch\.float32"),
    ):
        with pytest.raises(rk.ProblemError, match=message):
            ops.grouped_conv2d_backward(grad, input, weight, *CONV, [True] * 3, "auto")


@pytest.mark.parametrize(
    ("residual", "activation", "message"),
    [
        (ones(2, 8, 5, 5), "relu", r"residual: .*\(2, 8, 5, 5\), expected .*\(2, 8, 5, 6\)"),
        (ones(1, 8, 5, 6), "none", r"residual: .*\(1, 8, 5, 6\), expected .*\(2, 8, 5, 6\)"),
        (ones(2, 8, 5, 6).half(), "none", r"residual: torch\.float16 .* expected torch\.float32"),
        (ones(2, 8, 5, 6, device="meta"), "none", r"residual: .* on meta, expected cpu"),
        (None, "gelu", r"activation='gelu': expected one of"),
    ],
)
def test_fused_names_a_bad_epilogue(residual, activation, message):
    with pytest.raises(rk.ProblemError, match=message):
        ops.grouped_conv2d_fused(
            ones(2, 8, 5, 6), ones(8, 4, 3, 3), None, residual, *CONV, activation, "auto"
        )


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, (0, 1), r"stride=\(0, 1\): expected values >= 1"),
        (1, (0, -1), r"padding=\(0, -1\): expected values >= 0"),
        (2, (1, 0), r"dilation=\(1, 0\): expected values >= 1"),
    ],
)
def test_operator_checks_what_it_is_given(place, value, message):
    conv = [*CONV[:place], value, *CONV[place + 1 :]]
    with pytest.raises(rk.ProblemError, match=message):
        ops.grouped_conv2d(ones(2, 8, 5, 6), ones(8, 4, 3, 3), None, *conv, "auto")
