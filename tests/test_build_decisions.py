"""What setup.py decides before it builds: switches, CUDA toolkit, architectures, compiler."""

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def setup_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "setup_script", Path(__file__).parent.parent / "setup.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("arch_list", "expected"),
    [
        ("8.0", ["arch=compute_80,code=[sm_80]"]),
        ("9.0a", ["arch=compute_90a,code=[sm_90a]"]),
        ("12.0f", ["arch=compute_120f,code=[sm_120f]"]),
        ("10.0+PTX", ["arch=compute_100,code=[sm_100,compute_100]"]),
        (
            "8.0;9.0a;10.0+PTX",
            ["arch=compute_80,code=[sm_80,sm_90a]", "arch=compute_100,code=[sm_100,compute_100]"],
        ),
        ("8.0 8.6, 8.0;", ["arch=compute_80,code=[sm_80,sm_86]"]),
        ("9.0a;8.6+PTX", ["arch=compute_86,code=[sm_90a,sm_86,compute_86]"]),
        (
            "9.0+PTX;8.0",
            ["arch=compute_80,code=[sm_90,sm_80]", "arch=compute_90,code=[compute_90]"],
        ),
        ("9.0;9.0a", ["arch=compute_90,code=[sm_90,sm_90a]"]),
        ("10.0;12.0", ["arch=compute_100,code=[sm_100]", "arch=compute_120,code=[sm_120]"]),
        ("7.5 8.0 8.6 9.0", ["arch=compute_80,code=[sm_80,sm_86,sm_90]"]),
    ],
)
def test_gencode_flags(setup_script: ModuleType, arch_list: str, expected: list[str]) -> None:
    flags = setup_script.gencode_flags(setup_script.served_archs(arch_list))
    assert flags == [f"-gencode={flag}" for flag in expected]


def test_gpus_older_than_the_kernels_serve(setup_script: ModuleType, capsys) -> None:
    assert setup_script.served_archs("7.0;7.5+PTX;8.6") == ["8.6"]
    shown = capsys.readouterr().out
    assert "not for compute capability 7.5+PTX: the kernels need 8.0 or later" in shown
    with pytest.raises(SystemExit, match="'6.1 7.5': expected one of 8.0 or later; RESNEXT_KER"):
        setup_script.served_archs("6.1 7.5")


@pytest.mark.parametrize("arch_list", ["", ";", "80", "sm_80", "8.0;Hopper", "9.0b", "8.0+ptx"])
def test_a_bad_entry_is_named(setup_script: ModuleType, arch_list: str) -> None:
    message = re.escape(f"TORCH_CUDA_ARCH_LIST={arch_list!r}: entry") + ".*expected compute"
    with pytest.raises(SystemExit, match=message):
        setup_script.served_archs(arch_list)


@pytest.mark.parametrize(
    ("nvcc", "ptx"),
    [("12.0", "90"), ("12.6", "90"), ("12.8", "100"), ("12.10", "100"), ("13.0", "100")],
)
def test_default_archs_are_known_to_nvcc(setup_script: ModuleType, nvcc: str, ptx: str) -> None:
    archs = setup_script.served_archs(setup_script.default_archs(nvcc))
    flags = setup_script.gencode_flags(archs)
    assert flags[-1].endswith(f"compute_{ptx}]"), "no PTX for later GPUs"
    assert ("100" in "".join(flags)) == (ptx == "100")


@pytest.mark.parametrize(
    ("value", "expected"), [(None, False), ("", False), ("0", False), ("1", True)]
)
def test_switches(setup_script: ModuleType, value: str | None, expected: bool) -> None:
    environ = {} if value is None else {"FORCE_CUDA": value}
    assert setup_script.is_set("FORCE_CUDA", environ) is expected


def test_switches_refuse_other_values(setup_script: ModuleType) -> None:
    with pytest.raises(SystemExit, match="FORCE_CUDA='yes': expected 1 or 0"):
        setup_script.is_set("FORCE_CUDA", {"FORCE_CUDA": "yes"})


def make_toolkit(home: Path, release: str = "13.0") -> Path:
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho Cuda compilation tools, release {release}, V{release}.1\n")
    nvcc.chmod(0o755)
    return home


def test_find_cuda_home(setup_script: ModuleType, tmp_path: Path) -> None:
    named, usual, on_path = (make_toolkit(tmp_path / name) for name in ("named", "usual", "path"))
    path = {"PATH": str(on_path / "bin")}
    find, nowhere = setup_script.find_cuda_home, tmp_path / "nowhere"
    assert find({"CUDA_HOME": str(named), **path}, usual) == named
    assert find({"CUDA_PATH": str(named), **path}, usual) == named
    assert find({"CUDA_HOME": str(nowhere), **path}, usual) is None, "another than the named one"
    assert find(path, usual) == usual
    assert find(path, nowhere) == on_path
    assert find({"PATH": str(nowhere)}, nowhere) is None


@pytest.mark.parametrize(
    ("environ", "torch_cuda", "reason"),
    [
        ({}, None, "torch is built without CUDA (FORCE_CUDA=1 builds"),
        ({"FORCE_CUDA": "0"}, None, "torch is built without CUDA"),
        ({"FORCE_CUDA": "1"}, None, None),
        ({}, "12.9", None),
        ({"RESNEXT_KERNELS_SKIP_CUDA_BUILD": "0"}, "12.4", None),
        ({"RESNEXT_KERNELS_SKIP_CUDA_BUILD": "1"}, "12.4", "SKIP_CUDA_BUILD=1"),
        ({}, "13.0", "nvcc is of CUDA 12.4, torch of CUDA 13.0"),
    ],
)
def test_plan_cuda(
    setup_script: ModuleType,
    tmp_path: Path,
    environ: dict[str, str],
    torch_cuda: str | None,
    reason: str | None,
) -> None:
    home = make_toolkit(tmp_path / "cuda", "12.4")
    plan = setup_script.plan_cuda(environ, home, torch_cuda)
    assert plan.home == (home if reason is None else None)
    assert (reason or f"nvcc 12.4 from {home}") in plan.reason


@pytest.mark.parametrize("environ", [{}, {"CUDA_HOME": "/no/such/toolkit"}])
def test_plan_cuda_without_nvcc(setup_script: ModuleType, environ: dict[str, str]) -> None:
    plan = setup_script.plan_cuda(environ, None, "12.4")
    assert plan.home is None
    assert plan.reason.startswith("no nvcc in ")
    assert environ.get("CUDA_HOME", "on PATH") in plan.reason


@pytest.mark.parametrize("named", ["no-such-c++", "", "ccache c++", 'c++ "-O3'])
def test_what_is_no_compiler(setup_script: ModuleType, named: str) -> None:
    expected = re.escape(f"CXX={named!r}: expected one program on PATH. Install g++ or clang++; ")
    with pytest.raises(SystemExit, match=f"^resnext_kernels: {expected}.*CXXFLAGS.*[.]$"):
        setup_script.find_compiler({"CXX": named, "PATH": os.environ["PATH"]})


def test_flags_with_a_quote_that_is_not_closed(setup_script: ModuleType) -> None:
    assert setup_script.split_flags("LDFLAGS", {}) == []
    assert setup_script.split_flags("CXXFLAGS", {"CXXFLAGS": "-g '-DA=a b'"}) == ["-g", "-DA=a b"]
    expected = re.escape("""CXXFLAGS="-DA='a": No closing quotation; expected flags""")
    with pytest.raises(SystemExit, match=f"^resnext_kernels: {expected}$"):
        setup_script.split_flags("CXXFLAGS", {"CXXFLAGS": "-DA='a"})


def test_without_path_the_usual_folders_are_searched(setup_script: ModuleType, monkeypatch) -> None:
    monkeypatch.delenv("PATH")
    monkeypatch.setattr(setup_script, "import_torch", lambda: None)
    monkeypatch.setattr(setup_script, "setup", lambda **options: None)
    monkeypatch.setenv("RESNEXT_KERNELS_SKIP_CUDA_BUILD", "1")
    setup_script.main()
    assert os.environ["PATH"].endswith(f"{os.pathsep}{os.defpath}")
