"""The model family where others' code expects torchvision's ResNet."""

import copy
import importlib
from types import MethodType

import pytest
import torch
from interop import import_torchvision
from small_models import randomise, relative_error, tiny, tiny_torchvision


@pytest.mark.parametrize("dilate", [None, [False, True, True], [False, False, 1]])
def test_attributes_that_users_of_torchvision_read(dilate):
    options = {"replace_stride_with_dilation": dilate}
    with torch.device("meta"):
        ours, theirs = tiny(**options), tiny_torchvision(**options)
    for name in ("inplanes", "dilation", "groups", "base_width"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for block, other in zip(getattr(ours, stage), getattr(theirs, stage), strict=True):
            assert (block.stride, block.expansion) == (other.stride, other.expansion)
            assert (block.downsample is None) == (other.downsample is None)


def same_weights(make, backbones):
    """What ``make`` builds on torchvision's model and on ours, both with the same weights."""
    theirs, ours = (make(backbone).eval() for backbone in backbones)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def test_backbone_of_torchvisions_models():
    theirs = randomise(tiny_torchvision())
    models = import_torchvision().models
    pyramid = models.detection.backbone_utils._resnet_fpn_extractor
    segmentation = models.segmentation.fcn._fcn_resnet
    images = torch.randn(2, 3, 64, 48)
    for make in (lambda net: pyramid(net, 3), lambda net: segmentation(net, 5, aux=True)):
        reference, ours = same_weights(make, (copy.deepcopy(theirs), tiny()))
        with torch.no_grad():
            features, expected = ours(images), reference(images)
        assert list(features) == list(expected)
        for name, value in expected.items():
            assert relative_error(features[name], value) < 1e-5, name
        trained = [[p.requires_grad for p in net.parameters()] for net in (reference, ours)]
        assert trained[0] == trained[1]


def test_features_by_name_and_by_another_forward():
    import_torchvision()
    extractor = importlib.import_module("torchvision.models.feature_extraction")
    model, images = randomise(tiny()).eval(), torch.randn(2, 3, 32, 32)
    names = {"layer2": "two", "layer3.0.conv2": "inner"}
    features = extractor.create_feature_extractor(model, return_nodes=names)(images)
    seen = []
    model.layer3[0].conv2.register_forward_hook(lambda *call: seen.append(call[2]))
    model(images)
    assert relative_error(features["inner"], seen[0]) < 1e-5

    def until_layer2(self, x):
        return self.layer2(self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x))))))

    model._forward_impl = MethodType(until_layer2, model)
    assert torch.equal(model(images), features["two"])
