"""ResNeXt and, as its special case of cardinality 1, ResNet.

One class covers the family. The paper is Xie, Girshick, Dollár, Tu and He, "Aggregated Residual
Transformations for Deep Neural Networks", CVPR 2017, arXiv:1611.05431; "CxWd" in a model's name is
its cardinality C and its bottleneck width W. Parameter names, initialisation and the place of the
stride (on the 3x3 convolution) are torchvision's, so that checkpoints move freely between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral
from typing import Literal, get_args

import torch
from torch import nn

from ..nn import GroupedConv2d

NormLayer = Callable[[int], nn.Module]
Stem = Literal["imagenet", "cifar"]

_STEM_CHANNELS = 64


def _require_positive(**arguments: int) -> None:
    for name, value in arguments.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a positive integer")


def _norm(norm_layer: NormLayer | None) -> NormLayer:
    if norm_layer is None:
        return nn.BatchNorm2d
    if not callable(norm_layer) or isinstance(norm_layer, nn.Module):
        raise ValueError(
            f"norm_layer={norm_layer!r}: expected None or a callable from a number of channels to "
            "a module"
        )
    return norm_layer


def _flags(replace_stride_with_dilation: Sequence[bool] | None, count: int) -> Sequence[bool]:
    flags = replace_stride_with_dilation
    if flags is None:
        return [False] * count
    if (
        not isinstance(flags, Sequence)
        or len(flags) != count
        or not all(isinstance(flag, int) and flag in (0, 1) for flag in flags)
    ):
        raise ValueError(
            f"replace_stride_with_dilation={flags!r}: expected None or {count} flags, one for each "
            "stage after the first"
        )
    return flags


def _conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)


def _conv3x3(channels: int, stride: int, dilation: int, groups: int) -> nn.Conv2d:
    conv = nn.Conv2d if groups == 1 else GroupedConv2d
    return conv(
        channels,
        channels,
        kernel_size=3,
        stride=stride,
        padding=dilation,
        dilation=dilation,
        groups=groups,
        bias=False,
    )


class Bottleneck(nn.Module):
    """The residual block 1x1, grouped 3x3, 1x1: figure 3(c) of the paper.

    Maps (N, in_channels, H, W) to (N, 4 * planes, ceil(H / stride), ceil(W / stride)). The 3x3
    convolution has `cardinality` groups of `planes * bottleneck_width / 64` channels. A projection
    is the shortcut where the shape changes.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int,
        dilation: int,
        *,
        cardinality: int,
        bottleneck_width: int,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        width = planes * bottleneck_width // 64 * cardinality
        out_channels = planes * self.expansion
        self.conv1 = _conv1x1(in_channels, width)
        self.bn1 = norm_layer(width)
        self.conv2 = _conv3x3(width, stride, dilation, cardinality)
        self.bn2 = norm_layer(width)
        self.conv3 = _conv1x1(width, out_channels)
        self.bn3 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.stride = stride
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            projection = _conv1x1(in_channels, out_channels, stride)
            self.downsample = nn.Sequential(projection, norm_layer(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x += shortcut
        out: torch.Tensor = self.relu(x)
        return out


class ResNeXt(nn.Module):
    """The network of table 1 of the paper: a stem, stages of `Bottleneck` blocks, a classifier.

    Args:
        layers: blocks of each stage. Stage i (from 0) has 256 * 2**i output channels, and every
            stage but the first halves height and width.
        cardinality: groups of each 3x3 convolution; 1 makes a ResNet.
        bottleneck_width: channels of one group in the first stage; they double from stage to stage.
        num_classes: outputs of the classifier.
        zero_init_residual: the last normalisation of each block starts at zero, and so each block
            as the identity.
        replace_stride_with_dilation: one flag for each stage after the first; where true, the stage
            keeps the resolution and dilates its 3x3 convolutions instead. None: all false.
        norm_layer: makes the normalisation for a number of channels; None: `nn.BatchNorm2d`.
        stem: "imagenet" is a 7x7 convolution and a 3x3 max-pooling, both of stride 2; "cifar" is a
            3x3 convolution of stride 1 (section 5.3 of the paper).

    `forward` maps floating-point images (N, 3, H, W) to logits (N, num_classes). Attributes that
    users of torchvision's ResNet read are there under its names: `inplanes` (channels of the last
    stage), `dilation` (of the last stage), `groups`, `base_width`, and `stride` of each block.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        cardinality: int,
        bottleneck_width: int,
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: NormLayer | None = None,
        stem: Stem = "imagenet",
    ) -> None:
        super().__init__()
        if not isinstance(layers, Sequence) or not layers:
            raise ValueError(f"layers={layers!r}: expected a sequence of positive integers")
        _require_positive(
            cardinality=cardinality,
            bottleneck_width=bottleneck_width,
            num_classes=num_classes,
            **{f"layers[{stage}]": blocks for stage, blocks in enumerate(layers)},
        )
        if stem not in get_args(Stem):
            raise ValueError(f"stem={stem!r}: expected one of {', '.join(get_args(Stem))}")
        if not isinstance(zero_init_residual, bool):
            raise ValueError(f"zero_init_residual={zero_init_residual!r}: expected True or False")
        cardinality, bottleneck_width = int(cardinality), int(bottleneck_width)
        norm_layer = _norm(norm_layer)
        dilated = _flags(replace_stride_with_dilation, len(layers) - 1)
        block = partial(
            Bottleneck,
            cardinality=cardinality,
            bottleneck_width=bottleneck_width,
            norm_layer=norm_layer,
        )
        self.cardinality = self.groups = cardinality
        self.bottleneck_width = self.base_width = bottleneck_width
        self._add_stem(stem, norm_layer)
        self.inplanes, self.dilation = self._add_stages(layers, dilated, block)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.inplanes, int(num_classes))
        self._initialise(zero_init_residual)

    def _add_stem(self, stem: Stem, norm_layer: NormLayer) -> None:
        imagenet = stem == "imagenet"
        kernel, stride = (7, 2) if imagenet else (3, 1)
        self.conv1 = nn.Conv2d(3, _STEM_CHANNELS, kernel, stride, kernel // 2, bias=False)
        self.bn1 = norm_layer(_STEM_CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else nn.Identity()

    def _add_stages(
        self, layers: Sequence[int], dilated: Sequence[bool], block: Callable[..., Bottleneck]
    ) -> tuple[int, int]:
        """Adds layer1, layer2, ... and returns the channels and the dilation of the last."""
        channels, planes, shrink, dilation = _STEM_CHANNELS, _STEM_CHANNELS, 1, 1
        for stage, (blocks, dilate) in enumerate(zip(layers, (False, *dilated), strict=True), 1):
            # The first block still sees the previous stage's sampling grid, hence its dilation.
            first_dilation = dilation
            dilation *= shrink if dilate else 1
            first = block(channels, planes, 1 if dilate else shrink, first_dilation)
            channels = planes * Bottleneck.expansion
            rest = (block(channels, planes, 1, dilation) for _ in range(blocks - 1))
            self.add_module(f"layer{stage}", nn.Sequential(first, *rest))
            planes, shrink = 2 * planes, 2
        return channels, dilation

    def _initialise(self, zero_init_residual: bool) -> None:
        """He initialisation (arXiv:1502.01852, fan-out); normalisations start as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)) and module.affine:
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        if zero_init_residual:
            self._zero_residuals()

    def _zero_residuals(self) -> None:
        for module in self.modules():
            scale = getattr(module.bn3, "weight", None) if isinstance(module, Bottleneck) else None
            if scale is not None:
                nn.init.zeros_(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward_impl(x)

    def _forward_impl(self, x: torch.Tensor) -> torch.Tensor:
        """What others' code replaces on an instance to have features instead of logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name, stage in self.named_children():  # unlike getattr(), TorchScript knows it
            if name.startswith("layer"):
                x = stage(x)
        logits: torch.Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits
