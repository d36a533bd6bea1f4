"""Builds the compiled libraries; what is static about the package stands in pyproject.toml.

Both libraries use LibTorch's stable ABI and no Python C-API, so one wheel serves every Python and
every torch that pyproject.toml admits; they are loaded with torch.ops.load_library. Environment
variables:

RESNEXT_KERNELS_SKIP_CUDA_BUILD=1  build the CPU library alone
FORCE_CUDA=1                       build the CUDA library beside a torch without CUDA too, and
                                   fail where it cannot be built
TORCH_CUDA_ARCH_LIST               what to compile CUDA for, as "8.0;9.0a;10.0+PTX"
CUDA_HOME                          the CUDA toolkit
CXX, CXXFLAGS, LDFLAGS             the C++ compiler, and flags added to the build's own
MAX_JOBS                           how many files are compiled at the same time
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent.resolve()
PACKAGE = "resnext_kernels"
OLDEST_TORCH = (2, 11)
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # OLDEST_TORCH, as torch writes it
CXX_STANDARD = "-std=c++20"  # the one that torch 2.13 builds its extensions with

CXX_FLAGS = [
    CXX_STANDARD, "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden",
    STABLE_ABI,
]  # fmt: skip
# torch's build commands forbid these conversions and operators, which the kernels use.
FORBIDDEN = ("HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS")
NVCC_FLAGS = [
    CXX_STANDARD, "-O3", "-Xcompiler=-fvisibility=hidden", STABLE_ABI, "-DUSE_CUDA",
    *(f"-U__CUDA_NO_{name}__" for name in FORBIDDEN),
]  # fmt: skip
LINK_FLAGS = ["-Wl,--as-needed", "-Wl,-z,defs", "-Wl,--exclude-libs,ALL"]

# Ampere, Hopper and Blackwell servers; the PTX serves every later GPU. nvcc knows Blackwell from
# 12.8 on.
DEFAULT_CUDA_ARCHS = "8.0;9.0a;10.0+PTX"
DEFAULT_BEFORE_BLACKWELL = "8.0;9.0+PTX"
OLDEST_GPU = (8, 0)  # the compute capability whose instructions the kernels use
CUDA_ARCH = re.compile(r"(?P<major>\d+)\.(?P<minor>\d)(?P<feature>[af]?)(?P<ptx>\+PTX)?")
CONVENTIONAL_CUDA_HOME = Path("/usr/local/cuda")


def say(message: str) -> None:
    print(f"{PACKAGE}: {message}", flush=True)


def is_set(name: str, environ: Mapping[str, str]) -> bool:
    """Whether a switch among the environment variables is on; SystemExit for another value."""
    value = environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"{PACKAGE}: {name}={value!r}: expected 1 or 0")
    return value == "1"


def find_sources(folder: str, *suffixes: str) -> list[str]:
    """The files under ``folder`` with one of ``suffixes``, relative to the checkout, sorted."""
    files = (HERE / folder).rglob("*")
    return sorted(str(file.relative_to(HERE)) for file in files if file.suffix in suffixes)


def find_cuda_home(environ: Mapping[str, str], conventional: Path) -> Path | None:
    """The CUDA toolkit: CUDA_HOME alone if set, else the usual folder, else nvcc's on PATH.

    PATH comes last because nvcc there may be a wrapper that stands outside its toolkit.
    """
    named = environ.get("CUDA_HOME") or environ.get("CUDA_PATH")
    candidates = [Path(named)] if named else [conventional]
    on_path = shutil.which("nvcc", path=environ.get("PATH", ""))
    if on_path and not named:
        candidates.append(Path(on_path).resolve().parent.parent)
    return next((home for home in candidates if (home / "bin" / "nvcc").exists()), None)


def default_archs(nvcc: str) -> str:
    """What to compile for where nobody says it, by the version of nvcc."""
    blackwell = tuple(map(int, nvcc.split("."))) >= (12, 8)
    return DEFAULT_CUDA_ARCHS if blackwell else DEFAULT_BEFORE_BLACKWELL


def served_archs(arch_list: str) -> list[str]:
    """The entries of a TORCH_CUDA_ARCH_LIST, but for GPUs older than the kernels serve.

    Entries are of the form "8.0", "9.0a" or "10.0+PTX", between semicolons, commas or spaces.
    Raises SystemExit for an entry of another form and where none is left.
    """
    served, oldest = [], ".".join(map(str, OLDEST_GPU))
    for entry in re.split(r"[;,\s]+", arch_list.strip(";, \t\n")):
        match = CUDA_ARCH.fullmatch(entry)
        if match is None:
            raise SystemExit(
                f"{PACKAGE}: TORCH_CUDA_ARCH_LIST={arch_list!r}: entry {entry!r}; "
                "expected compute capabilities such as 8.0, 9.0a or 10.0+PTX"
            )
        if (int(match["major"]), int(match["minor"])) >= OLDEST_GPU:
            served.append(entry)
        else:
            say(f"not for compute capability {entry}: the kernels need {oldest} or later")
    if not served:
        raise SystemExit(
            f"{PACKAGE}: TORCH_CUDA_ARCH_LIST={arch_list!r}: expected one of {oldest} or later; "
            "RESNEXT_KERNELS_SKIP_CUDA_BUILD=1 builds the CPU library alone"
        )
    return served


def gencode_flags(archs: Sequence[str]) -> list[str]:
    """nvcc's flags for entries of `served_archs`: machine code for each, PTX where asked for.

    Those below 10.0 are made from the PTX of the lowest: nvcc makes the same machine code of it as
    of their own, and most of its time goes into PTX. For 10.0 its own makes better code.
    """
    names, with_ptx = [], []
    for entry in archs:
        number, ptx, _ = entry.partition("+PTX")
        names.append(number.replace(".", ""))
        if ptx:
            with_ptx.append(names[-1])
    older = sorted(name for name in names if len(name.rstrip("af")) == 2)
    made: dict[str, list[str]] = {}  # of each PTX
    for name in dict.fromkeys(names):
        made.setdefault(older[0] if name in older else name, []).append(f"sm_{name}")
    for name in dict.fromkeys(with_ptx):
        made.setdefault(name, []).append(f"compute_{name}")
    return [f"-gencode=arch=compute_{ptx},code=[{','.join(code)}]" for ptx, code in made.items()]


def nvcc_version(cuda_home: Path) -> str:
    """The toolkit's version, such as "13.0"."""
    nvcc = cuda_home / "bin" / "nvcc"
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+\.\d+)", text)
    if match is None:
        raise SystemExit(f"{PACKAGE}: {nvcc} --version names no release: {text!r}")
    return match[1]


@dataclass(frozen=True)
class CudaPlan:
    """The toolkit that builds the CUDA library, None where it is not built; and why."""

    home: Path | None
    reason: str


def plan_cuda(environ: Mapping[str, str], home: Path | None, torch_cuda: str | None) -> CudaPlan:
    """Decide whether the CUDA library is built; ``torch_cuda`` is the CUDA version of torch."""
    if is_set("RESNEXT_KERNELS_SKIP_CUDA_BUILD", environ):
        return CudaPlan(None, "RESNEXT_KERNELS_SKIP_CUDA_BUILD=1")
    if torch_cuda is None and not is_set("FORCE_CUDA", environ):
        return CudaPlan(None, "torch is built without CUDA (FORCE_CUDA=1 builds it all the same)")
    if home is None:
        named = environ.get("CUDA_HOME") or environ.get("CUDA_PATH")
        places = f"CUDA_HOME={named}" if named else f"{CONVENTIONAL_CUDA_HOME} or on PATH"
        return CudaPlan(None, f"no nvcc in {places}")
    version = nvcc_version(home)
    if torch_cuda is not None and version.split(".")[0] != torch_cuda.split(".")[0]:
        return CudaPlan(None, f"nvcc is of CUDA {version}, torch of CUDA {torch_cuda}")
    return CudaPlan(home, f"nvcc {version} from {home}")


def cpu_extension() -> Extension:
    # The variants for other instruction sets say so in their sources: the flags name none, so the
    # library runs on every processor of the platform.
    return Extension(
        f"{PACKAGE}._cpu",
        find_sources("csrc/cpu", ".cpp"),
        depends=find_sources("csrc", ".h"),
        libraries=["torch_cpu"],
        extra_compile_args={"cxx": CXX_FLAGS},
        extra_link_args=LINK_FLAGS,
        language="c++",
    )


def cuda_extension(home: Path, arch_list: str) -> Extension:
    archs = served_archs(arch_list)
    # Not torch's CUDAExtension, which links libraries beyond the stable ABI.
    return Extension(
        f"{PACKAGE}._cuda",
        find_sources("csrc/cuda", ".cpp", ".cu"),
        depends=find_sources("csrc", ".h", ".cuh"),
        include_dirs=[str(home / "include")],
        library_dirs=[str(home / name) for name in ("lib64", "lib") if (home / name).is_dir()],
        libraries=["torch_cpu", "cudart", "dl"],
        extra_compile_args={
            # The library tells what it runs on, so that calls on another GPU go elsewhere.
            "cxx": [*CXX_FLAGS, "-DUSE_CUDA", f'-DRNK_CUDA_ARCHS="{";".join(archs)}"'],
            "nvcc": [*NVCC_FLAGS, *gencode_flags(archs)],
        },
        extra_link_args=LINK_FLAGS,
        language="c++",
    )


def import_torch() -> ModuleType | None:
    """torch; None where it is not installed. SystemExit for one older than the stable ABI used.

    pip's isolated builds hide the torch that is installed beside pip. Finding it all the same, in
    the interpreter's own site-packages, spares a second download of several GB.
    """
    if importlib.util.find_spec("torch") is None:
        sys.path.append(sysconfig.get_path("purelib"))
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return None
    if torch.__version__ < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise SystemExit(f"{PACKAGE}: torch {torch.__version__} is installed; expected >= {oldest}")
    return torch


def find_compiler(environ: Mapping[str, str]) -> str:
    """The C++ compiler; SystemExit where it is no program: torch's build takes no several words."""
    named = environ.get("CXX", "c++")
    if shutil.which(named, path=environ.get("PATH")) is None:
        raise SystemExit(
            f"{PACKAGE}: CXX={named!r}: expected one program on PATH. Install g++ or clang++; put "
            "flags into CXXFLAGS, and name ccache by its own link, such as /usr/lib/ccache/g++."
        )
    return named


def split_flags(name: str, environ: Mapping[str, str]) -> list[str]:
    """The flags in an environment variable; SystemExit where a quote is not closed."""
    try:
        return shlex.split(environ.get(name, ""))
    except ValueError as error:
        raise SystemExit(f"{PACKAGE}: {name}={environ[name]!r}: {error}; expected flags") from error


class BuildWithoutTorch(build_ext):
    """Lets metadata and source distributions be made without torch, but no library."""

    def run(self) -> None:
        raise SystemExit(
            f"{PACKAGE}: torch is not installed where the package is built. Install torch first, "
            "then: pip install --no-build-isolation ."
        )


def build_command(plan: CudaPlan) -> type[build_ext]:
    """The build_ext command: torch's own, which compiles with ninja and nvcc."""
    import torch
    from torch.utils import cpp_extension

    base = cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True)

    class BuildLibraries(base):
        def finalize_options(self) -> None:
            super().finalize_options()
            self.include_dirs += cpp_extension.include_paths("cpu")
            self.library_dirs += cpp_extension.library_paths("cpu")
            if self.editable_mode:
                # Kept from install to install, so that only what changed is compiled again.
                self.build_temp = str(HERE / "build" / "editable")

        def run(self) -> None:
            if is_set("FORCE_CUDA", os.environ) and plan.home is None:
                raise SystemExit(f"{PACKAGE}: FORCE_CUDA=1, but {plan.reason}")
            # Both are None where torch was built without CUDA. It has ninja learn which headers a
            # .cu file includes only where the version is known.
            if plan.home:
                cpp_extension.CUDA_HOME = str(plan.home)
                torch.version.cuda = torch.version.cuda or nvcc_version(plan.home)
            if self.inplace:
                # Neither a failed build nor one without CUDA may leave an older library to load.
                for name in ("_cpu.so", "_cuda.so"):
                    (HERE / PACKAGE / name).unlink(missing_ok=True)
            cxx = find_compiler(os.environ)
            # Here, as setuptools reads them, too, and fails at length.
            self.compile_command = [cxx, *split_flags("CXXFLAGS", os.environ)]
            self.link_command = [cxx, "-shared", *split_flags("LDFLAGS", os.environ)]
            say(f"building the CPU library with {cxx}")
            say(f"{'building' if plan.home else 'not building'} the CUDA library: {plan.reason}")
            super().run()
            for extension in self.extensions:
                path = Path(self.get_ext_fullpath(extension.name))
                say(f"built {path.name}, {path.stat().st_size / 1024:.0f} KiB")

        def build_extensions(self) -> None:
            # The flags that this Python was compiled with have no say over the kernels.
            cxx = self.link_command[:1]
            self.compiler.set_executables(
                compiler_so=self.compile_command, compiler_so_cxx=self.compile_command,
                compiler_cxx=cxx, linker_so_cxx=self.link_command, linker_exe_cxx=cxx,
            )  # fmt: skip
            super().build_extensions()

    return BuildLibraries


class Wheel(bdist_wheel):
    """A wheel for every Python on this platform, made of this build alone."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]

    def run(self) -> None:
        # setuptools packs whatever earlier builds left in this folder.
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()


def main() -> None:
    # ninja may be installed beside this Python while PATH does not lead there.
    path = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), path])
    torch = import_torch()
    home = find_cuda_home(os.environ, CONVENTIONAL_CUDA_HOME)
    plan = plan_cuda(os.environ, home, torch.version.cuda if torch else None)
    extensions = [cpu_extension()]
    if plan.home is not None:
        named = os.environ.get("TORCH_CUDA_ARCH_LIST")
        arch_list = named or default_archs(nvcc_version(plan.home))
        extensions.append(cuda_extension(plan.home, arch_list))
    command = build_command(plan) if torch else BuildWithoutTorch
    setup(ext_modules=extensions, cmdclass={"build_ext": command, "bdist_wheel": Wheel})


if __name__ == "__main__":
    main()
