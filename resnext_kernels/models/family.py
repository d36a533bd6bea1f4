"""The published members of the family, ready to build.

Every function takes keyword arguments: `weights` and `progress` as `load_weights` has them, and
the options of `ResNeXt` (`num_classes`, `zero_init_residual`, `replace_stride_with_dilation`,
`norm_layer`). The counts are of parameters and of multiply-adds for one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .resnext import ResNeXt
from .weights import Weights, load_weights


def _model(
    architecture: str,
    layers: Sequence[int],
    cardinality: int,
    bottleneck_width: int,
    weights: Weights | None,
    progress: bool,
    **options: Any,
) -> ResNeXt:
    model = ResNeXt(layers, cardinality=cardinality, bottleneck_width=bottleneck_width, **options)
    if weights is not None:
        load_weights(model, weights, architecture=architecture, progress=progress)
    return model


def resnet50(*, weights: Weights | None = None, progress: bool = True, **options: Any) -> ResNeXt:
    """ResNet-50: 25,557,032 parameters, 4.1 GMAC for a 224x224 image."""
    return _model("resnet50", (3, 4, 6, 3), 1, 64, weights, progress, **options)


def resnet101(*, weights: Weights | None = None, progress: bool = True, **options: Any) -> ResNeXt:
    """ResNet-101: 44,549,160 parameters, 7.8 GMAC for a 224x224 image."""
    return _model("resnet101", (3, 4, 23, 3), 1, 64, weights, progress, **options)


def resnext50_32x4d(
    *, weights: Weights | None = None, progress: bool = True, **options: Any
) -> ResNeXt:
    """ResNeXt-50 32x4d: 25,028,904 parameters, 4.2 GMAC for a 224x224 image."""
    return _model("resnext50_32x4d", (3, 4, 6, 3), 32, 4, weights, progress, **options)


def resnext101_32x4d(
    *, weights: Weights | None = None, progress: bool = True, **options: Any
) -> ResNeXt:
    """ResNeXt-101 32x4d: 44,177,704 parameters, 8.0 GMAC for a 224x224 image."""
    return _model("resnext101_32x4d", (3, 4, 23, 3), 32, 4, weights, progress, **options)


def resnext101_32x8d(
    *, weights: Weights | None = None, progress: bool = True, **options: Any
) -> ResNeXt:
    """ResNeXt-101 32x8d: 88,791,336 parameters, 16.4 GMAC for a 224x224 image."""
    return _model("resnext101_32x8d", (3, 4, 23, 3), 32, 8, weights, progress, **options)


def resnext101_64x4d(
    *, weights: Weights | None = None, progress: bool = True, **options: Any
) -> ResNeXt:
    """ResNeXt-101 64x4d: 83,455,272 parameters, 15.5 GMAC for a 224x224 image."""
    return _model("resnext101_64x4d", (3, 4, 23, 3), 64, 4, weights, progress, **options)


def resnext152_32x4d(
    *, weights: Weights | None = None, progress: bool = True, **options: Any
) -> ResNeXt:
    """ResNeXt-152 32x4d: 59,951,400 parameters, 11.7 GMAC for a 224x224 image."""
    return _model("resnext152_32x4d", (3, 8, 36, 3), 32, 4, weights, progress, **options)


def resnext29_8x64d(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 10,
    **options: Any,
) -> ResNeXt:
    """ResNeXt-29 8x64d for CIFAR: 34,426,698 parameters, 5.4 GMAC for a 32x32 image."""
    options = {"stem": "cifar", "num_classes": num_classes} | options
    return _model("resnext29_8x64d", (3, 3, 3), 8, 64, weights, progress, **options)


def resnext29_16x64d(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 10,
    **options: Any,
) -> ResNeXt:
    """ResNeXt-29 16x64d for CIFAR: 68,155,210 parameters, 10.7 GMAC for a 32x32 image."""
    options = {"stem": "cifar", "num_classes": num_classes} | options
    return _model("resnext29_16x64d", (3, 3, 3), 16, 64, weights, progress, **options)
