"""What `optimize_for_inference` finds in a model, what it leaves, and why."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from fusible import assert_same, block, images, optimised, own, parts_of
from small_models import relative_error
from torch import nn

import resnext_kernels as rk


def test_one_fused_call_for_a_grouped_block_with_a_shortcut():
    def run(self, x):
        out = self.bn(self.conv(x))
        out += x
        return self.relu(out)

    fast = optimised(own(run, **block()))
    assert [node.op for node in fast.graph.nodes] == ["placeholder", "call_module", "output"]
    x = images(channels=8)
    with torch.profiler.profile() as profile, torch.enable_grad():
        fast(x.requires_grad_())
    assert "resnext_kernels::grouped_conv2d_fused" in {
        event.key for event in profile.key_averages()
    }


SUMS = {
    "add": lambda self, out, x: self.relu(out + x),
    "reversed": lambda self, out, x: self.relu(x + out),
    "torch_add": lambda self, out, x: torch.relu(torch.add(out, x)),
    "method": lambda self, out, x: out.add(x).relu(),
    "in_place": lambda self, out, x: out.add_(x).relu_(),
    "function": lambda self, out, x: F.relu(out + x, inplace=True),
}


@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("groups", [1, 2])
def test_forms_of_the_sum(kind, groups):
    parts = block(conv=nn.Conv2d(8, 8, 3, padding="same", groups=groups))
    fast = optimised(own(lambda self, x: SUMS[kind](self, self.bn(self.conv(x)), x), **parts))
    assert len(fast.graph.nodes) == 3


NOT_THE_SUM = {
    "alpha": lambda self, out, x: torch.add(out, x, alpha=2),
    "number": lambda self, out, x: out + 1,
    "itself": lambda self, out, x: out + out,
    "relu_between": lambda self, out, x: self.relu(out) + x,
    "read_twice": lambda self, out, x: (out + x) * out,
    "sum_into_the_image": lambda self, out, x: x.add_(out) * x,
    "written_on_the_way": lambda self, out, x: (x.mul_(2), out + x)[1],
}


@pytest.mark.parametrize("kind", NOT_THE_SUM)
def test_other_sums_stay(kind):
    run = NOT_THE_SUM[kind]
    fast = optimised(own(lambda self, x: run(self, self.bn(self.conv(x)), x), **block()))
    assert "residual" not in str(fast.report)
    assert "batch normalisation" in fast.report.fused["conv"]


def test_residual_that_is_broadcast():
    def run(self, x):
        return self.relu(self.bn(self.conv(x)) + x.mean((2, 3), keepdim=True))

    fast = optimised(own(run, **block()))
    assert fast.report.fused["conv"].endswith("residual sum + ReLU")


LEFT = {
    "read_twice": (
        lambda self, x: (c := self.conv(x), self.bn(c) * c)[1], {},
        "bn", "the output of conv is read elsewhere, too",
    ),
    "returned": (
        lambda self, x: (c := self.conv(x), torch.stack([self.bn(c), c]))[1], {},
        "bn", "the output of conv is read elsewhere, too",
    ),
    "called_twice": (
        lambda self, x: self.bn(self.conv(self.conv(x))), {}, "conv", "it is called 2 times",
    ),
    "weight_read": (
        lambda self, x: self.bn(self.conv(x)) * self.conv.weight.sum(), {},
        "conv", "its parameters are read outside of it, too",
    ),
    "no_statistics": (
        lambda self, x: self.bn(self.conv(x)), {"bn": nn.BatchNorm2d(8, track_running_stats=False)},
        "bn", "it has no running statistics",
    ),
    "first": (
        lambda self, x: self.conv(self.relu(self.bn(x))), {}, "bn", "it does not follow a conv",
    ),
    "after_a_relu": (
        lambda self, x: self.bn(self.relu(self.conv(x))), {}, "bn", "it does not follow a conv",
    ),
    "after_a_sum": (
        lambda self, x: self.bn(self.conv(x) + x), {}, "bn", "it does not follow a conv",
    ),
    "transposed": (
        lambda self, x: self.bn(self.conv(x)), {"conv": nn.ConvTranspose2d(8, 8, 3)},
        "conv", "ConvTranspose2d is not a torch.nn.Conv2d",
    ),
    "parametrised": (
        lambda self, x: self.bn(self.conv(x)),
        {"conv": nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, groups=2))},
        "conv", "ParametrizedConv2d is parametrised",
    ),
    "old_weight_norm": (
        lambda self, x: self.bn(self.conv(x)),
        {"conv": nn.utils.spectral_norm(nn.Conv2d(8, 8, 3, groups=2))}, "conv", "it has hooks",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LEFT)
def test_left_alone_with_a_reason(kind):
    run, parts, name, reason = LEFT[kind]
    fast = optimised(own(run, **block(**parts)))
    assert fast.report.left[name].startswith(reason)
    assert reason in str(fast.report)


def test_normalisation_of_a_convolution_left_alone():
    fast = optimised(own(lambda self, x: self.bn(self.conv(self.conv(x))), **block()))
    assert fast.report.left["bn"] == "conv was left alone"


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
@pytest.mark.parametrize("groups", [1, 2])
def test_padding_modes(mode, groups):
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=groups, padding_mode=mode)
    fast = optimised(own(lambda self, x: self.relu(self.bn(self.conv(x)) + x), **block(conv=conv)))
    assert len(fast.graph.nodes) == 3


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
def test_padding_of_different_sides():
    conv = nn.Conv2d(8, 8, 4, padding="same", groups=2)
    optimised(own(lambda self, x: self.relu(self.bn(self.conv(x)) + x), **block(conv=conv)))


def test_normalisation_without_parameters_and_shared():
    def run(self, x):
        return self.bn(self.conv(self.bn(self.other(x))))

    bn = nn.BatchNorm2d(8, affine=False)
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    fast = optimised(own(run, **block(bn=bn), other=nn.Conv2d(8, 8, 1)))
    assert not fast.report.left and not parts_of(fast, nn.BatchNorm2d)


@pytest.mark.parametrize("act", [nn.ReLU6(), nn.SiLU(inplace=True), nn.LeakyReLU()])
def test_other_activations_stay(act):
    fast = optimised(own(lambda self, x: self.relu(self.bn(self.conv(x))), **block(relu=act)))
    assert parts_of(fast, type(act)) == ["relu"]


def test_relu_in_place_on_a_tensor_read_again():
    def run(self, x):
        out = self.bn(self.conv(x))
        return self.relu(out) + 2 * out

    fast = optimised(own(run, **block()))
    assert parts_of(fast, nn.ReLU) == ["relu"]


def test_dropout_and_views_of_channels_last():
    def run(self, x):
        x = self.drop(self.idle(self.bn(self.conv(x))))
        return self.relu(F.dropout(x, training=self.training)).view(x.size(0), -1)

    parts = block(drop=nn.Dropout(), idle=nn.Identity())
    model, x = own(run, **parts), images(channels=8)
    fast = rk.optimize_for_inference(model)
    assert relative_error(fast(x), model(x)) < 1e-12
    assert not parts_of(fast, (nn.Dropout, nn.Identity, nn.BatchNorm2d))


def test_containers_pass_through_an_identity():
    def run(self, x):
        (listed,), named = self.idle([self.conv(x)]), self.drop({"x": self.bn(self.conv(x))})
        return listed + named["x"]

    optimised(own(run, **block(idle=nn.Identity(), drop=nn.Identity())))


def test_augmented_assignments_write_in_place():
    """Other names of the tensor see it, as in Python."""

    def run(self, x):
        left, right = self.bn(self.conv(x)).split(4, 1)
        halves = [left, right]
        left += right
        left -= 1
        right *= left
        right /= 2
        height = size = x.shape[2]
        size += 1
        return torch.cat(halves, 1) * size / height

    def chain(self, x):
        seen = x = self.bn(self.conv(x))
        x += self.relu(x)
        return seen

    for forward in (run, chain):
        fast = optimised(own(forward, **block()))
        assert_same(pickle.loads(pickle.dumps(fast)), fast, images(channels=8))


def test_autocast_in_a_forward_stays():
    """`torch.fx` would record it as if there were none."""

    def run(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.bn(self.conv(x))

    inner = own(run, **block())
    outer = own(lambda self, x: self.bn(self.conv(self.inner(x))), **block(), inner=inner).float()
    fast = rk.optimize_for_inference(outer)
    assert fast.report.left == {"inner": "torch.fx cannot record Own.forward: it uses autocast"}
    assert list(fast.report.fused) == ["conv"]
    x = images(torch.float32, channels=8)
    with torch.no_grad(), torch.autocast("cpu"):
        assert fast.inner(x).dtype == outer.inner(x).dtype == torch.float32
        assert fast(x).dtype == outer(x).dtype == torch.bfloat16


def test_convolution_with_two_names():
    model = own(lambda self, x: self.bn(self.other(self.conv(x))), **block())
    model.other = model.conv
    fast = optimised(model)
    assert not fast.report.fused and set(fast.report.left) == {"conv", "bn"}


def test_module_that_cannot_be_recorded_stays_whole():
    def run(self, x):
        return self.bn(self.conv(x)) if x.sum() > 0 else self.conv(x)

    inner = own(run, **block())
    outer = own(lambda self, x: self.bn(self.conv(self.inner(x))), **block(), inner=inner)
    fast = optimised(outer)
    assert fast.report.left["inner"].startswith("torch.fx cannot record Own.forward")
    assert list(fast.report.fused) == ["conv"]
    with pytest.raises(rk.ProblemError, match="model: torch.fx cannot record Own.forward"):
        rk.optimize_for_inference(inner)


def test_hooks_stay():
    seen = []
    inner = own(lambda self, x: self.bn(self.conv(x)), **block())
    inner.register_forward_hook(lambda *_: seen.append("inner"))
    outer = own(lambda self, x: self.bn(self.conv(self.inner(x))), **block(), inner=inner)
    outer.bn.register_forward_pre_hook(lambda *_: seen.append("bn"))
    fast = rk.optimize_for_inference(outer)
    fast(images(channels=8))
    assert seen == ["inner", "bn"]
    assert fast.report.left == {"inner": "it has hooks", "bn": "it has hooks"}
    with pytest.raises(rk.ProblemError, match="model: Own has hooks"):
        rk.optimize_for_inference(inner)


class WithDefaults(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x, mask=None, twice: bool = False):
        out = self.conv(x)
        if mask is not None:
            out = out * mask
        return out + out if twice else out


def test_arguments_with_defaults():
    model = WithDefaults().double().eval()
    fast = rk.optimize_for_inference(model)
    assert_same(model, fast, images())
    assert relative_error(fast(x=images(), mask=None, twice=False), torch.ones(())) > 0
    for wrong in ({"mask": torch.ones(())}, {"twice": True}):
        with pytest.raises(AssertionError, match="has been specialized"):
            fast(images(), **wrong)
        with pytest.raises(AssertionError, match="has been specialized"):
            fast(images(), **wrong)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    "changed", [((1, 1), (2, 2), (2, 2)), (1, 2, 2), ((1, 1), "same", (2, 2))], ids=str
)
def test_settings_changed_after_construction(changed, groups):
    """As code that dilates a backbone does."""
    conv = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=groups)
    conv.stride, conv.padding, conv.dilation = changed
    model = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU()).eval()
    x = torch.randn(2, 8, 9, 11)
    fast = rk.optimize_for_inference(model)
    assert list(fast.report.fused) == ["0"]
    assert fast(x).shape == model(x).shape and relative_error(fast(x), model(x)) < 1e-5
