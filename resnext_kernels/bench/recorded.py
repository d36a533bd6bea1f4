"""The grouped convolutions of anybody's model, recorded from one run of it on random input."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..calls import ModelError, grouped_calls
from .suites import ModelLayer

_IMAGE = (3, 224, 224)
_LIBRARIES = ("timm", "torchvision")
_FORMS = "timm:NAME, torchvision:NAME or path.py:function"


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
        raise ModelError(f"{name!r}: expected {_FORMS}")
    try:
        made = _of_library(place, model) if place in _LIBRARIES else _of_file(place, model)()
    except (Exception, SystemExit) as error:  # code of the user's own may raise anything
        raise ModelError(f"{name}: {type(error).__name__}: {error}") from error
    if isinstance(made, tuple) and len(made) != 2:
        raise ModelError(
            f"{name}: returned {len(made)} objects, expected a module, or a module and an example "
            "of its input"
        )
    module, images = made if isinstance(made, tuple) else (made, None)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{name}: returned {type(module).__name__}, expected a torch.nn.Module")
    if images is None:
        config = getattr(module, "default_cfg", None)
        size = config.get("input_size", _IMAGE) if isinstance(config, Mapping) else _IMAGE
        images = torch.randn(1, *size)
    if not isinstance(images, Tensor):
        kind = type(images).__name__
        raise ModelError(f"{name}: an example of type {kind}, expected a Tensor")
    if images.dim() == 0 or images.numel() == 0:
        shape = tuple(images.shape)
        raise ModelError(f"{name}: an example of shape {shape}, expected at least one image")
    return module, images


def _of_library(library: str, model: str) -> Any:
    if importlib.util.find_spec(library) is None:
        raise ImportError(f"{library} is not installed (pip install {library})")
    if library == "timm":
        return importlib.import_module("timm").create_model(model)
    return importlib.import_module("torchvision").models.get_model(model, weights=None)


def _of_file(path: str, function: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file; expected {_FORMS}")
    module = importlib.util.module_from_spec(spec)
    # As for a script: files beside it can be imported, and what it defines finds its module.
    sys.path.insert(0, str(Path(path).resolve().parent))
    sys.modules.setdefault(spec.name, module)
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


def grouped_layers(model: nn.Module, images: Tensor) -> list[ModelLayer]:
    """The distinct grouped convolutions that ``model`` calls on ``images``, for one image.

    Of float32 on the CPU, whatever the model's: it is measured in others.

    Raises:
        ModelError: the model fails on the images.
    """
    found = Counter(
        replace(
            call.problem,
            batch=max(1, call.problem.batch // len(images)),
            dtype=torch.float32,
            device="cpu",
            channels_last=False,
        )
        for call in grouped_calls(model, images)
    )
    return [ModelLayer(problem, count) for problem, count in found.items()]
