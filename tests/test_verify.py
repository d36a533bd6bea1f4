"""`verify` and the checks behind it: what they cover, and that no wrong backend gets through."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import resnext_kernels as rk
from resnext_kernels import dispatch
from resnext_kernels.backends import BACKENDS, aten, cpu, triton
from resnext_kernels.cli import main
from resnext_kernels.problem import DIRECTIONS
from resnext_kernels.verification import checks, numerics
from resnext_kernels.verification.problems import CORE_PROBLEMS, PROBLEMS, problem

RUN = [sys.executable, "-m", "resnext_kernels"]
needs_cpu = pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message)


@pytest.fixture
def few(monkeypatch):
    """Every twelfth problem only."""
    monkeypatch.setattr(checks, "CHECKED", checks.CHECKED[::12])


def verify(*arguments: str) -> int:
    return main(["verify", *arguments])


def run_with(disabled: str, *command: str) -> subprocess.CompletedProcess:
    """A command of a process whose environment disables backends."""
    return subprocess.run(
        command, env=os.environ | {dispatch.DISABLE: disabled}, capture_output=True, text=True
    )


def test_all_right_backends_pass(few, capsys):
    assert verify("--only", "aten:cpu/dgrad/float32", "--seed", "7") == 0
    text = capsys.readouterr()
    assert "No misses." in text.out and "--seed 7 repeats this run" in text.out
    count = str(len(checks.CHECKED) * 2)
    (row,) = (line.split() for line in text.out.splitlines() if line.startswith("aten:cpu "))
    assert row[:7] == ["aten:cpu", "dgrad", "float32", count, count, "0", "0"]
    assert 0 < float(row[7]) < float(row[8]) == 1e-5
    assert f"[{count}/{count}, 0 s left] dgrad/float32/" in text.err


@needs_cpu
def test_refusals_are_counted_by_reason(few, capsys):
    assert verify("--only", "cpu/wgrad/float16") == 0
    text = capsys.readouterr().out
    (row,) = (line.split() for line in text.splitlines() if line.startswith("cpu "))
    assert row[3] == row[5] and row[4] == row[6] == "0" and row[7] == "-"
    assert "times: dtype torch.float16, serves torch.float32, torch.bfloat16" in text


def scaled(real):
    return lambda *args: real(*args) * 1.01


def unwritten(real):
    return lambda *args: torch.empty_like(real(*args))


def in_first_image_only(real):
    def wrong(problem, *args):
        out = real(problem, *args)
        out[1:] *= 1.02
        return out

    return wrong


def in_float64(real):
    return lambda *args: real(*args).double()


def raising(real):
    def wrong(*args):
        raise RuntimeError("launch failed\nand more")

    return wrong


def writing(real):
    """Results are right, but not those of who is called next on the same operands."""

    def wrong(problem, first, second, *args):
        out = real(problem, first, second, *args)
        second.neg_()
        return out

    return wrong


def writing_beside(real):
    """Right, but for what it does to memory of which the operands are views."""

    def wrong(problem, first, second, *args):
        out = real(problem, first, second, *args)
        beside = second.new_empty(0).set_(second.untyped_storage())
        beside[-1] += 1
        return out

    return wrong


FAULTS = [scaled, unwritten, in_first_image_only, in_float64, raising, writing, writing_beside]
ENDS = {
    unwritten: "elements are NaN, infinite or left unwritten",
    in_float64: "dtype torch.float64, expected torch.float32",
    writing_beside: "it writes to its operands or beside them",
    raising: "RuntimeError: launch failed",
    writing: "it writes to its operands or beside them",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_wrong_backend_is_caught_and_the_line_shown_repeats_it(
    few, fault, direction, monkeypatch, capsys
):
    name = f"aten:cpu/{direction}/float32"
    monkeypatch.setattr(aten, direction, fault(getattr(aten, direction)))
    assert verify("--only", name) == 1
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if "MISSED" in line)
    assert lines[start + 1].startswith(f"{name}/")
    assert lines[start + 1].endswith(ENDS.get(fault, "expected at most 1e-05"))
    command = lines[start + 2].split("python -m resnext_kernels ")[1].split()
    assert main(command) == 1
    again = capsys.readouterr().out.splitlines()
    assert lines[start + 1] in again
    monkeypatch.undo()
    assert main(command) == 0


def test_wrong_epilogue_is_caught(few, monkeypatch, capsys):
    real = aten.fprop
    monkeypatch.setattr(aten, "fprop", lambda *args: real(*args[:-1], False))
    assert verify("--only", "aten:cpu/fprop/bfloat16") == 0
    assert verify("--only", "aten:cpu/fused/bfloat16") == 1
    assert "aten:cpu/fused/bfloat16/" in capsys.readouterr().out


@needs_cpu
def test_a_wrong_backend_can_be_done_without(few, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "wgrad", scaled(cpu.wgrad))
    assert verify("--only", "cpu/wgrad/float32") == 1
    assert "To do without cpu: RESNEXT_KERNELS_DISABLE=cpu" in capsys.readouterr().out
    monkeypatch.setattr(dispatch, "DISABLED", frozenset({"cpu"}))
    assert verify("--only", "aten:cpu/wgrad/float32/0") == 0
    assert "not checked: cpu: disabled by the environment" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["cudnn", "aten:cpu/sideways", "aten:cpu/dgrad/float32/99999", "a"]
)
def test_names_of_nothing_are_a_misuse(name, few, capsys):
    assert verify("--only", name) == 2
    assert f"--only {name}: expected a name such as aten:" in capsys.readouterr().err


def test_a_slash_at_the_end_of_a_name(few, capsys):
    assert verify("--only", "aten:cpu/fprop/float32/0/") == 0
    assert "No misses." in capsys.readouterr().out


def test_an_interrupt_shows_what_is_done(few, monkeypatch, capsys):
    """Also in the midst of a kernel: it is no miss of the backend's."""
    real, done = aten.dgrad, []

    def interrupted(problem, *operands):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(problem)
        return real(problem, *operands)

    monkeypatch.setattr(aten, "dgrad", interrupted)
    assert verify("--only", "aten:cpu/dgrad/float32") == 130
    text = capsys.readouterr().out
    (row,) = (line.split() for line in text.splitlines() if line.startswith("aten:cpu "))
    assert row[:5] == ["aten:cpu", "dgrad", "float32", "3", "3"]
    left = len(checks.CHECKED) * 2 - 3
    assert f"interrupted: the last {left} checks did not run" in text and "No misses." in text


def test_checks_cover_what_matters():
    """Several hundred problems in every direction and dtype, with strided and expanded operands."""
    found = checks.all_checks()
    assert set(PROBLEMS) < set(checks.CHECKED) and len(checks.CHECKED) > 200
    for kind in checks.KINDS:
        for dtype in numerics.TOLERANCES:
            numbers = [c.number for c in found if (c.kind, c.dtype) == (kind, dtype)]
            assert len(numbers) == len(set(numbers)) > 400
    drawn = {c: c.layouts(checks.random.Random(str(c))) for c in found}
    for place in range(3):
        assert {layouts[place] for layouts in drawn.values()} == set(checks.LAYOUTS)
    assert not any("expanded" in first and "expanded" in s for first, s, _ in drawn.values())


def test_triton_is_checked_on_a_sample_of_everything():
    """It takes a second for each: every core problem, every kind in every dtype and both rounds."""
    found = checks.checks_of("triton")
    assert set(found) < set(checks.checks_of("cuda")) and 50 < len(found) < 80
    assert {c.problem for c in found} == set(CORE_PROBLEMS)
    kinds = checks.Counter((c.kind, c.dtype) for c in found)
    assert len(kinds) == len(checks.KINDS) * len(numerics.TOLERANCES) and min(kinds.values()) > 3
    assert {(c.kind, c.number % 2) for c in found} == {(k, r) for k in checks.KINDS for r in (0, 1)}


def test_what_compiles_for_each_check_has_few_and_says_so(monkeypatch, capsys):
    """ATen's functions stand in for Triton's kernels."""
    monkeypatch.setattr(triton, "not_supported_reasons", lambda problem: [])
    for direction in DIRECTIONS:
        monkeypatch.setattr(triton, direction, getattr(aten, direction))
    targets = [checks.Target(name, "cpu", "") for name in ("triton", "aten")]
    monkeypatch.setattr(checks, "targets", lambda: targets)
    monkeypatch.setattr(checks, "CHECKED", checks.CHECKED[:48:6])
    dispatch.choose.cache_clear()
    assert verify("--seed", "3") == 0
    text = capsys.readouterr().out
    rows = [line.split() for line in text.splitlines() if line.startswith(("triton ", "aten:"))]
    count = {
        name: sum(int(r[4]) for r in rows[:-1] if r[0] == name) for name in ("triton", "aten:cpu")
    }
    few, every = len(checks.checks_of("triton")), len(checks.all_checks())
    assert count == {"triton": few, "aten:cpu": every} and few < every / 12
    assert f"triton has {few} of the {every} checks: it compiles a kernel for each" in text
    (some, *_) = checks.checks_of("triton")
    assert verify("--seed", "3", "--only", f"triton/{some.name}") == 0
    dispatch.choose.cache_clear()


def test_interpreted_kernels_and_missing_devices_are_no_targets():
    found = {target.name: target.reason_against for target in checks.targets()}
    assert set(BACKENDS) <= {name.split(":")[0] for name in found}
    assert found["aten:cpu"] == ""
    if triton.INTERPRETED or not torch.cuda.is_available():
        assert found["triton"]


DISABLED = """
import json, torch, resnext_kernels as rk
x, w = torch.randn(2, 16, 9, 9).to(memory_format=torch.channels_last), torch.randn(16, 4, 3, 3)
def error(requires_grad, backend="cpu"):
    try:
        rk.grouped_conv2d(x, w.requires_grad_(requires_grad), groups=4, backend=backend)
    except rk.ProblemError as refused:
        return str(refused)
near = torch.allclose(rk.grouped_conv2d(x, w, groups=4),
                      torch.nn.functional.conv2d(x, w, groups=4), atol=1e-4)
print(json.dumps([near, rk.explain(x, w, groups=4).chosen, str(rk.explain(x, w, groups=4)),
                  error(False), error(True)]))
"""


def test_a_disabled_backend_is_never_taken():
    """Neither by "auto" nor by name, with a gradient or on the short way without one."""
    done = run_with("cpu, triton", sys.executable, "-c", DISABLED)
    assert done.returncode == 0 and done.stderr == ""
    near, chosen, explanation, *errors = json.loads(done.stdout)
    assert near and set(chosen.values()) == {"aten"}
    reason = f"disabled by the environment variable {dispatch.DISABLE}"
    for name in ("cpu", "triton"):
        assert explanation.count(f"    not {name}: {reason}") == 3
    for error in errors:
        assert error.startswith("backend='cpu' cannot serve fprop of ") and error.endswith(reason)


def test_info_tells_what_is_disabled():
    done = run_with("cpu", *RUN, "info")
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("backend cpu"))
    assert done.returncode == 0 and line.endswith(f"; disabled by {dispatch.DISABLE}")


@pytest.mark.parametrize("value", ["cdua", "aten", "cuda,CPU", "auto"])
def test_names_that_cannot_be_disabled_are_told_once(value):
    done = run_with(value, sys.executable, "-c", "import resnext_kernels as rk; rk.explain")
    assert done.returncode == 0
    (line,) = (line for line in done.stderr.splitlines() if "UserWarning" in line)
    assert f"{dispatch.DISABLE}={value!r}: {value.split(',')[-1]!r} is ignored" in line
    assert "expected names among 'cuda', 'triton', 'cpu'" in line


def test_a_disabled_backend_is_not_asked(monkeypatch):
    def broken(problem):
        raise AssertionError("asked")

    monkeypatch.setattr(dispatch, "DISABLED", frozenset({"cpu"}))
    monkeypatch.setattr(cpu, "not_supported_reasons", broken)
    dispatch.choose.cache_clear()
    case = problem(8)
    assert dispatch.choose(case, "fprop") is not cpu
    with pytest.raises(rk.ProblemError, match="disabled by"):
        dispatch.choose(case, "fprop", "cpu")
    dispatch.choose.cache_clear()
