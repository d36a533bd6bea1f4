"""ResNeXt and ResNet models built on `GroupedConv2d`."""

from .family import (
    resnet50,
    resnet101,
    resnext29_8x64d,
    resnext29_16x64d,
    resnext50_32x4d,
    resnext101_32x4d,
    resnext101_32x8d,
    resnext101_64x4d,
    resnext152_32x4d,
)
from .resnext import Bottleneck as Bottleneck
from .resnext import ResNeXt as ResNeXt
from .weights import calibrated as calibrated
from .weights import load_weights as load_weights

__all__ = [
    "resnet50",
    "resnet101",
    "resnext29_8x64d",
    "resnext29_16x64d",
    "resnext50_32x4d",
    "resnext101_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnext152_32x4d",
]
