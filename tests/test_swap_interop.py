"""`replace_grouped_convs` on the models of torchvision and timm."""

import copy
import importlib

import pytest
import torch
from interop import import_timm, import_torchvision
from small_models import relative_error
from torch import nn

from resnext_kernels import GroupedConv2d, replace_grouped_convs

TORCHVISION = {
    "resnext50_32x4d": {},
    "regnet_x_400mf": {},
    "regnet_y_400mf": {},
    "shufflenet_v2_x0_5": {},
    "mobilenet_v2": {"dropout": 0.0},
    "mobilenet_v3_small": {"dropout": 0.0},
}
TIMM = ("resnext26ts", "seresnext26d_32x4d", "regnetx_002", "regnety_002", "efficientnet_lite0")


def from_torchvision(name, **options):
    return import_torchvision().models.get_model(name, num_classes=10, **options)


def from_timm(name):
    return import_timm().create_model(name, num_classes=10)


MODELS = [
    pytest.param(lambda n=name, o=options: from_torchvision(n, **o), id=f"torchvision-{name}")
    for name, options in TORCHVISION.items()
] + [pytest.param(lambda n=name: from_timm(n), id=f"timm-{name}") for name in TIMM]


def images(dtype=torch.float32):
    return torch.randn(2, 3, 64, 64, dtype=dtype)


def training_step(model, x):
    model.zero_grad()
    loss = nn.functional.cross_entropy(model.train()(x), torch.tensor([3, 7]))
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()]


def without_idle_blocks(model):
    """Gives the last normalisation of a block, which many models start at 0, a share in it."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.ones_(module.weight)
    return model


@pytest.mark.parametrize("make", MODELS)
def test_same_model_after_the_swap(make):
    model, x = without_idle_blocks(make()).eval(), images()
    keys, tensors = list(model.state_dict()), [id(value) for value in model.parameters()]
    convolutions = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    grouped = [name for name, module in convolutions if module.groups > 1]
    ref = model(x)
    report = replace_grouped_convs(model)
    assert grouped and list(report.replaced) == grouped and not report.skipped
    assert list(model.state_dict()) == keys
    assert [id(value) for value in model.parameters()] == tensors
    assert relative_error(model(x), ref) < 1e-5
    report.restore()
    assert GroupedConv2d not in {type(module) for module in model.modules()}


@pytest.mark.parametrize("make", MODELS)
def test_gradients_of_a_training_step(make):
    """In float64: ReLU's kink turns the rounding of float32 into errors of some per cent."""
    model, x = without_idle_blocks(make()).double(), images(torch.float64)
    loss, gradients = training_step(copy.deepcopy(model), x)
    replace_grouped_convs(model)
    swapped_loss, swapped = training_step(model, x)
    assert torch.allclose(swapped_loss, loss, rtol=1e-9)
    for got, gradient in zip(swapped, gradients, strict=True):
        assert torch.allclose(got, gradient, rtol=1e-5, atol=1e-9 * gradient.abs().max())


@pytest.mark.parametrize("make", MODELS)
def test_gradients_of_each_layer(make):
    """In float32, each layer given the input and the gradient that a training step gave it."""
    model, inputs, errors = without_idle_blocks(make()), {}, []

    def check(conv, grad_input, grad_output):
        x, weight, grad = (t.detach().double() for t in (inputs[conv], conv.weight, *grad_output))
        settings = (conv.stride, conv.padding, conv.dilation, conv.groups)
        truth = torch.nn.grad.conv2d_input(x.shape, weight, grad, *settings)
        errors.append(relative_error(grad_input[0], truth))
        conv.weight.truth = torch.nn.grad.conv2d_weight(x, weight.shape, grad, *settings)

    report = replace_grouped_convs(model)
    layers = [model.get_submodule(name) for name in report.replaced]
    for layer in layers:
        layer.register_forward_pre_hook(lambda conv, args: inputs.update({conv: args[0]}))
        layer.register_full_backward_hook(check)
    training_step(model, images())
    errors += [relative_error(layer.weight.grad, layer.weight.truth) for layer in layers]
    assert len(errors) == 2 * len(layers) and max(errors) < 1e-5


def test_convolutions_of_timms_own_are_skipped():
    """TensorFlow's padding makes timm compute it in a forward of its own."""
    model = from_timm("tf_mobilenetv3_small_minimal_100").eval()
    x = images()
    ref = model(x)
    report = replace_grouped_convs(model)
    assert report.replaced and report.skipped
    assert set(report.skipped.values()) == {"Conv2dSame has a forward of its own"}
    assert relative_error(model(x), ref) < 1e-5


def test_model_without_grouped_convolutions():
    with pytest.warns(UserWarning, match="nothing to replace in ResNet: .* 20 with groups=1"):
        replace_grouped_convs(from_torchvision("resnet18"))


def test_torchvision_feature_extraction_after_the_swap():
    model, x = from_torchvision("shufflenet_v2_x0_5").eval(), images()
    node = "stage2.0.branch1.0"
    module = importlib.import_module("torchvision.models.feature_extraction")
    extract = module.create_feature_extractor
    ref = extract(model, [node])(x)[node]
    replace_grouped_convs(model)
    assert relative_error(extract(model, [node])(x)[node], ref) < 1e-5


def test_compiled_in_one_graph():
    model, x = from_torchvision("shufflenet_v2_x0_5").eval(), images()
    ref = model(x)
    replace_grouped_convs(model)
    torch.compiler.reset()
    out = torch.compile(model, backend="eager", fullgraph=True)(x)
    assert relative_error(out, ref) < 1e-5
