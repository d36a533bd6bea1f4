"""The CUDA library for tests that look at it without a GPU: built once, kept under build/."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from locks import alone_in

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "build" / "tests"
_BUILD_VARIABLES = (
    "CXXFLAGS", "LDFLAGS", "RESNEXT_KERNELS_SKIP_CUDA_BUILD", "TORCH_CUDA_ARCH_LIST",
)  # fmt: skip


def environment(**changed: str) -> dict[str, str]:
    """That of a build which has to build the CUDA library, beside a torch without CUDA too."""
    kept = {name: value for name, value in os.environ.items() if name not in _BUILD_VARIABLES}
    return kept | {"FORCE_CUDA": "1"} | changed


def nvcc() -> Path:
    """nvcc as setup.py finds it; skips the test where there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    found = Path(home) / "bin" / "nvcc"
    if not found.exists():
        pytest.skip(f"no nvcc in {home}")
    return found


def tool(name: str) -> Path:
    """A tool of the CUDA toolkit, or the same one in triton's wheel; skips without either."""
    folders = [nvcc().parent]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"no {name} in {' or '.join(map(str, folders))}")


def checkout(to: Path) -> Path:
    """Copy what the CUDA library is built from, and next to nothing for the CPU library."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, to)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "resnext_kernels", to / "resnext_kernels", ignore=ignored)
    shutil.copytree(ROOT / "csrc" / "cuda", to / "csrc" / "cuda")
    shutil.copy2(ROOT / "csrc" / "conv_problem.h", to / "csrc")
    (to / "csrc" / "cpu").mkdir()
    (to / "csrc" / "cpu" / "stand_in.cpp").write_text("int stand_in() { return 0; }\n")
    return to


def library() -> Path:
    """_cuda.so for the default architectures, from the last build of these very sources."""
    with alone_in(KEPT):
        return _library()


def _library() -> Path:
    folder = KEPT / f"cuda-{_digest()}"
    path = folder / "resnext_kernels" / "_cuda.so"
    if path.exists():
        return path
    sources, unfinished, objects = KEPT / "checkout", KEPT / "unfinished", KEPT / "objects"
    for older in (sources, unfinished, *KEPT.glob("cuda-*")):
        shutil.rmtree(older, ignore_errors=True)
    sources.mkdir(parents=True)
    command = [sys.executable, "setup.py", "build_ext"]
    command += ["--build-lib", str(unfinished), "--build-temp", str(objects)]
    done = subprocess.run(
        command, cwd=checkout(sources), env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    unfinished.rename(folder)
    return path


def _digest() -> str:
    """Tells builds apart that could differ: by sources, flags, compiler and torch."""
    version = subprocess.run([nvcc(), "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(version + torch.__version__.encode())
    files = [ROOT / "setup.py", *(ROOT / "csrc" / "cuda").iterdir(), ROOT / "csrc/conv_problem.h"]
    for file in sorted(files):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]
