"""The grouped convolutions of anybody's model, recorded from one run of it on random input."""

from __future__ import annotations

import importlib
import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import GroupedConv2d
from ..problem import ConvProblem, normalise
from .suites import ModelLayer

_IMAGE = (3, 224, 224)
_LIBRARIES = ("timm", "torchvision")


class ModelError(ValueError):
    """A model that cannot be had or run; the text names it and says why."""


def load(name: str) -> tuple[nn.Module, Tensor]:
    """A model by its name, with random weights, and one image of its size.

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, or ``path.py:function``, where the function
            takes no arguments and returns a module, or a module and an example of its input.

    Raises:
        ModelError: there is no such model, or what makes it fails.
    """
    place, separator, model = name.rpartition(":")
    if not separator or not place or not model:
        expected = "timm:NAME, torchvision:NAME or path.py:function"
        raise ModelError(f"{name!r}: expected {expected}")
    try:
        made = _of_library(place, model) if place in _LIBRARIES else _of_file(place, model)()
        module, images = made if isinstance(made, tuple) else (made, None)
    except Exception as error:  # code of the user's own may raise anything
        raise ModelError(f"{name}: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{name}: returned {type(module).__name__}, expected a torch.nn.Module")
    if images is None:
        images = torch.randn(1, *getattr(module, "default_cfg", {}).get("input_size", _IMAGE))
    return module, images


def _of_library(library: str, model: str) -> Any:
    if library == "timm":
        return importlib.import_module("timm").create_model(model)
    return importlib.import_module("torchvision").models.get_model(model, weights=None)


def _of_file(path: str, function: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)


def layers_of(name: str) -> list[ModelLayer]:
    """The distinct grouped convolutions of a model by its name, see `load`, for one image.

    Raises:
        ModelError: there is no such model, it fails, or it has none.
    """
    layers = grouped_layers(*load(name))
    if not layers:
        raise ModelError(f"{name}: no grouped convolutions that can be replaced")
    return layers


@torch.no_grad()
def grouped_layers(model: nn.Module, images: Tensor) -> list[ModelLayer]:
    """The distinct grouped convolutions that ``model`` calls on ``images``, for one image.

    Those that `replace_grouped_convs` can replace: modules of exactly `torch.nn.Conv2d`, or of
    `GroupedConv2d`. The model is run in evaluation mode.

    Raises:
        ModelError: the model fails on the images.
    """
    found: Counter[ConvProblem] = Counter()

    def record(module: nn.Conv2d, args: tuple[Tensor, ...]) -> None:
        found[_problem(module, args[0], len(images))] += 1

    hooks = [
        module.register_forward_pre_hook(record)
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
        and type(module) in (nn.Conv2d, GroupedConv2d)
        and module.groups > 1
    ]
    training = model.training
    try:
        model.eval()(images)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} fails on input {tuple(images.shape)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return [ModelLayer(problem, count) for problem, count in found.items()]


def _problem(module: nn.Conv2d, input: Tensor, images: int) -> ConvProblem:
    """The call that a module makes, for one of several images."""
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    padding: Any = module.padding
    if module.padding_mode != "zeros":
        sides = module._reversed_padding_repeated_twice
        batched, padding = F.pad(batched, sides, mode=module.padding_mode), 0
    window = (module.stride, padding, module.dilation, module.groups)
    batched, conv = normalise(batched, module.weight, *window)
    single = batched[: max(1, len(batched) // images)]
    return replace(ConvProblem.of(single, module.weight, *conv), channels_last=False)
