"""Peers that the tests compare with, imported so that a CPU build of torch suffices."""

import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch


def _require(name: str) -> Path:
    """The folder of an installed package; skips the calling test where it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"{name} is not installed")
    return Path(spec.origin).parent


def _loads(library: Path) -> bool:
    try:
        torch.ops.load_library(library)
    except OSError:
        return False
    return True


@functools.cache
def _define_torchvision_operators() -> torch.library.Library:
    """Declares the operators whose absence stops `import torchvision`.

    They stay without an implementation: classification models never call them. The library object
    must outlive its declarations, hence the cache.
    """
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def import_torchvision() -> ModuleType:
    """torchvision, also where its compiled operators cannot be loaded beside this torch."""
    folder = _require("torchvision")
    if not any(_loads(library) for library in folder.glob("_C*.so")):
        _define_torchvision_operators()
    return importlib.import_module("torchvision")


def import_timm() -> ModuleType:
    """timm, which itself imports torchvision."""
    _require("timm")
    import_torchvision()
    return importlib.import_module("timm")
