"""What `replace_grouped_convs` leaves alone and why, and what is near to it and yet replaced."""

import pytest
import torch
from small_models import relative_error
from torch import nn
from torch.ao import quantization
from torch.ao.quantization.quantize_fx import prepare_fx
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from resnext_kernels import GroupedConv2d, replace_grouped_convs

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:.*(reduce_range|quantize_per|quantized|range for observers)",
)


def conv(**options):
    return nn.Conv2d(8, 8, 3, groups=4, padding=1, **options)


def images():
    return torch.randn(2, 8, 9, 9)


class OwnForward(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) * 2


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight - weight.mean(), bias)


class OwnMethod(nn.Conv2d):
    def sparsity(self):
        return (self.weight == 0).float().mean()


class CondConv2d(nn.Module):
    """A convolution that owes nothing to torch's."""

    def __init__(self):
        super().__init__()
        self.groups, self.weight = 4, nn.Parameter(torch.randn(8, 2, 3, 3))


def forward_of_its_own():
    module = conv()
    module.forward = lambda input: input
    return module


def parametrised():
    return parametrizations.weight_norm(conv())


def prepared():
    module = nn.Sequential(conv()).eval()
    module.qconfig = quantization.get_default_qconfig("x86")
    return quantization.prepare(module)


def prepared_as_a_graph():
    mapping = quantization.get_default_qconfig_mapping("x86")
    return prepare_fx(nn.Sequential(conv()).eval(), mapping, (images(),))


def fused_and_prepared():
    mapping = quantization.get_default_qconfig_mapping("x86")
    return prepare_fx(nn.Sequential(conv(), nn.ReLU()).eval(), mapping, (images(),))


def quantised():
    module = prepared()
    module(images())
    return quantization.convert(module)


def quantisation_aware():
    module = nn.Sequential(conv())
    module.qconfig = quantization.get_default_qat_qconfig("x86")
    return quantization.prepare_qat(module)


def without_weight():
    """As code that computes the weight itself leaves a module between two calls."""
    module = conv()
    del module.weight
    return module


class Wrapped(torch.Tensor):
    """The least of a tensor subclass that wraps others, as sharded and quantised weights are."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner, *_):
        return Wrapped(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def unwrap(value):
            return value.inner if isinstance(value, Wrapped) else value

        out = function(*map(unwrap, args), **(kwargs or {}))
        return Wrapped(out) if function is torch.ops.aten.detach.default else out


def wrapped_weight():
    module = conv()
    module.weight = nn.Parameter(Wrapped(module.weight.detach()), requires_grad=False)
    return module


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: OwnForward(8, 8, 3, groups=4), "OwnForward has a forward of its own"),
        (lambda: OwnConvForward(8, 8, 3, groups=4), "OwnConvForward has a _conv_forward of its"),
        (lambda: OwnMethod(8, 8, 3, groups=4), "OwnMethod is a subclass of torch.nn.Conv2d"),
        (forward_of_its_own, "its forward was replaced on the instance"),
        (parametrised, "ParametrizedConv2d is parametrised: swap before"),
        (lambda: nn.LazyConv2d(8, 3, groups=4), "LazyConv2d has no weight yet: swap after"),
        (lambda: conv(dtype=torch.complex64), "its weight is torch.complex64"),
        (without_weight, "it has no weight"),
        (wrapped_weight, "its weight is a Wrapped: swap before sharding or quantising"),
        (prepared, "prepared for quantisation"),
        (prepared_as_a_graph, "prepared for quantisation"),
        (fused_and_prepared, "prepared for quantisation"),
        (quantised, "Conv2d of torch.ao.nn.quantized.modules.conv is quantised"),
        (quantisation_aware, "Conv2d of torch.ao.nn.qat.modules.conv is quantised"),
        (lambda: torch.jit.script(conv()), "TorchScript is compiled already: swap before"),
        (lambda: torch.jit.trace(conv(), images()), "TorchScript is compiled already: swap before"),
        (lambda: nn.Conv1d(8, 8, 3, groups=4), "Conv1d is not a torch.nn.Conv2d"),
        (lambda: nn.ConvTranspose2d(8, 8, 3, groups=4), "ConvTranspose2d is not a torch.nn.Conv2d"),
        (CondConv2d, "CondConv2d is not a torch.nn.Conv2d"),
    ],
)
def test_skipped_with_its_reason(make, reason):
    model = nn.Sequential(make())
    before = [type(module) for module in model.modules()]
    with pytest.warns(UserWarning, match="nothing to replace") as caught:
        report = replace_grouped_convs(model)
    assert [type(module) for module in model.modules()] == before and not report.replaced
    assert [text for text in report.skipped.values() if text.startswith(reason)], report
    assert reason in str(caught[-1].message)


@pytest.mark.parametrize(
    "change",
    [
        lambda module: prune.l1_unstructured(module, "weight", 0.5),
        spectral_norm,
        weight_norm,
        lambda module: module.requires_grad_(False),
        lambda module: module.share_memory(),
    ],
    ids=["prune", "spectral_norm", "weight_norm", "frozen", "shared_memory"],
)
def test_weights_made_by_hooks_are_replaced(change):
    model, x = nn.Sequential(conv()).eval(), images()
    change(model[0])
    ref = model(x)
    assert list(replace_grouped_convs(model).replaced) == ["0"]
    assert relative_error(model(x), ref) < 1e-5


def test_a_lazy_convolution_after_its_first_forward():
    model, x = nn.Sequential(nn.LazyConv2d(8, 3, groups=4)), images()
    ref = model(x)
    assert list(replace_grouped_convs(model).replaced) == ["0"]
    assert relative_error(model(x), ref) < 1e-5


def test_parametrising_after_the_swap():
    model, x = nn.Sequential(conv(), conv()), images()
    report = replace_grouped_convs(model)
    ref = model(x)
    parametrizations.weight_norm(model[0])
    assert isinstance(model[0], GroupedConv2d) and relative_error(model(x), ref) < 1e-5
    with pytest.warns(UserWarning, match=r"not restored.* 0 \(ParametrizedGroupedConv2d\)"):
        report.restore()
    assert isinstance(model[0], GroupedConv2d) and type(model[1]) is nn.Conv2d
    assert relative_error(model(x), ref) < 1e-5
    parametrize.remove_parametrizations(model[0], "weight")
    report.restore()
    assert type(model[0]) is nn.Conv2d and relative_error(model(x), ref) < 1e-5
