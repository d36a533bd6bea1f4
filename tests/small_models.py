"""Small ResNeXts for the tests of the model family."""

from interop import import_torchvision

from resnext_kernels import models
from resnext_kernels.verification.numerics import relative_error as relative_error


def tiny(**options):
    """All kinds of blocks at a size that runs in milliseconds."""
    shape = {"layers": (1, 2, 1, 2), "cardinality": 4, "bottleneck_width": 8, "num_classes": 7}
    return models.ResNeXt(**shape | options)


def tiny_torchvision(**options):
    """The same in torchvision."""
    resnet = import_torchvision().models.resnet
    shape = {"layers": [1, 2, 1, 2], "groups": 4, "width_per_group": 8, "num_classes": 7}
    return resnet.ResNet(resnet.Bottleneck, **shape | options)


def randomise(model):
    """Gives every normalisation other than its initial, almost idle, values."""
    for name, value in model.state_dict().items():
        if ".running_var" in name or (value.ndim == 1 and name.endswith(".weight")):
            value.uniform_(0.5, 1.5)
        elif ".running_mean" in name or (value.ndim == 1 and name.endswith(".bias")):
            value.normal_(0, 0.3)
    return model
