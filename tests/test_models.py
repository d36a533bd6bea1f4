"""The model family against its published sizes and against torchvision's models."""

import copy
import io
import re

import numpy as np
import pytest
import torch
from interop import import_torchvision
from small_models import randomise, relative_error, tiny, tiny_torchvision
from torch import nn

from resnext_kernels import models
from resnext_kernels.nn import GroupedConv2d

CIFAR = ("resnext29_8x64d", "resnext29_16x64d")
IN_TORCHVISION = (
    "resnet50",
    "resnet101",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
)


def multiply_adds(model, size):
    """Multiply-adds of the convolutions and the classifier for one image, by hooks on meta."""
    total = 0

    def count(module, _, output):
        nonlocal total
        total += output.numel() // len(module.weight) * module.weight.numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model.eval()(torch.empty(1, 3, size, size, device="meta"))
    return total


def on_meta(name, **options):
    with torch.device("meta"):
        return getattr(models, name)(**options)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


# As torchvision publishes them with its weights; resnext101_32x4d as timm's model card has it.
@pytest.mark.parametrize(
    ("name", "millions", "gmac"),
    [
        ("resnet50", 25.56, 4.1),
        ("resnet101", 44.55, 7.8),
        ("resnext50_32x4d", 25.03, 4.2),
        ("resnext101_32x4d", 44.18, 8.0),
        ("resnext101_32x8d", 88.79, 16.4),
        ("resnext101_64x4d", 83.46, 15.5),
    ],
)
def test_published_size(name, millions, gmac):
    model = on_meta(name)
    assert round(parameters(model) / 1e6, 2) == millions
    assert round(multiply_adds(model, 224) / 1e9, 1) == gmac


# Table 7 of the paper.
@pytest.mark.parametrize(
    ("name", "millions"), [("resnext29_8x64d", 34.4), ("resnext29_16x64d", 68.1)]
)
def test_published_size_of_cifar_models(name, millions):
    assert parameters(on_meta(name)) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("name", IN_TORCHVISION)
def test_size_is_what_torchvision_publishes(name):
    weights = import_torchvision().models.get_model_weights(name).DEFAULT
    model = on_meta(name)
    assert parameters(model) == weights.meta["num_params"]
    assert multiply_adds(model, 224) / 1e9 == pytest.approx(weights.meta["_ops"], abs=0.005)


@pytest.mark.parametrize("name", models.__all__)
def test_every_factory_documents_its_size(name):
    factory = getattr(models, name)
    model = on_meta(name)
    gmac = multiply_adds(model, 32 if name in CIFAR else 224) / 1e9
    assert f"{parameters(model):,} parameters, {gmac:.1f} GMAC" in factory.__doc__


@pytest.mark.parametrize("name", models.__all__)
def test_grouped_convolutions_are_ours(name):
    model = on_meta(name)
    blocks = [module for module in model.modules() if isinstance(module, models.Bottleneck)]
    depth = int("".join(filter(str.isdigit, name.split("_")[0])))
    assert 3 * len(blocks) + 2 == depth
    for block in blocks:
        assert block.conv2.groups == model.cardinality
        assert isinstance(block.conv2, GroupedConv2d) == (model.cardinality > 1)
        assert block.conv1.groups == block.conv3.groups == 1
    first_width = blocks[0].conv2.in_channels
    assert first_width == model.cardinality * model.bottleneck_width


@pytest.mark.parametrize("name", IN_TORCHVISION)
def test_names_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        theirs = getattr(import_torchvision().models, name)(weights=None)
    ours = on_meta(name)
    shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (ours, theirs)]
    assert list(shapes[0].items()) == list(shapes[1].items())
    children = [[child for child, _ in m.named_children()] for m in (ours, theirs)]
    assert children[0] == children[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"zero_init_residual": True},
        {"norm_layer": lambda channels: nn.GroupNorm(4, channels)},
        {"num_classes": 3},
    ],
    ids=["default", "zero_init_residual", "norm_layer", "num_classes"],
)
def test_initialisation_is_torchvisions(options):
    with torch.random.fork_rng():
        torch.manual_seed(seed := torch.randint(2**31, ()).item())
        ours = tiny(**options).state_dict()
        torch.manual_seed(seed)
        theirs = tiny_torchvision(**options).state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"replace_stride_with_dilation": [False, False, True]},
        {"replace_stride_with_dilation": [False, True, True]},
        {"replace_stride_with_dilation": [True, False, True]},
        {"norm_layer": lambda channels: nn.GroupNorm(4, channels)},
    ],
    ids=["plain", "dilate 4", "dilate 3 and 4", "dilate 2 and 4", "group norm"],
)
def test_outputs_and_gradients_are_torchvisions(options):
    theirs = randomise(tiny_torchvision(**options)).double()
    ours = tiny(**options).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 65, 47, dtype=torch.float64)
    for train in (False, True):
        out, ref = ours.train(train)(images), theirs.train(train)(images)
        assert relative_error(out, ref) < 1e-12
    weight = torch.randn_like(ref)
    (out * weight).sum().backward()
    (ref * weight).sum().backward()
    reference = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert relative_error(parameter.grad, reference[name]) < 1e-9, name


@pytest.mark.parametrize("channels_last", [False, True])
def test_resnext50_agrees_with_torchvision_in_float32(channels_last):
    theirs = randomise(import_torchvision().models.resnext50_32x4d(weights=None)).eval()
    ours = models.resnext50_32x4d().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ref = theirs(images)
        if channels_last:
            ours, images = (x.to(memory_format=torch.channels_last) for x in (ours, images))
        assert relative_error(ours(images), ref) < 1e-5


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_models_follow_section_5_3(name):
    model = on_meta(name).eval()
    shapes = {}
    for stage in ("layer1", "layer2", "layer3", "avgpool"):
        getattr(model, stage).register_forward_hook(
            lambda module, args, output, stage=stage: shapes.update({stage: tuple(output.shape)})
        )
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
    assert shapes == {
        "layer1": (2, 256, 32, 32),
        "layer2": (2, 512, 16, 16),
        "layer3": (2, 1024, 8, 8),
        "avgpool": (2, 1024, 1, 1),
    }
    assert on_meta(name, num_classes=100).fc.out_features == 100


def test_blocks_without_a_scale_have_none_to_zero():
    model = tiny(zero_init_residual=True, norm_layer=lambda channels: nn.Identity())
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 7)


def test_copies_and_pickles():
    model = randomise(tiny(stem="cifar", layers=(1, 1))).eval()
    images = torch.randn(2, 3, 16, 16)
    ref = model(images)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(images), ref)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ()}, r"layers=\(\): expected a sequence of positive integers"),
        ({"layers": (2, 0)}, r"layers\[1\]=0: expected a positive integer"),
        ({"cardinality": 0}, r"cardinality=0: expected a positive integer"),
        ({"cardinality": 2.0}, r"cardinality=2.0: expected a positive integer"),
        ({"bottleneck_width": -4}, r"bottleneck_width=-4: expected a positive integer"),
        ({"num_classes": 0}, r"num_classes=0: expected a positive integer"),
        ({"num_classes": True}, r"num_classes=True: expected a positive integer"),
        ({"num_classes": 2.5}, r"num_classes=2.5: expected a positive integer"),
        ({"layers": 4}, r"layers=4: expected a sequence of positive integers"),
        ({"layers": "11"}, r"layers\[0\]='1': expected a positive integer"),
        ({"stem": "mnist"}, r"stem='mnist': expected one of imagenet, cifar"),
        ({"zero_init_residual": "no"}, r"zero_init_residual='no': expected True or False"),
        ({"norm_layer": "batch"}, r"norm_layer='batch': expected None or a callable"),
        ({"norm_layer": False}, r"norm_layer=False: expected None or a callable"),
        ({"norm_layer": nn.BatchNorm2d(64)}, r"norm_layer=BatchNorm2d\(64, .*: expected None or"),
        *(
            (
                {"replace_stride_with_dilation": flags},
                rf"replace_stride_with_dilation={re.escape(repr(flags))}: expected None or 3 flags",
            )
            for flags in ([True, False], "abc", 3, True, [0, 1, 2], [None] * 3)
        ),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_integers_of_numpy():
    """As the number of classes is where labels are counted."""
    sizes = {"cardinality": 4, "bottleneck_width": 8, "num_classes": 7}
    model = tiny(**{name: np.int64(size) for name, size in sizes.items()})
    assert repr(model) == repr(tiny(**sizes))


@pytest.mark.parametrize("option", ["cardinality", "pretrained"])
def test_unknown_options_are_refused(option):
    with pytest.raises(TypeError, match=option):
        models.resnext50_32x4d(**{option: 1})


@torch.no_grad()
def test_scripted():
    model, images = tiny().eval(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.jit.script(model)(images), model(images))
