"""Weights for the model family: where they come from, and whether they fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from .weight_names import canonical_state_dict, listed


class PublishedWeights(Protocol):
    """What is used of a member of torchvision's weight enumerations."""

    @property
    def url(self) -> str: ...


Weights: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | PublishedWeights

_HOST = "https://download.pytorch.org/models/"
_PUBLISHED = {
    "resnet50": {
        "IMAGENET1K_V1": "resnet50-0676ba61.pth",
        "IMAGENET1K_V2": "resnet50-11ad3fa6.pth",
    },
    "resnet101": {
        "IMAGENET1K_V1": "resnet101-63fe2227.pth",
        "IMAGENET1K_V2": "resnet101-cd907fc2.pth",
    },
    "resnext50_32x4d": {
        "IMAGENET1K_V1": "resnext50_32x4d-7cdf4587.pth",
        "IMAGENET1K_V2": "resnext50_32x4d-1a0047aa.pth",
    },
    "resnext101_32x8d": {
        "IMAGENET1K_V1": "resnext101_32x8d-8ba56ff5.pth",
        "IMAGENET1K_V2": "resnext101_32x8d-110c445d.pth",
    },
    "resnext101_64x4d": {
        "IMAGENET1K_V1": "resnext101_64x4d-173b62eb.pth",
    },
}  # The names of torchvision's weights; "DEFAULT" stands for an architecture's last entry.

_COUNTER = "num_batches_tracked"


def load_weights(
    model: nn.Module, weights: Weights, *, architecture: str = "", progress: bool = True
) -> None:
    """Copies weights into a model, in place and strictly; the model keeps its dtype and device.

    Args:
        model: a model with torchvision's parameter names.
        weights: a file (.safetensors, else one that `torch.load(weights_only=True)` reads), a
            state_dict, a name such as "IMAGENET1K_V2" or "DEFAULT", or a member of a torchvision
            weight enumeration. Names and members are downloaded once by `torch.hub`.
        architecture: the function that built the model, by which a name is looked up.
        progress: show the download's progress.

    Raises:
        ValueError: no such file or name, an unreadable file, or weights that do not fit the model.
            The message lists the keys; the model is left untouched.
        OSError: the file may not be read.
        ConnectionError: the download failed, or is not the file it should be; the message says
            from where.
        ImportError: a .safetensors file without the safetensors package.
    """
    state = canonical_state_dict(_fetch(weights, architecture, progress))
    expected = model.state_dict()
    # BatchNorm's counter is in newer checkpoints only, and evaluation never reads it.
    state = {
        key: value for key, value in state.items() if key in expected or not key.endswith(_COUNTER)
    }
    _check_fit(state, expected)
    model.load_state_dict(state)


def calibrated(build: Callable[[], nn.Module], images: Tensor, seed: int = 0) -> nn.Module:
    """A model with seeded random weights whose BatchNorm statistics are those of some images.

    It stands in where no trained weights are at hand: activations keep their scale through all
    layers and differ from image to image, so that times and differences between kernels can be
    measured. The predictions mean nothing. The weights are those that `build` draws; one forward
    pass over all images as one batch then sets every running mean and variance.

    Args:
        build: makes the model on the CPU, for example `models.resnext50_32x4d`.
        images: (N, 3, H, W), floating point, normalised as the model expects.
        seed: of the CPU's random generator, whose state is restored afterwards.

    Returns:
        The model in evaluation mode, on the images' device, in the images' dtype.

    Raises:
        ValueError: images of another rank, dtype or number.
    """
    if images.ndim != 4 or images.numel() == 0 or not images.is_floating_point():
        raise ValueError(
            f"images of shape {tuple(images.shape)} and dtype {images.dtype}: expected "
            "floating-point (N, 3, H, W) with N >= 1"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = build().to(images.device, images.dtype)
    update_bn([images], model)
    return model.eval()


def _fetch(weights: Weights, architecture: str, progress: bool) -> Mapping[str, Any]:
    if isinstance(weights, Mapping):
        return weights
    if isinstance(weights, (str, os.PathLike)):
        if url := _published_url(architecture, str(weights)):
            return _download(url, progress)
        path = Path(weights)
        if path.is_file():
            return _read(path)
        names = ", ".join([*_PUBLISHED.get(architecture, ()), "DEFAULT"])
        known = f"{names} or " if architecture in _PUBLISHED else ""
        raise ValueError(
            f"weights={str(weights)!r}: no such file; expected {known}the path of a .pth, .pt or "
            f".safetensors file"
        )
    if isinstance(url := getattr(weights, "url", None), str):
        return _download(url, progress)
    raise ValueError(
        f"weights={weights!r}: expected a path, a name, a state_dict or torchvision weights"
    )


def _published_url(architecture: str, name: str) -> str | None:
    files = _PUBLISHED.get(architecture)
    if files is None:
        return None
    file = list(files.values())[-1] if name == "DEFAULT" else files.get(name)
    return file and _HOST + file


def _download(url: str, progress: bool) -> Mapping[str, Any]:
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=progress, check_hash=True, weights_only=True
        )
    except Exception as error:  # Torch tells a wrong hash by RuntimeError, damage by anything.
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
        if not isinstance(error, OSError) and file.exists():
            summary = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"the copy of {url} in {file} is damaged ({summary}); remove it"
            ) from error
        raise ConnectionError(
            f"could not download {url} ({error}); without a network, fetch that file elsewhere "
            "and pass its path as weights="
        ) from error


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    path.open("rb").close()  # what keeps it from being opened is no matter of its content
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged file makes the unpickler raise almost anything.
        raise ValueError(
            f"weights={str(path)!r}: not a file that torch.load(weights_only=True) reads: {error}"
        ) from error
    if not isinstance(state, Mapping):
        raise ValueError(
            f"weights={str(path)!r} holds a {type(state).__name__}; expected a state_dict"
        )
    return state


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            f"weights={str(path)!r} needs the safetensors package: pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"weights={str(path)!r}: not a safetensors file: {error}") from error


def _check_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    given, wanted = state.get("fc.bias"), expected.get("fc.bias")
    if given is not None and wanted is not None and given.shape != wanted.shape:
        raise ValueError(
            f"num_classes={wanted.numel()} does not fit the weights: expected {given.numel()}, "
            "the outputs of their classifier"
        )
    missing = [key for key in expected.keys() - state.keys() if not key.endswith(_COUNTER)]
    unexpected = state.keys() - expected.keys()
    reshaped = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in state.keys() & expected.keys()
        if state[key].shape != expected[key].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    found = "; ".join(f"{kind}: {listed(keys)}" for kind, keys in problems.items() if keys)
    if found:
        raise ValueError(f"weights do not fit the model: {found}")
