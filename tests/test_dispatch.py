"""Which backend serves a call, what it says where it does not, and installs that lack parts."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from problems import PROBLEMS, problem
from user_tables import forget

import resnext_kernels as rk
from resnext_kernels import dispatch, explanation, tuning
from resnext_kernels.backends import BACKENDS, aten, cpu, triton
from resnext_kernels.library import Library
from resnext_kernels.measured import Measured
from resnext_kernels.problem import DIRECTIONS

PACKAGE = Path(rk.__file__).parent


def operands(case=None):
    case = case or problem(8)
    return torch.randn(case.input_shape), torch.randn(case.weight_shape)


def test_every_backend_has_the_one_interface():
    assert [backend.NAME for backend in BACKENDS.values()] == list(BACKENDS)
    for backend in BACKENDS.values():
        assert isinstance(backend.not_supported_reasons(problem(8)), list)
        assert all(callable(getattr(backend, direction)) for direction in DIRECTIONS)
    assert list(BACKENDS)[-1] == "aten"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_aten_serves_everything(direction):
    for case in PROBLEMS:
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            case = dataclasses.replace(case, dtype=dtype)
            assert aten.not_supported_reasons(case) == []
            assert dispatch.choose(case, direction, "aten") is aten


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_auto_takes_what_nothing_speaks_against(direction, device):
    for case in PROBLEMS:
        case = dataclasses.replace(case, device=device)
        chosen = dispatch.choose(case, direction)
        assert not chosen.not_supported_reasons(case)
        better = [module for module in BACKENDS.values() if module is not aten]
        for module in better:
            if module is not chosen and not dispatch.auto_reasons_against(module, case, direction):
                gains = (dispatch.gain(one, case, direction) for one in (chosen, module))
                assert chosen is not aten and next(gains) >= next(gains)


@pytest.fixture
def rivals(tmp_path, monkeypatch):
    """Two backends beside ATen, "first" and "second"; returns what writes their measured gains."""

    def backend(name: str) -> SimpleNamespace:
        there = Library(name, True, "there")
        return SimpleNamespace(
            NAME=name, LIBRARY=there, isa=lambda: "here", not_supported_reasons=lambda _: []
        )

    def measured(**gains: float) -> None:
        for name in ("first", "second"):
            records = [
                Measured.of(problem(8), direction, 1.0, gains[name]).to_json()
                for direction in DIRECTIONS
                if name in gains
            ]
            run = {"hardware": "here", "processor": "any", "threads": 2, "records": records}
            (tmp_path / f"{name}.json").write_text(json.dumps({"runs": [run]}))
        forget()

    backends = {name: backend(name) for name in ("first", "second")} | {"aten": aten}
    monkeypatch.setattr(dispatch, "BACKENDS", backends)
    monkeypatch.setattr(explanation, "BACKENDS", backends)
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    yield measured
    forget()


@pytest.mark.parametrize(
    "gains, chosen",
    [
        ({"first": 2.0, "second": 3.0}, "second"),
        ({"first": 3.0, "second": 2.0}, "first"),
        ({"first": 2.0, "second": 2.0}, "first"),
        ({"first": 0.9, "second": 1.1}, "second"),
        ({"first": 0.8, "second": 0.9}, "aten"),
        ({"first": 1.1}, "first"),
    ],
    ids=str,
)
def test_auto_takes_the_fastest_that_was_measured(rivals, gains, chosen):
    rivals(**gains)
    told = explanation.explain(*operands(), groups=2)
    for direction in DIRECTIONS:
        assert dispatch.choose(problem(8), direction).NAME == told.chosen[direction] == chosen
    others = told.reasons["fprop"]
    assert set(others) == {"first", "second", "aten"} - {chosen}
    if gains == {"first": 2.0, "second": 3.0}:
        assert others["first"] == ["second gains more over aten: 3x against 2x"]


def test_a_library_that_is_not_there_is_not_asked_for_its_gain(rivals):
    rivals(first=2.0)
    second = dispatch.BACKENDS["second"]
    second.LIBRARY = Library("second", False, "missing")
    second.not_supported_reasons = lambda _: ["missing"]
    second.isa = lambda: torch.ops.resnext_kernels_missing.isa()
    assert dispatch.choose(problem(8), "fprop").NAME == "first"
    assert explanation.explain(*operands(), groups=2).chosen["fprop"] == "first"


@pytest.mark.parametrize("backend", ["", "CPU", "cudnn", "none"])
def test_unknown_backend(backend):
    names = ", ".join(repr(name) for name in ("auto", *BACKENDS))
    with pytest.raises(rk.ProblemError) as error:
        rk.grouped_conv2d(*operands(), groups=2, backend=backend)
    assert str(error.value) == f"backend={backend!r}: expected one of {names}"
    with pytest.raises(rk.ProblemError, match="expected one of"):
        rk.grouped_conv2d(*(t.to("meta") for t in operands()), groups=2, backend=backend)


def test_named_backend_raises_with_every_reason():
    input, weight = (t.half() for t in operands(problem(8, batch=0)))
    with pytest.raises(rk.ProblemError) as error:
        rk.grouped_conv2d(input, weight, groups=2, backend="cpu")
    text = str(error.value)
    assert text.startswith("backend='cpu' cannot serve fprop of 0x16x6x7 -> 16 3x3 g2: ")
    assert "dtype torch.float16, serves torch.float32, torch.bfloat16" in text
    assert "empty input (0, 16, 6, 7)" in text


@pytest.mark.parametrize("direction", ["dgrad", "wgrad"])
def test_named_backend_holds_for_gradients_too(direction, monkeypatch):
    """A backend that cannot serve any more does not hand the gradient to another one."""
    input, weight = operands()
    (input if direction == "dgrad" else weight).requires_grad_()
    output = rk.grouped_conv2d(input, weight, groups=2, backend="aten")
    monkeypatch.setattr(aten, "not_supported_reasons", lambda problem: ["out of order"])
    forget()
    with pytest.raises(rk.ProblemError, match=f"'aten' cannot serve {direction} of .*out of order"):
        output.sum().backward()
    forget()


def run_python(code: str, folder: Path) -> str:
    """What a fresh process prints that finds the package in ``folder``."""
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code],
        env=os.environ | {"PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


WITHOUT_LIBRARIES = """
import torch, resnext_kernels as rk
from resnext_kernels import dispatch, problem
input, weight = torch.randn(2, 8, 5, 5), torch.randn(8, 4, 3, 3, requires_grad=True)
out = rk.grouped_conv2d(input, weight, groups=2)
out.sum().backward()
print(out.shape == (2, 8, 3, 3), set(rk.explain(input, weight, groups=2).chosen.values()))
try:
    rk.grouped_conv2d(input, weight, groups=2, backend="cpu")
except rk.ProblemError as error:
    print(error)
"""
WITHOUT_TRITON = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
import torch, resnext_kernels as rk
out = rk.grouped_conv2d(torch.randn(2, 8, 5, 5), torch.randn(8, 4, 3, 3), groups=2)
print(out.shape == (2, 8, 3, 3), "triton" in sys.modules)
"""


@pytest.fixture
def bare_copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package that has no compiled libraries."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=ignored)
    return tmp_path


def test_without_compiled_libraries(bare_copy):
    served, error = run_python(WITHOUT_LIBRARIES, bare_copy).splitlines()
    assert served == "True {'aten'}"
    assert error.startswith("backend='cpu' cannot serve fprop of 2x8x5x5 -> 8 3x3 g2: ")
    assert "_cpu.so was not built into this install" in error


def test_a_checkout_that_is_not_built(bare_copy):
    (bare_copy / "setup.py").touch()
    _, error = run_python(WITHOUT_LIBRARIES, bare_copy).splitlines()
    assert "_cpu.so was not built in this checkout (`make install` does)" in error
    assert "a package that pip installed is found from other folders" in error


def test_library_that_does_not_load(bare_copy):
    (bare_copy / PACKAGE.name / "_cpu.so").write_bytes(b"no library")
    served, error = run_python(WITHOUT_LIBRARIES, bare_copy).splitlines()
    assert served == "True {'aten'}"
    assert "_cpu.so failed to load: " in error


def test_without_triton():
    assert run_python(WITHOUT_TRITON, PACKAGE.parent).split() == ["True", "False"]


def test_import_is_light():
    """Neither the compiler nor a peer is imported before it is used."""
    heavy = ["torch._dynamo", "triton", "torchvision", "timm", "matplotlib", "skimage"]
    code = f"import sys, resnext_kernels; print(*[m for m in {heavy} if m in sys.modules])"
    assert run_python(code, PACKAGE.parent).split() == []


@pytest.mark.parametrize("name", ["stride", "dilation"])
@pytest.mark.parametrize("step", [2**13, 2**40, 2**62])
def test_steps_far_beyond_the_image_go_to_aten(name, step):
    input = torch.randn(1, 8, 9, 9).to(memory_format=torch.channels_last)
    weight = torch.randn(8, 2, 1, 1).requires_grad_()
    out = rk.grouped_conv2d(input, weight, groups=4, **{name: step})
    out.sum().backward()
    expected = torch.nn.functional.conv2d(input, weight, groups=4, **{name: step})
    torch.testing.assert_close(out, expected)
    if cpu.LIBRARY.loaded:
        with pytest.raises(rk.ProblemError, match=rf"{name} \({step}, {step}\), serves up to"):
            rk.grouped_conv2d(input, weight, groups=4, **{name: step}, backend="cpu")
    plain = problem(2, groups=4, size=(9, 9), kernel=(1, 1), padding=(0, 0))
    case = dataclasses.replace(plain, device="cuda", **{name: (step, step)})
    assert f"{name} ({step}, {step}), serves up to 4096" in triton.not_supported_reasons(case)
