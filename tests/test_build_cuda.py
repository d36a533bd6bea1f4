"""The build of the CUDA library: which GPUs it is for, what it links to, where it loads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cuda_build
import pytest
import torch
from cuda_build import ROOT
from test_build import ALLOWED_LIBRARY, ALLOWED_SYMBOL

PACKAGE = ROOT / "resnext_kernels"
CUDA_SYMBOL = re.compile(r"(__)?cuda[A-Z]\w+@libcudart\.so\.\d+")
CUDA_LIBRARY = re.compile(r"libcudart\.so\.\d+")
# In place of the kernels, which take minutes: the same functions, and one kernel to look for.
STAND_IN = """
#include "kernels.h"
namespace rnk::cuda {
__global__ void stand_in() {}
const char* fprop(const ConvProblem&, Element, const Images&, const void*, const void*,
                  const Images&, bool, const MutableImages&, const Gpu&, Stream) {
  stand_in<<<1, 1>>>();
  return nullptr;
}
const char* dgrad(const ConvProblem&, Element, const Images&, const void*, const MutableImages&,
                  const Gpu&, Stream) { return nullptr; }
const char* wgrad(const ConvProblem&, Element, const Images&, const Images&, void*, void*,
                  const Gpu&, Stream) { return nullptr; }
size_t wgrad_workspace(const ConvProblem&, Element, const Gpu&) { return 0; }
const char* not_supported_reason(const ConvProblem& p, Element element) {
  return p.groups == 3 && element == Element::bf16 ? "three groups" : nullptr;
}
}  // namespace rnk::cuda
"""
LOOK = """if True:
    import torch, resnext_kernels
    from resnext_kernels.backends import cuda
    assert cuda.LIBRARY.loaded, cuda.LIBRARY.message
    print(torch.ops.resnext_kernels_cuda.archs())
    for name in ("fprop", "dgrad", "wgrad"):
        name = f"resnext_kernels_cuda::{name}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    shapes = [1, 24, 5, 5], [24, 8, 3, 3], [1, 1], [1, 1], [1, 1], 3, 2
    print(torch.ops.resnext_kernels_cuda.not_supported_reason(*shapes))
    try:
        torch.ops.resnext_kernels_cuda.not_supported_reason(*shapes[:5], 2, 2)
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""


def look(folder: Path) -> list[str]:
    """What a fresh process says of the CUDA library of the package in ``folder``."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a stand-in for the kernels."""
    cuda_build.nvcc()
    to = cuda_build.checkout(tmp_path_factory.mktemp("sources"))
    for file in (to / "csrc" / "cuda").iterdir():
        if file.name not in ("kernels.h", "ops.cpp"):
            file.unlink()
    (to / "csrc" / "cuda" / "stand_in.cu").write_text(STAND_IN)
    return to


def wheel(sources: Path, to: Path, **environ: str) -> tuple[Path, str]:
    """A folder with the files of the wheel of ``sources``, and what the build printed."""
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-index", "--no-build-isolation"]
    command += ["--no-deps", "--wheel-dir", str(to), str(sources)]
    done = subprocess.run(
        command, env=cuda_build.environment(**environ), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (file,) = to.glob("*.whl")
    zipfile.ZipFile(file).extractall(to / "installed")
    return to / "installed", done.stdout + done.stderr


def test_wheel_is_for_the_architectures_asked_for(sources: Path, tmp_path: Path) -> None:
    installed, printed = wheel(sources, tmp_path, TORCH_CUDA_ARCH_LIST="8.6 9.0a;12.0+PTX")
    assert "building the CUDA library: nvcc" in printed
    archs, reason, error = look(installed)
    assert archs == "8.6;9.0a;12.0+PTX"
    assert reason == "three groups"
    assert "groups=2: expected a divisor of the output channels, 24, and" in error
    library = installed / PACKAGE.name / "_cuda.so"
    found = subprocess.run(
        [cuda_build.tool("cuobjdump"), "-lelf", "-lptx", library], capture_output=True, text=True
    ).stdout
    assert set(re.findall(r"\.(sm_\w+)\.cubin", found)) == {"sm_86", "sm_90a", "sm_120"}
    assert set(re.findall(r"\.(sm_\w+)\.ptx", found)) == {"sm_120"}


def test_wheel_without_the_cuda_library(sources: Path, tmp_path: Path) -> None:
    """As it is built beside a torch without CUDA, or where it is asked for."""
    skipped = {} if torch.version.cuda is None else {"RESNEXT_KERNELS_SKIP_CUDA_BUILD": "1"}
    installed, printed = wheel(sources, tmp_path, FORCE_CUDA="0", **skipped)
    reason = "RESNEXT_KERNELS_SKIP_CUDA_BUILD=1" if skipped else "torch is built without CUDA"
    assert f"not building the CUDA library: {reason}" in printed
    names = [path.name for path in (installed / PACKAGE.name).glob("*.so")]
    assert names == ["_cpu.so"]


def test_force_cuda_fails_without_nvcc(sources: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path)],
        cwd=sources,
        env=cuda_build.environment(CUDA_HOME=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert f"FORCE_CUDA=1, but no nvcc in CUDA_HOME={tmp_path}" in done.stderr


def test_a_changed_header_compiles_anew(sources: Path, tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "build_ext"]
    command += ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path)]
    environ = cuda_build.environment(TORCH_CUDA_ARCH_LIST="8.0")

    def build() -> int:
        """When the object of the .cu file was made."""
        subprocess.run(command, cwd=sources, env=environ, check=True, capture_output=True)
        return (tmp_path / "csrc" / "cuda" / "stand_in.o").stat().st_mtime_ns

    made = build()
    assert build() == made
    (sources / "csrc" / "cuda" / "kernels.h").touch()
    assert build() > made


@pytest.fixture(scope="module")
def library() -> Path:
    return cuda_build.library()


def test_library_uses_only_the_stable_abi(library: Path) -> None:
    printed = subprocess.check_output(["nm", "-D", "--undefined-only", library], text=True)
    symbols = [line.split()[-1] for line in printed.splitlines()]
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols)
    foreign = [s for s in symbols if not (ALLOWED_SYMBOL.fullmatch(s) or CUDA_SYMBOL.fullmatch(s))]
    assert foreign == []
    assert not [symbol for symbol in symbols if "stream" in symbol and "aoti" in symbol]


def test_library_links_to_torch_cuda_and_the_runtime_only(library: Path) -> None:
    printed = subprocess.check_output(["readelf", "-W", "-d", library], text=True)
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", printed)
    assert "libtorch_cpu.so" in needed and any(map(CUDA_LIBRARY.fullmatch, needed))
    allowed = (ALLOWED_LIBRARY, CUDA_LIBRARY)
    assert [name for name in needed if not any(p.fullmatch(name) for p in allowed)] == []
    assert re.findall(r"\((?:RPATH|RUNPATH)\)", printed) == [], "paths of the building machine"


def test_library_loads_beside_any_torch(library: Path, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=ignored)
    shutil.copy(library, tmp_path / PACKAGE.name)
    assert look(tmp_path)[0] == "8.0;9.0a;10.0+PTX"
