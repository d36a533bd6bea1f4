"""Compiles the simulator and what it runs, and keeps each object until its sources change."""

from __future__ import annotations

import functools
import hashlib
import os
import shlex
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from locks import alone_in

HERE = Path(__file__).parent.resolve()
ROOT = HERE.parents[1]
KERNELS = ROOT / "csrc" / "cuda"
BUILD = ROOT / "build" / "cuda_sim"
FLAGS = [
    "-std=c++20", "-O2", "-march=native", "-fPIC", "-fvisibility=hidden", "-Wall",
    "-Wno-unknown-pragmas", "-fmax-errors=3", "-DRNK_CUDA_SIM", f"-I{HERE}", f"-I{KERNELS}",
]  # fmt: skip
MACHINE = [
    HERE / f"{stem}.cpp"
    for stem in (
        "access_log", "api", "faults", "global_memory", "launch", "machine", "memory_instructions",
        "shared_memory", "warp_instructions",
    )
]  # fmt: skip


def library(name: str, sources: list[Path]) -> Path:
    """Path of the shared library of ``sources`` (.cpp, and .cu as C++) and the simulator.

    Raises ``RuntimeError`` with the compiler's output where that fails.
    """
    with alone_in(BUILD):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(_object, [*sources, *MACHINE]))
        path = BUILD / f"{name}-{_hash(*(o.name for o in objects))}.so"
        if not path.exists():
            _write(path, [*_compiler(), "-shared", "-pthread", *map(str, objects)])
        return path


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def _object(source: Path) -> Path:
    """The object of ``source``, compiled unless one of the same contents is there.

    Which headers those are is remembered from the last time that the source was compiled.
    """
    identity = _hash(str(source), *_compiler(), *FLAGS, *_processor())
    headers = BUILD / f"{source.stem}-{identity}.d"
    if headers.exists():
        path = BUILD / f"{source.stem}-{_contents(identity, headers)}.o"
        if path.exists():
            return path
    compiled = BUILD / f"{source.stem}-{identity}-{os.getpid()}.o"
    written = True
    while written:  # to by somebody else meanwhile, so that the object may be of older contents
        begin = time.time()
        dependencies = ["-MMD", "-MF", str(headers), "-MT", "object"]
        _write(compiled, [*_compiler(), *FLAGS, *dependencies, "-x", "c++", "-c", str(source)])
        written = any(path.stat().st_mtime >= begin for path in _inputs(headers))
    return compiled.replace(BUILD / f"{source.stem}-{_contents(identity, headers)}.o")


def _inputs(headers: Path) -> list[Path]:
    """The source and the headers of this project that a compiler's list of them names."""
    names = headers.read_text().replace("\\\n", " ").split()[1:]
    return [Path(name) for name in names if Path(name).exists()]


def _contents(identity: str, headers: Path) -> str:
    digests = (hashlib.sha256(path.read_bytes()).hexdigest() for path in _inputs(headers))
    return _hash(identity, *digests)


def _write(path: Path, command: list[str]) -> None:
    """Run a compiler, and put what it makes at ``path`` when it is whole."""
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        made = Path(folder) / path.name
        result = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{shlex.join(command)}\n{result.stderr}")
        made.replace(path)


@functools.cache
def _processor() -> list[str]:
    """What -march=native depends on."""
    command = [*_compiler(), "-march=native", "-E", "-v", "-x", "c++", os.devnull]
    result = subprocess.run(command, capture_output=True, text=True)
    return [line for line in result.stderr.splitlines() if "cc1plus" in line]


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
