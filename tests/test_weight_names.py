"""The names that parameters carry in other people's checkpoints."""

import pytest
import torch
from interop import import_timm
from small_models import randomise, relative_error, tiny
from torch import nn

from resnext_kernels import models
from resnext_kernels.models import load_weights
from resnext_kernels.models.weight_names import canonical_state_dict


class Both(nn.ModuleList):
    """Torch7's ConcatTable and CAddTable in one."""

    def forward(self, x):
        return sum(branch(x) for branch in self)


def released_block(channels, planes, stride, cardinality, width, nested):
    """The Torch7 release's block; converted checkpoints nest the first two convolutions or not."""
    inner = planes * width // 64 * cardinality
    head = [
        *(nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
        nn.Conv2d(inner, inner, 3, stride, 1, groups=cardinality, bias=False),
        *(nn.BatchNorm2d(inner), nn.ReLU()),
    ]
    tail = [nn.Conv2d(inner, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)]
    shortcut = nn.Identity()
    if channels != 4 * planes:
        projection = nn.Conv2d(channels, 4 * planes, 1, stride, bias=False)
        shortcut = nn.Sequential(projection, nn.BatchNorm2d(4 * planes))
    residual = nn.Sequential(nn.Sequential(*head), *tail) if nested else nn.Sequential(*head, *tail)
    return nn.Sequential(Both([residual, shortcut]), nn.ReLU())


def released_model(layers, cardinality, width, num_classes, stem, nested):
    """An independent ResNeXt with the release's numbered names."""
    if stem == "imagenet":
        modules = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        modules.append(nn.MaxPool2d(3, 2, 1))
    else:
        modules = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    channels = 64
    for stage, count in enumerate(layers):
        blocks = []
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            blocks.append(
                released_block(channels, 64 * 2**stage, stride, cardinality, width, nested)
            )
            channels = 256 * 2**stage
        modules.append(nn.Sequential(*blocks))
    classifier = nn.Linear(channels, num_classes)
    modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    modules.append(nn.Sequential(nn.Identity(), classifier) if nested else classifier)
    return randomise(nn.Sequential(*modules)).eval()


def renamed(state, old, new):
    return {key.replace(old, new): value for key, value in state.items()}


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


FOREIGN = {
    "torchvision": lambda state: state,
    "data parallel": lambda state: prefixed(state, "module."),
    "wrapped module": lambda state: prefixed(state, "model."),
    "compiled and distributed": lambda state: prefixed(state, "module._orig_mod."),
    "state_dict wrapper": lambda state: {"epoch": 3, "state_dict": prefixed(state, "module.")},
    "model wrapper": lambda state: {"model": state, "optimizer": {"state": {}}},
    "last_linear": lambda state: renamed(state, "fc.", "last_linear."),
    "classifier": lambda state: renamed(state, "fc.", "classifier."),
    "head.fc": lambda state: renamed(state, "fc.", "head.fc."),
    "without counters": lambda state: {
        key: value for key, value in state.items() if "num_batches" not in key
    },
}


@pytest.mark.parametrize("naming", FOREIGN)
def test_foreign_names_load_exactly(naming):
    source = randomise(tiny(layers=(1, 2))).eval()
    model = tiny(layers=(1, 2)).eval()
    load_weights(model, FOREIGN[naming](source.state_dict()))
    images = torch.randn(2, 3, 33, 33)
    assert torch.equal(model(images), source(images))


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
@pytest.mark.parametrize("split", [False, True], ids=["numbers", "features and last_linear"])
def test_numbered_names_of_the_release(stem, nested, split):
    layers = (1, 2, 1, 2) if stem == "imagenet" else (2, 1, 2)
    theirs = released_model(layers, 4, 8, 7, stem, nested)
    state = theirs.state_dict()
    if split:
        last = f"{len(theirs) - 1}." + ("1." if nested else "")
        state = {
            "last_linear." + key.removeprefix(last)
            if key.startswith(last)
            else "features." + key: value
            for key, value in state.items()
        }
    ours = tiny(layers=layers, stem=stem).eval()
    load_weights(ours, state)
    images = torch.randn(2, 3, 40, 24)
    assert relative_error(ours(images), theirs(images)) < 1e-5


def test_numbered_names_reach_the_depth_of_the_published_release():
    state = released_model((1, 1, 1, 1), 4, 8, 7, "imagenet", nested=True).state_dict()
    canonical = canonical_state_dict(prefixed(state, "features."))
    for number, name in {
        "0": "conv1",
        "4.0.0.0.0.0": "layer1.0.conv1",
        "4.0.0.0.0.3": "layer1.0.conv2",
        "5.0.0.0.1": "layer2.0.conv3",
        "7.0.0.1.1": "layer4.0.downsample.1",
        "10.1": "fc",
    }.items():
        assert canonical[f"{name}.weight"] is state[f"{number}.weight"]


@pytest.mark.parametrize("name", ["resnext50_32x4d", "resnext101_64x4d", "resnet50"])
def test_timm_names_are_ours(name):
    with torch.device("meta"):
        theirs = import_timm().create_model(name).state_dict()
        ours = getattr(models, name)().state_dict()
    canonical = canonical_state_dict(theirs)
    assert {key: value.shape for key, value in canonical.items()} == {
        key: value.shape for key, value in ours.items()
    }


def test_timm_checkpoint_gives_timm_outputs(tmp_path):
    import_timm()
    from timm.models.resnet import Bottleneck, ResNet

    shape = {"layers": (1, 2, 1, 2), "num_classes": 7, "cardinality": 4, "base_width": 8}
    theirs = randomise(ResNet(Bottleneck, **shape)).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = tiny().eval()
    load_weights(ours, str(tmp_path / "timm.pth"))
    images = torch.randn(2, 3, 64, 64)
    assert relative_error(ours(images), theirs(images)) < 1e-5
