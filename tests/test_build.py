"""The build: what it needs, what the distributions hold, what the library links to."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "resnext_kernels"
LEFTOVER = "leftover_of_an_earlier_build.py"
# The CPU library alone, whatever the environment of the test run asks of builds.
BUILD_VARIABLES = ("FORCE_CUDA", "CXXFLAGS", "LDFLAGS")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in BUILD_VARIABLES} | {
    "RESNEXT_KERNELS_SKIP_CUDA_BUILD": "1"
}

# What the library may leave to others to define: the C functions of LibTorch's stable ABI, the C
# and C++ runtime with its versions, and the weak hooks that every shared object has. Python's C-API
# and C++ symbols of torch, which change from release to release, are not among them.
ALLOWED_SYMBOL = re.compile(
    r"(aoti_torch_|torch_)\w+"
    r"|\w+@{1,2}(GLIBC|GLIBCXX|CXXABI|GCC)_[\w.]+"
    r"|__gmon_start__|_ITM_(de)?registerTMCloneTable"
)
ALLOWED_LIBRARY = re.compile(
    r"lib(torch_cpu|torch|c|m|dl|stdc\+\+|gcc_s)\.so(\.\d+)?|ld-linux[\w-]*\.so\.\d+"
)


def run(*command: str | Path, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=ENVIRONMENT | environ,
        capture_output=True,
        text=True,
        timeout=600,
    )


def succeed(*command: str | Path, cwd: Path, **environ: str) -> str:
    result = run(*command, cwd=cwd, **environ)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


@pytest.fixture(scope="session")
def python_without_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python whose environment holds setuptools and nothing else."""
    home = tmp_path_factory.mktemp("without_torch")
    venv.create(home, symlinks=True)
    site = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    installed = Path(setuptools.__file__).parent.parent
    for part in (installed / "_distutils_hack", *installed.glob("setuptools*")):
        (site / part.name).symlink_to(part)
    return home / "bin" / "python"


@pytest.fixture(scope="session")
def sdist(python_without_torch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, made from a copy so that the checkout stays as it is."""
    copy = tmp_path_factory.mktemp("checkout") / "copy"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "out", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignored)
    shutil.copy(ROOT / ".clang-format", copy)
    to = tmp_path_factory.mktemp("sdist")
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    succeed(python_without_torch, "-c", code, to, cwd=copy)
    (archive,) = to.iterdir()
    return archive


@pytest.fixture(scope="session")
def sources(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    to = tmp_path_factory.mktemp("sources")
    with tarfile.open(sdist) as archive:
        # Older Pythons, 3.11.2 for one, know neither the filter nor the argument.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(to)
    (folder,) = to.iterdir()
    return folder


@pytest.fixture(scope="session")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution where another build left a file."""
    build_lib = f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    (sources / "build" / build_lib / PACKAGE.name).mkdir(parents=True)
    (sources / "build" / build_lib / PACKAGE.name / LEFTOVER).touch()
    to = tmp_path_factory.mktemp("wheel")
    # The library of the checkout is compiled with optimisation: a second time would take minutes.
    compiler = tmp_path_factory.mktemp("compiler") / "c++"
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O0\n')
    compiler.chmod(0o755)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-index", "--no-build-isolation", "--no-deps")
    succeed(*pip, "--wheel-dir", to, sources, cwd=to, CXX=str(compiler))
    (file,) = to.iterdir()
    return file


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files."""
    to = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(to)
    return to


def test_force_cuda_refuses_to_go_on_without(sources: Path) -> None:
    result = run(sys.executable, "setup.py", "build_ext", cwd=sources, FORCE_CUDA="1")
    assert result.returncode != 0
    assert "FORCE_CUDA=1, but RESNEXT_KERNELS_SKIP_CUDA_BUILD=1" in result.stderr
    assert "Traceback" not in result.stderr


def test_metadata_needs_no_torch(python_without_torch: Path, sources: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from setuptools import build_meta; "
        "build_meta.prepare_metadata_for_build_wheel(sys.argv[1])"
    )
    succeed(python_without_torch, "-c", code, tmp_path, cwd=sources)
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    lines = metadata.read_text().splitlines()
    version = re.fullmatch(r'__version__ = "(.+)"\n', (PACKAGE / "version.py").read_text())
    assert version is not None
    assert f"Version: {version[1]}" in lines
    assert any(line.startswith("Requires-Dist: torch<") for line in lines)


def test_build_without_torch_says_what_to_do(python_without_torch: Path, sources: Path) -> None:
    result = run(python_without_torch, "setup.py", "build_ext", cwd=sources)
    assert result.returncode != 0
    assert "torch is not installed where the package is built" in result.stderr
    assert "Install torch first, then: pip install --no-build-isolation ." in result.stderr
    assert "Traceback" not in result.stderr


def test_isolated_build_takes_the_installed_torch() -> None:
    # As pip does it: the same Python, with its own site-packages taken off the path.
    code = """if True:
        import runpy, setuptools, sys, sysconfig
        sys.path.remove(sysconfig.get_path("purelib"))
        assert "torch" not in sys.modules
        print(runpy.run_path("setup.py", run_name="setup_script")["import_torch"]().__file__)
    """
    printed = succeed(sys.executable, "-c", code, cwd=ROOT)
    assert printed.strip() == importlib.util.find_spec("torch").origin


def test_sdist_holds_the_sources(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py"}
    files = list(PACKAGE.glob("**/*.py"))
    for folder in ("benchmarks", "csrc", "docs", "tests"):
        files += (file for file in ROOT.glob(f"{folder}/**/*.*") if file.is_file())
    paths = {str(file.relative_to(ROOT)) for file in files}
    needed |= {path for path in paths if "/." not in path and "__pycache__" not in path}
    assert needed <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_wheel_serves_every_python(wheel: Path) -> None:
    assert re.fullmatch(r"resnext_kernels-[\w.]+-py3-none-linux_\w+\.whl", wheel.name)


def test_wheel_holds_the_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    patterns = ("**/*.py", "py.typed", "tuned/*.json")
    files = [file for pattern in patterns for file in PACKAGE.glob(pattern)]
    assert {str(file.relative_to(ROOT)) for file in files} <= names
    assert [name for name in names if name.endswith(".so")] == ["resnext_kernels/_cpu.so"]
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"resnext_kernels"}


def test_wheel_holds_nothing_of_an_earlier_build(wheel: Path) -> None:
    assert f"resnext_kernels/{LEFTOVER}" not in zipfile.ZipFile(wheel).namelist()


@pytest.fixture(params=["wheel", "checkout"])
def library(request: pytest.FixtureRequest) -> Path:
    """The CPU library, as the wheel holds it and as it runs here."""
    if request.param == "wheel":
        return request.getfixturevalue("installed") / PACKAGE.name / "_cpu.so"
    if not (PACKAGE / "_cpu.so").exists():
        pytest.skip("the package that is tested is not built in this checkout")
    return PACKAGE / "_cpu.so"


def test_library_uses_only_the_stable_abi(library: Path) -> None:
    printed = succeed("nm", "-D", "--undefined-only", library, cwd=ROOT)
    symbols = [line.split()[-1] for line in printed.splitlines()]
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols)
    assert [symbol for symbol in symbols if not ALLOWED_SYMBOL.fullmatch(symbol)] == []


def test_library_links_to_torch_and_the_runtime_only(library: Path) -> None:
    printed = succeed("readelf", "-W", "-d", library, cwd=ROOT)
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", printed)
    assert "libtorch_cpu.so" in needed
    assert [name for name in needed if not ALLOWED_LIBRARY.fullmatch(name)] == []
    assert re.findall(r"\((?:RPATH|RUNPATH)\)", printed) == [], "paths of the building machine"


def test_library_of_the_wheel_computes(installed: Path) -> None:
    code = """if True:
        import torch
        import resnext_kernels as rk
        from resnext_kernels.backends import cpu
        assert cpu.LIBRARY.loaded, cpu.LIBRARY.message
        x, w = torch.randn(2, 8, 9, 7), torch.randn(8, 4, 3, 3)
        ours = rk.grouped_conv2d(x, w, padding=1, groups=2, backend="cpu")
        truth = torch.nn.functional.conv2d(x.double(), w.double(), padding=1, groups=2)
        print((ours - truth).norm().item() / truth.norm().item(), rk.__file__)
    """
    error, file = succeed(sys.executable, "-c", code, cwd=installed).split()
    assert Path(file).is_relative_to(installed)
    assert float(error) < 1e-5
