"""The convolutions of `optimize_for_inference`: precision, weights laid out once, recorders."""

import copy
import operator

import pytest
import torch
from fusible import block, images, own, parts_of, small
from small_models import relative_error
from torch import nn

import resnext_kernels as rk
from resnext_kernels import fused_conv


def errors_of_networks(run, networks: int = 8) -> tuple[float, float]:
    """Root mean square, over networks, of the optimised and of the plain one's relative error.

    Of one network the few outputs of two equally precise ways differ more than twofold now and
    then, by chance.
    """
    errors = []
    for _ in range(networks):
        model, x = small(), images(torch.float32)
        truth = copy.deepcopy(model).double()(x.double())
        errors.append([relative_error(out, truth) for out in run(model, x)])
    fast, plain = torch.tensor(errors).square().mean(0).sqrt().tolist()
    return fast, plain


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("residual", [False, True])
def test_relu_keeps_nan(residual, groups):
    """What is no number in a model is none in the optimised one."""

    def run(self, x):
        out = self.conv(x)
        return self.relu(out + x if residual else out)

    conv = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
    model = own(run, **block(conv=conv)).float()
    x = images(torch.float32, channels=8)
    x[:, 1, 3, 4] = torch.nan
    fast = rk.optimize_for_inference(model)
    assert not parts_of(fast, nn.ReLU)
    assert torch.equal(fast(x).isnan(), model(x).isnan())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    def run(model, x):
        return rk.optimize_for_inference(model.to(dtype))(x.to(dtype)), model(x.to(dtype))

    fast, plain = errors_of_networks(run)
    assert fast < 1.5 * plain


@torch.no_grad()
def test_autocast():
    def run(model, x):
        fast = rk.optimize_for_inference(model)
        with torch.autocast("cpu", torch.bfloat16):
            out, ref = fast(x), model(x)
        assert out.dtype == ref.dtype == torch.bfloat16
        return out, ref

    fast, plain = errors_of_networks(run)
    assert fast < 1.5 * plain


@torch.no_grad()
def test_weights_laid_out_once_follow_changes():
    """In place, of dtype and back, of the shape of images."""
    fast = rk.optimize_for_inference(small())
    x = images(torch.float32)
    for change in (
        lambda: None,
        lambda: fast.conv1.weight.mul_(2),
        lambda: fast.double(),
        lambda: fast.float(),
        lambda: fast.bfloat16(),
        lambda: fast.float(),
        lambda: setattr(fast.conv1, "weight", nn.Parameter(torch.randn_like(fast.conv1.weight))),
    ):
        change()
        dtype = fast.conv1.weight.dtype
        for batch in (1, 2, 3, 1):
            part = x.to(dtype).repeat(2, 1, 1, 1)[:batch]
            truth = copy.deepcopy(fast).double()(part.double())
            assert relative_error(fast(part), truth) < (1e-5 if dtype != torch.bfloat16 else 3e-2)


@torch.no_grad()
def test_weights_are_laid_out_anew_for_another_number_of_threads():
    """oneDNN takes another kernel, for which this one's weight is converted at every call."""
    if not fused_conv._has_packed_weights(torch.float32):
        pytest.skip("this torch has no oneDNN")
    fast, x, threads = rk.optimize_for_inference(small()), images(torch.float32), []
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            fast(x)
            threads.append({threads for _, threads in fast.conv1._packed[2]})
    finally:
        torch.set_num_threads(before)
    assert threads == [{1}, {1, 2}, {1, 2}]


@torch.no_grad()
def test_weights_in_shared_memory_follow_changes():
    """Of another process, as here of NumPy, which autograd does not count."""
    fast = rk.optimize_for_inference(small()).share_memory()
    x = images(torch.float32)
    for _ in range(2):
        truth = copy.deepcopy(fast).double()(x.double())
        assert relative_error(fast(x), truth) < 1e-5
        fast.conv1.weight.numpy()[...] *= 2


@torch.inference_mode()
def test_weights_of_inference_mode_follow_changes():
    """Such tensors do not tell that they were changed."""
    fast = rk.optimize_for_inference(small()).double().float()
    assert fast.conv1.weight.is_inference()
    x = images(torch.float32)
    for _ in range(2):
        truth = copy.deepcopy(fast).double()(x.double())
        assert relative_error(fast(x), truth) < 1e-5
        fast.load_state_dict({name: 2 * value for name, value in fast.state_dict().items()})


@torch.no_grad()
@pytest.mark.parametrize(
    "wrong",
    [
        torch.randn(2, 8, 9, 9).bfloat16(),
        torch.randn(2, 6, 9, 9),
        torch.randn(2, 8, 2, 2),
        torch.randn(2, 8, 9, 1),
        None,
    ],
    ids=["dtype", "channels", "size", "width", "none"],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_bad_input_is_refused_as_by_torch(wrong, groups):
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=groups), nn.ReLU()).eval()
    fast = rk.optimize_for_inference(model)
    fast(torch.randn(2, 8, 9, 9))
    with pytest.raises((TypeError, RuntimeError)) as expected:
        model(wrong)
    with pytest.raises(expected.type) as found:
        fast(wrong)
    if groups == 1:
        assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("groups", [1, 2])
def test_numbers_are_added(groups):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, groups=groups).double()

        def forward(self, x, number):
            return (self.conv(x) + number).relu()

    model, x = Own().eval(), images(channels=8)
    assert relative_error(rk.optimize_for_inference(model)(x, 0.5), model(x, 0.5)) < 1e-12


INTO = {
    "augmented": lambda self, x: operator.iadd(self.conv(x), x.double()),
    "method": lambda self, x: self.conv(x).add_(x.double()),
    "into another": lambda self, x: self.low(x.bfloat16()).add_(self.conv(x)),
    "into a smaller one": lambda self, x: self.conv(x[:1]).add_(x),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", INTO)
@pytest.mark.parametrize("groups", [1, 2])
def test_sums_in_place_keep_dtype_and_shape(kind, groups):
    parts = block(conv=nn.Conv2d(8, 8, 1, groups=groups), low=nn.Conv2d(8, 8, 1))
    model = own(lambda self, x: self.relu(INTO[kind](self, x)), **parts).float()
    model.low.bfloat16()
    fast, x = rk.optimize_for_inference(model), images(torch.float32, channels=8)
    assert fast.report.fused["conv"].endswith("residual sum + ReLU")
    if kind == "into a smaller one":
        with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
            fast(x)
    else:
        assert fast(x).dtype == model(x).dtype
        assert relative_error(fast(x), model(x)) < 1e-2


@pytest.mark.parametrize("groups", [1, 2])
def test_devices_without_autocast(groups):
    parts = block(conv=nn.Conv2d(8, 8, 1, groups=groups))
    fast = rk.optimize_for_inference(own(lambda self, x: self.conv(x) + x, **parts)).to("meta")
    x = images(channels=8).to("meta")
    assert fast(x).shape == x.shape


@pytest.mark.parametrize("groups", [1, 2])
def test_gradient_by_the_bias_alone(groups):
    parts = block(conv=nn.Conv2d(8, 8, 3, groups=groups))
    fast = rk.optimize_for_inference(own(lambda self, x: self.bn(self.conv(x)), **parts).float())
    fast.conv.bias.requires_grad_()
    out = fast(images(torch.float32, channels=8))
    out.sum().backward()
    assert torch.equal(fast.conv.bias.grad, torch.full((8,), float(out[:, 0].numel())))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("groups", [1, 2])
def test_scripting_is_refused(groups):
    parts = block(conv=nn.Conv2d(8, 8, 3, groups=groups))
    fast = rk.optimize_for_inference(own(lambda self, x: self.bn(self.conv(x)), **parts))
    with pytest.raises(rk.ProblemError, match=r"torch.jit.script: .* expected torch.jit.trace"):
        torch.jit.script(fast)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_transforms_and_other_recorders():
    model, x = small().double(), images()
    fast = rk.optimize_for_inference(model)
    ref = model(x)
    assert relative_error(torch.func.vmap(fast)(x[:, None])[:, 0], ref) < 1e-12
    assert relative_error(torch.fx.symbolic_trace(fast)(x), ref) < 1e-12
    assert relative_error(torch.jit.trace(fast, x)(x), ref) < 1e-12
    assert relative_error(fast.conv1(x[0]), fast.conv1(x[:1])[0]) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
def test_settings_that_are_tuples_of_one(groups):
    """As torch takes them: for height and width alike."""
    conv = nn.Conv2d(8, 8, 3, stride=(2,), padding=(1,), dilation=(1,), groups=groups)
    model, x = nn.Sequential(conv, nn.BatchNorm2d(8)).eval(), torch.randn(2, 8, 9, 9)
    assert relative_error(rk.optimize_for_inference(model)(x), model(x)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("change", [lambda w: w[:4], lambda w: w.mT], ids=["pruned", "transposed"])
def test_weight_replaced_by_a_view_of_it(change):
    """It begins where the old one did, which had been laid out."""
    model, x = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False)).eval(), torch.randn(2, 8, 9, 9)
    fast = rk.optimize_for_inference(model)
    fast(x)
    conv = fast.get_submodule("0")
    conv.weight = nn.Parameter(change(conv.weight), requires_grad=False)
    out = fast(x)
    expected = nn.functional.conv2d(x, change(model[0].weight))
    assert out.shape == expected.shape
    assert relative_error(out, expected) < 1e-5
