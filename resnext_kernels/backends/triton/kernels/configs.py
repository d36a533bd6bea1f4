"""The launch configurations: a shipped table, looked up by device and by class of problem."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from . import device

TABLE = Path(__file__).with_name("configs.json")


@dataclass(frozen=True)
class Config:
    """How a kernel is cut into programs.

    A program has ``pixels`` columns or pixels and at most ``cells`` cells, and runs on ``warps``
    warps where that is not the number of its cells. Loads run ``stages`` steps ahead, less one.
    ``resident`` programs are expected to share a multiprocessor. ``batch`` is the batch size that
    this was chosen for.
    """

    batch: int
    pixels: int
    cells: int
    warps: int
    stages: int
    resident: int


def table_name(*images: Tensor | None) -> str:
    """The part of the table for kernels on ``images``: that of their device or, where the channels
    of one are not side by side, "strided", because single elements take more registers.
    """
    present = [image for image in images if image is not None]
    side_by_side = all(image.stride(1) == 1 or image.shape[1] == 1 for image in present)
    return device.name(present[0]) if side_by_side else "strided"


def configuration(name: str, kernel: str, precision: str, side: int, batch: int) -> Config:
    """The table's configuration for a class of problem.

    ``name`` is that of `table_name`, ``kernel`` is the kernel and its case ("ring", "taps",
    "phases", "general", "wgrad shared", "wgrad direct"), ``precision`` that of `device.precision`,
    ``side`` the longer side of a cell. Of the entries of a class the nearest batch on a logarithmic
    scale is taken.

    Raises:
        KeyError: where the table has nothing for the class.
    """
    entries = _entries(name, kernel, precision, side)
    if not entries:
        raise KeyError(f"{kernel} {precision} {side}")
    return min(entries, key=lambda entry: abs(math.log(entry.batch / max(batch, 1))))


def has_configuration(name: str, kernel: str, precision: str, side: int) -> bool:
    """Whether the table has a configuration, without which a kernel cannot serve a class."""
    return bool(_entries(name, kernel, precision, side))


def _entries(name: str, kernel: str, precision: str, side: int) -> tuple[Config, ...]:
    """Those of the device, or else the default ones."""
    kind = f"{kernel} {precision} {side}"
    return load().get(name, {}).get(kind, ()) or load()["default"].get(kind, ())


@functools.cache
def load() -> dict[str, dict[str, tuple[Config, ...]]]:
    """The table: by `table_name` ("default", "strided", "sm_90", ...), then by class."""
    return {
        name: {
            kind: tuple(Config(**entry) for entry in entries) for kind, entries in classes.items()
        }
        for name, classes in json.loads(TABLE.read_text()).items()
    }
