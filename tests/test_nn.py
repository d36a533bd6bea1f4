"""`GroupedConv2d` against `torch.nn.Conv2d`: same module in every respect but its kernels."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from small_models import relative_error
from torch import nn

from resnext_kernels import GroupedConv2d, ProblemError

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
SETTINGS = [
    dict(kernel_size=3),
    dict(kernel_size=3, padding=1, bias=False),
    dict(kernel_size=(1, 3), padding=(0, 1), stride=(2, 1)),
    dict(kernel_size=3, padding=2, dilation=2, stride=2),
    dict(kernel_size=3, padding="valid", stride=2),
    dict(kernel_size=3, padding="same"),
    dict(kernel_size=(2, 4), padding="same", dilation=(3, 1)),
]


def pair(groups=4, channels=(8, 12), **settings):
    """A `GroupedConv2d` and the `nn.Conv2d` with the same settings and parameters."""
    ours = GroupedConv2d(*channels, groups=groups, **settings)
    theirs = nn.Conv2d(*channels, groups=groups, **settings)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def results(module, x):
    """The output and every gradient of a sum weighted by fixed waves."""
    x = x.detach().requires_grad_()
    module.zero_grad()
    out = module(x)
    weights = torch.arange(out.numel(), dtype=torch.float64).sin().to(out.dtype)
    (out * weights.view(out.shape)).sum().backward()
    return [out, x.grad, *(parameter.grad for parameter in module.parameters())]


def assert_alike(ours, theirs, x):
    out, ref = results(ours, x), results(theirs, x)
    assert out[0].shape == ref[0].shape and out[0].stride() == ref[0].stride()
    for a, b in zip(out, ref, strict=True):
        assert a.dtype == b.dtype and relative_error(a, b) < 1e-5


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_forward_and_backward(settings, padding_mode):
    ours, theirs = pair(padding_mode=padding_mode, **settings)
    x = torch.randn(2, 8, 9, 11)
    assert_alike(ours, theirs, x)
    assert_alike(ours, theirs, x.contiguous(memory_format=torch.channels_last))
    assert_alike(ours, theirs, x[0])


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_any_number_of_groups(groups):
    assert_alike(*pair(groups, channels=(8, 16), kernel_size=3), torch.randn(2, 8, 7, 7))


def test_channels_last_module():
    ours, theirs = (m.to(memory_format=torch.channels_last) for m in pair(kernel_size=3))
    assert_alike(ours, theirs, torch.randn(2, 8, 9, 9))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)],
    ids=str,
)
def test_other_dtypes(dtype, tolerance):
    ours, theirs = pair(kernel_size=3, padding=1, dtype=dtype)
    x = torch.randn(2, 8, 9, 9, dtype=dtype)
    out = ours(x)
    assert out.dtype == dtype
    assert relative_error(out, theirs.double()(x.double())) < tolerance


def test_autocast():
    ours, theirs = pair(kernel_size=3, padding=1)
    x = torch.randn(2, 8, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        out, ref = ours(x), theirs(x)
    assert out.dtype == ref.dtype == torch.bfloat16
    assert relative_error(out, theirs(x)) < 1e-2


def test_same_constructor_and_initialisation():
    assert inspect.signature(GroupedConv2d) == inspect.signature(nn.Conv2d)
    state = torch.get_rng_state()
    ours = GroupedConv2d(8, 12, (3, 1), 2, 1, 1, 4, True, "reflect", "cpu", torch.float64)
    torch.set_rng_state(state)
    theirs = nn.Conv2d(8, 12, (3, 1), 2, 1, 1, 4, True, "reflect", "cpu", torch.float64)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype
    assert repr(ours) == repr(theirs).replace("Conv2d", "GroupedConv2d")


def test_state_dict_goes_both_ways():
    ours, theirs = GroupedConv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=2)
    for source, target in ((ours, theirs), (nn.Conv2d(8, 8, 3, groups=2), ours)):
        target.load_state_dict(source.state_dict(), strict=True)
        assert list(source.state_dict()) == list(target.state_dict())
        assert torch.equal(source.weight, target.weight) and torch.equal(source.bias, target.bias)


def saved_and_loaded(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded]
)
def test_copies(copied):
    module = GroupedConv2d(8, 8, 3, groups=2, padding_mode="circular")
    module.backend = "aten"
    other = copied(module)
    assert type(other) is GroupedConv2d and other.backend == "aten"
    assert other.weight is not module.weight
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(other(x), module(x))


def test_repr_shows_a_chosen_backend():
    module = GroupedConv2d(8, 8, 3, groups=2)
    assert "backend" not in repr(module)
    module.backend = "aten"
    assert repr(module).endswith("groups=2, backend='aten')")


def test_backend_is_honoured():
    module = GroupedConv2d(8, 8, 3, groups=2, dtype=torch.float64)
    x = torch.randn(1, 8, 5, 5, dtype=torch.float64)
    module.backend = "nope"
    with pytest.raises(ProblemError, match="backend='nope': expected one of 'auto'"):
        module(x)
    module.backend = "cpu"
    with pytest.raises(ProblemError, match="cannot serve fprop .* dtype torch.float64"):
        module(x)
    module.backend = "aten"
    assert module(x).shape == (1, 8, 3, 3)


BAD_INPUTS = [
    ({}, torch.randn(2, 7, 9, 9), "channels"),
    ({}, torch.randn(1, 2, 8, 9, 9), "4 dimensions"),
    ({}, torch.randn(9, 9), "4 dimensions"),
    ({}, torch.ones(2, 8, 9, 9, dtype=torch.int64), "torch.int64"),
    ({}, torch.randn(2, 8, 9, 9, dtype=torch.float64), "torch.float64"),
    ({}, torch.randn(2, 8, 2, 9), "height 3, expected at most the padded input height 2"),
    ({"padding": 3, "padding_mode": "reflect"}, torch.randn(2, 8, 3, 3), "[Pp]adding size"),
    ({"padding": 3, "padding_mode": "circular"}, torch.randn(2, 8, 2, 2), "[Pp]adding"),
]


@pytest.mark.parametrize(("settings", "x", "message"), BAD_INPUTS)
def test_bad_input_raises_what_conv2d_raises(settings, x, message):
    ours, theirs = pair(kernel_size=3, **settings)
    with pytest.raises(Exception) as theirs_error:  # noqa: PT011
        theirs(x)
    with pytest.raises(theirs_error.type, match=message):
        ours(x)
    assert torch.isfinite(ours(torch.randn(2, 8, 9, 9))).all()


def test_input_that_is_no_tensor():
    with pytest.raises(TypeError, match="input: list, expected a Tensor"):
        GroupedConv2d(8, 8, 3, groups=2)([1.0])


@pytest.mark.parametrize(
    "settings",
    [
        dict(groups=3),
        dict(groups=0),
        dict(padding="same", stride=2),
        dict(padding="full"),
        dict(padding_mode="mirror"),
    ],
    ids=str,
)
def test_bad_construction_raises_what_conv2d_raises(settings):
    with pytest.raises(ValueError) as theirs:
        nn.Conv2d(8, 8, 3, **settings)
    with pytest.raises(ValueError) as ours:
        GroupedConv2d(8, 8, 3, **settings)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("changed", [((1, 1), (2, 3), (2, 3)), (1, 2, 2)])
def test_settings_changed_after_construction(changed):
    """As code that trades stride for dilation does, at times with ints, which torch computes with
    but cannot show."""
    ours, theirs = pair(kernel_size=3, padding=1, stride=2)
    for module in (ours, theirs):
        module.stride, module.padding, module.dilation = changed
    assert_alike(ours, theirs, torch.randn(2, 8, 9, 9))
    stride, padding, dilation = changed
    assert f"stride={stride}, padding={padding}, dilation={dilation}, groups=" in repr(ours)
