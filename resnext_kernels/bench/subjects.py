"""The whole models that are measured: calibrated weights, images and true logits; their work."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import models as family
from ..problem import ConvProblem
from .model_implementations import on_torch

# Height and width of the images in pixels, by the stride of the model's first convolution:
# ImageNet's and CIFAR's.
_SIZES = {2: 224, 1: 32}
_CALIBRATION_IMAGES = 8
_RESIDUAL_SCALE = 0.3


class Subject(NamedTuple):
    """A model in evaluation mode, images for it, and the logits that it has for them in float64."""

    name: str
    model: nn.Module
    images: Tensor
    logits: Tensor

    @classmethod
    def make(cls, name: str, batch: int, device: str) -> Subject:
        """Random weights, calibrated on images as smooth and as different as photographs are."""
        count = max(batch, _CALIBRATION_IMAGES)
        colours = torch.randn(count, 3, 1, 1)
        with torch.device("meta"):
            size = _image_size(_damped(name))
        blurred = F.interpolate(torch.randn(count, 3, 14, 14), size=size, mode="bilinear")
        images = (blurred + colours).to(device)
        model = family.calibrated(partial(_damped, name), images[:_CALIBRATION_IMAGES])
        logits = on_torch(model).double()(images[:batch].double())
        return cls(name, model, images[:batch], logits)


def _damped(name: str) -> nn.Module:
    """A model whose residual branches add less than their random weights would.

    At full size every block would magnify the rounding errors of those before, to 20% of the logits
    in bfloat16, and a wrong result could not be told from them.
    """
    model: nn.Module = getattr(family, name)()
    for module in model.modules():
        if isinstance(module, family.Bottleneck):
            nn.init.constant_(module.bn3.get_parameter("weight"), _RESIDUAL_SCALE)
    return model


def layers(name: str) -> list[ConvProblem]:
    """Every convolution of a model for one image, and the classifier as one of 1x1 pixels."""
    problems: list[ConvProblem] = []

    def convolution(m: nn.Module, args: tuple[Tensor]) -> None:
        assert isinstance(m, nn.Conv2d) and not isinstance(m.padding, str)
        conv = (m.stride, m.padding, m.dilation, m.groups)
        problems.append(ConvProblem.of(args[0], m.weight, *conv))

    def classifier(m: nn.Module, args: tuple[Tensor]) -> None:
        assert isinstance(m, nn.Linear)
        weight = m.weight[:, :, None, None]
        problems.append(
            ConvProblem.of(args[0][:, :, None, None], weight, (1, 1), (0, 0), (1, 1), 1)
        )

    with torch.device("meta"):
        model = getattr(family, name)().eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(convolution)
            elif isinstance(module, nn.Linear):
                module.register_forward_pre_hook(classifier)
        size = _image_size(model)
        model(torch.empty(1, 3, size, size))
    return problems


def _image_size(model: nn.Module) -> int:
    first = model.get_submodule("conv1")
    assert isinstance(first, nn.Conv2d)
    return _SIZES[first.stride[0]]
