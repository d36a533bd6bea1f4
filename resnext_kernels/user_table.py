"""The user's own measurements: tables that `python -m resnext_kernels tune` writes.

A table holds for one backend on one device: ``{"made_on": {...}, "runs": [...]}`` in the folder
``RESNEXT_KERNELS_CACHE``, by default ``~/.cache/resnext_kernels`` (or in ``XDG_CACHE_HOME``).
``made_on`` names the device, its driver, the versions of torch and this package and, on the
processor, the number of threads; where any of them is another one now, the times tell nothing, and
the table is not used.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import machine
from .measured import DAMAGE, Measured, Runs, runs_from_json
from .version import __version__

FOLDER = "RESNEXT_KERNELS_CACHE"
_DRIVERS = ("/sys/module/nvidia/version", "/sys/module/amdgpu/version")


@dataclass(frozen=True)
class UserTable:
    """A table as it was found.

    ``ignored`` tells why its content is not used; it is empty where it is, and where there is no
    table.
    """

    path: Path | None
    runs: Runs = field(default_factory=dict)
    ignored: str = ""

    def __str__(self) -> str:
        if self.ignored:
            return f"{self.path or 'the table'} is not in use: {self.ignored}"
        count = sum(map(len, self.runs.values()))
        return f"{self.path}, {count} records in use" if count else f"none ({self.path})"


def folder() -> Path:
    """Where the tables are.

    Raises:
        RuntimeError: the home folder is not known, and no variable names another one.
    """
    if own := os.environ.get(FOLDER):
        return Path(own).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # Its specification has relative paths ignored.
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "resnext_kernels"


def path_of(backend: str, device: str) -> Path:
    """The table of a backend on the processor ("cpu") or the current GPU ("cuda").

    Its name tells the device too: machines that share a home folder keep their own tables.
    """
    name = re.sub(r"[^a-z0-9]+", "-", made_on(device)["device"].lower()).strip("-")
    return folder() / f"{backend}-{name}.json"


@functools.lru_cache(maxsize=16)
def _driver() -> str:
    for path in map(Path, _DRIVERS):
        try:
            return path.read_text().strip()
        except OSError:
            continue
    return "unknown"


_processor = functools.cache(machine.processor)


def made_on(device: str) -> dict[str, str]:
    """What times of a type of device hold for, with as many threads as torch has now."""
    gpu = device == "cuda"
    here = {
        "device": torch.cuda.get_device_name() if gpu else _processor(),
        "driver": _driver() if gpu else "none",
        "torch": torch.__version__,
        "resnext_kernels": __version__,
    }
    return here if gpu else here | {"threads": str(torch.get_num_threads())}


def load(backend: str, device: str) -> UserTable:
    """The table of a backend on a type of device; read once, and never raises.

    A damaged one is ignored with one warning, one made elsewhere or by other versions without.
    """
    if device != "cpu" and not (device == "cuda" and torch.cuda.is_available()):
        return UserTable(None)
    try:
        path = path_of(backend, device)
    except RuntimeError as error:
        return UserTable(None, ignored=str(error))
    return _load(path, tuple(made_on(device).items()))


@functools.lru_cache(maxsize=64)
def _load(path: Path, here: tuple[tuple[str, str], ...]) -> UserTable:
    try:
        return UserTable(path, *_read(path, dict(here)))
    except (FileNotFoundError, NotADirectoryError):
        return UserTable(path)
    except (OSError, *DAMAGE) as error:
        ignored = f"{type(error).__name__}: {error}"
        warnings.warn(f"{path} is ignored: {ignored}", stacklevel=2)
        return UserTable(path, ignored=ignored)


def _read(path: Path, here: Mapping[str, str]) -> tuple[Runs, str]:
    """The records, and why there are none for what is here."""
    content = json.loads(path.read_text())
    made = dict(content["made_on"])
    others = [
        f"made with {name} {made.get(name)}, this is {value}"
        for name, value in here.items()
        if made.get(name) != value
    ]
    return ({}, "; ".join(others)) if others else (runs_from_json(content["runs"]), "")


def writable_folder() -> Path:
    """The folder, made where it is missing.

    Raises:
        OSError: it cannot be written to.
        RuntimeError: as `folder`.
    """
    path = folder()
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        return path


def write(backend: str, device: str, new: Mapping[str, Sequence[Measured]]) -> Path:
    """Add records to the table of a backend, in place of those of the same problems.

    Readers see the old table or the new one, never a part, and writers wait for each other. What
    is there but not in use is replaced. "auto" goes by what it read first, until its process ends.

    Raises:
        OSError: the table cannot be written.
        RuntimeError: as `folder`.
    """
    path = path_of(backend, device)
    with _one_writer():
        try:
            runs, _ = _read(path, made_on(device))
        except (OSError, *DAMAGE):
            runs = {}
        for hardware, records in new.items():
            known = {record.problem: record for record in (*runs.get(hardware, ()), *records)}
            runs[hardware] = tuple(known.values())
        content = {
            "made_on": made_on(device),
            "runs": [
                {"hardware": name, "records": [record.to_json() for record in records]}
                for name, records in runs.items()
            ],
        }
        _replace(path, json.dumps(content) + "\n")
    _load.cache_clear()
    return path


@contextmanager
def _one_writer() -> Iterator[None]:
    """Lets other writers wait: of two that read the same table, one would lose its records."""
    place = os.open(writable_folder(), os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def _replace(path: Path, text: str) -> None:
    """Write a file beside ``path`` and put it in its place in one step."""
    # A file made in a folder, unlike a temporary one, may be read by those who may read others.
    with tempfile.TemporaryDirectory(dir=writable_folder(), prefix=f"{path.name}.") as place:
        new = Path(place) / path.name
        new.write_text(text)
        os.replace(new, path)
