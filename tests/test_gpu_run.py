"""`make gpu` as far as it goes without a GPU: stages, limits, records and exit status."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECKOUT = Path(__file__).parents[1]


def script(name: str):
    spec = importlib.util.spec_from_file_location(
        f"gpu_{name}", CHECKOUT / "benchmarks" / "gpu" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


run, small = script("run"), script("small")


def stage(name: str, code: str, seconds: float = 20, **environ: str):
    return run.Stage(name, [sys.executable, "-c", code], seconds, environ)


def statuses(out: Path) -> dict[str, str]:
    return {o["name"]: o["status"] for o in json.loads((out / "stages.json").read_text())}


def test_a_failed_stage_stops_none_of_the_later_ones(tmp_path):
    todo = [
        stage("good", "import os; print('hello', os.environ['GIVEN'])", GIVEN="1"),
        stage("bad", "raise SystemExit(3)"),
        run.Stage("missing", ["/no/such/program"], 5),
        stage("later", "import resnext_kernels; print(resnext_kernels.__file__)"),
    ]
    found = run.run_stages(todo, tmp_path, 60)
    assert [o.status for o in found] == ["passed", "failed", "failed", "passed"]
    assert [o.returncode for o in found] == [0, 3, None, 0]
    assert statuses(tmp_path) == {o.name: o.status for o in found}
    assert (tmp_path / "good.log").read_text() == "hello 1\n"
    assert "/no/such/program: No such file" in (tmp_path / "missing.log").read_text()
    assert str(CHECKOUT) in (tmp_path / "later.log").read_text()


INTERRUPTED = """
import time
print("begun")
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("kept")
"""
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid)
time.sleep(60)
"""


def test_a_stage_is_cut_at_its_limit_and_keeps_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_GRACE", 1.0)
    todo = [stage("soft", INTERRUPTED, 2), stage("hard", STUBBORN, 2), stage("later", "pass")]
    found = run.run_stages(todo, tmp_path, 60)
    assert [o.status for o in found] == ["cut", "cut", "passed"]
    assert (tmp_path / "soft.log").read_text() == "begun\nkept\n"
    child = int((tmp_path / "hard.log").read_text())
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z", "its children are killed too"


def test_the_whole_run_has_a_limit(tmp_path):
    todo = [stage("long", "import time; time.sleep(60)", 50), stage("never", "pass")]
    found = run.run_stages(todo, tmp_path, 2)
    assert [o.status for o in found] == ["cut", "not run"]
    assert sum(o.seconds for o in found) < 20


@pytest.mark.parametrize(
    ("capability", "arch"), [((8, 0), "8.0"), ((9, 0), "9.0a"), ((12, 1), "12.1")]
)
def test_arch_of_the_card(capability, arch):
    assert run.arch_of(capability) == arch


def test_stages_select_tests_and_files_that_exist(tmp_path):
    todo = {s.name: s for s in run.stages(tmp_path, "9.0a", "compute-sanitizer")}
    assert todo["build"].environ["TORCH_CUDA_ARCH_LIST"] == "9.0a"
    for name in ("memcheck", "racecheck"):
        assert (CHECKOUT / todo[name].command[-1]).is_file()
    for name in ("tests", "graphs", "large"):
        collect = [*todo[name].command, "--collect-only", "tests/test_gpu.py"]
        done = subprocess.run(collect, cwd=CHECKOUT, capture_output=True, text=True)
        assert done.returncode == 0 and "<Function test_" in done.stdout, done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_at_once(tmp_path):
    command = ["make", "-s", "gpu", f"PYTHON={sys.executable}", f"OUT={tmp_path / 'new'}"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"gpu: torch {torch.__version__} finds no CUDA device" in done.stderr
    assert not (tmp_path / "new").exists()


def test_small_problems_leave_tails_in_every_width():
    found = list(small.problems())
    assert {p.in_width for p in found} >= {1, 2, 4, 8, 16, 32, 64}
    assert all(p.in_channels % p.groups == 0 and p.in_channels % 8 == 0 for p in found)
    assert {p.stride for p in found} == {(1, 1), (2, 2)}
    assert max(p.bytes_moved() for p in found) < 4 << 20
