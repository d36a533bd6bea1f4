"""Finding and loading the compiled libraries beside this package, and saying why where not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Library:
    """A compiled library: whether it is loaded, and where not, why."""

    name: str
    loaded: bool
    message: str


def load_library(name: str) -> Library:
    """Load ``name.so`` from the package's folder into torch; never raises."""
    path = Path(__file__).parent / f"{name}.so"
    if not path.exists():
        message = f"{path.name} was not built into this install"
        if (path.parents[1] / "setup.py").exists():
            message = (
                f"{path.name} was not built in this checkout (`make install` does); a package that "
                "pip installed is found from other folders"
            )
        return Library(name, False, message)
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        return Library(name, False, f"{path.name} failed to load: {str(error).splitlines()[0]}")
    return Library(name, True, f"loaded from {path}")
