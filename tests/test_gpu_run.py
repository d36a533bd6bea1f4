"""`make gpu` as far as it goes without a GPU: stages, limits, records and exit status."""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from resnext_kernels.backends import tf32
from resnext_kernels.bench.suites import SUITES, WHOLE_MODELS
from resnext_kernels.cli import bench

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


def test_nothing_is_run_after_a_build_that_failed(tmp_path):
    todo = [stage("info", "pass"), stage("build", "raise SystemExit(1)"), stage("tests", "pass")]
    found = run.run_stages(todo, tmp_path, 60)
    assert [o.status for o in found] == ["passed", "failed", "not run"]
    assert not (tmp_path / "tests.log").exists()


def test_one_file_holds_the_results_of_all_stages_so_far(tmp_path, capsys):
    """stages.json cannot be written in the end, which takes nothing from what was."""
    write = "import sys; open('{0}/{1}.json', 'w').write('{1}')"
    break_it = f"import os; os.remove('{tmp_path}/stages.json'); os.mkdir('{tmp_path}/stages.json')"
    todo = [
        stage("first", write.format(tmp_path, "one")),
        stage("second", write.format(tmp_path, "two") + "; sys.exit('the reason')"),
        stage("third", break_it),
        stage("fourth", "print('still run')"),
    ]
    assert len(run.run_stages(todo, tmp_path, 60)) == 4
    with tarfile.open(tmp_path / "results.tgz") as archive:
        names = sorted(archive.getnames())
        assert json.load(archive.extractfile("stages.json"))[1]["status"] == "failed"
        assert archive.extractfile("two.json").read() == b"two"
    assert names == ["first.log", "one.json", "second.log", "stages.json", "two.json"]
    shown = capsys.readouterr().out
    assert "   | the reason\n" in shown and shown.count("Is a directory") == 2
    assert (tmp_path / "fourth.log").read_text() == "still run\n"


def test_an_interrupt_of_the_script_ends_its_stage_too(tmp_path):
    log = tmp_path / "hard.log"

    def interrupt(*args):
        if log.exists() and log.read_text():
            signal.setitimer(signal.ITIMER_REAL, 0)  # one, however long its handling takes
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.run_stage(stage("hard", STUBBORN, 50), tmp_path, 50)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert_ended(int(log.read_text()))


def assert_ended(process: int) -> None:
    def running() -> bool:
        try:
            return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
        except OSError:
            return False

    deadline = time.monotonic() + 10
    while running() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(), "its children are killed too"


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


@pytest.mark.parametrize("inherited", [signal.default_int_handler, signal.SIG_IGN])
def test_a_stage_is_cut_at_its_limit_and_keeps_what_it_has(tmp_path, monkeypatch, inherited):
    """Also where the script runs in the background, where shells have it ignore interrupts."""
    monkeypatch.setattr(run, "_GRACE", 30.0)  # a busy machine may take seconds to end a stage
    before = signal.signal(signal.SIGINT, inherited)
    try:
        found = run.run_stages([stage("soft", INTERRUPTED, 5)], tmp_path, 60)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.setattr(run, "_GRACE", 1.0)
    found += run.run_stages([stage("hard", STUBBORN, 5), stage("later", "pass")], tmp_path, 60)
    assert [o.status for o in found] == ["cut", "cut", "passed"]
    assert (tmp_path / "soft.log").read_text() == "begun\nkept\n"
    assert_ended(int((tmp_path / "hard.log").read_text()))


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
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    suites = {}
    for name, found in todo.items():
        if "bench" in found.command:
            command = found.command[found.command.index("bench") :]
            suites[name] = parser.parse_args(command).suite
    assert {*suites} >= {"resnext50", "regnet", "model", "inductor"}
    assert {*suites.values()} <= {*SUITES, WHOLE_MODELS}
    assert list(todo)[-1] == "inductor", "of all stages the slowest for what it tells"
    for name, file in (("tests", "gpu"), ("large", "gpu"), ("triton", "triton_gpu")):
        files = [word for word in todo[name].command if word.startswith("tests/")]
        assert f"tests/test_{file}.py" in files
        assert all((CHECKOUT / word).is_file() for word in files)
        # That one alone, by one process: the others take long to collect.
        command = [word for word in todo[name].command if word not in files]
        collect = [*command, "-n", "0", "--collect-only", f"tests/test_{file}.py"]
        done = subprocess.run(collect, cwd=CHECKOUT, capture_output=True, text=True)
        assert done.returncode == 0 and "<Function test_" in done.stdout, done.stdout


def test_named_stages_run_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    found = []

    def run_stages(todo, out, most_seconds):
        found.extend(stage.name for stage in todo)
        return [run.Outcome(stage.name, "passed", 0, 1.0, 2.0) for stage in todo]

    monkeypatch.setattr(run, "run_stages", run_stages)
    assert run.main([str(tmp_path), "memcheck", "build"]) == 0
    assert found == ["build", "memcheck"]
    shown = capsys.readouterr().out
    assert "2 of 2 stages passed" in shown and "what was not run" not in shown

    def run_first(todo, out, most_seconds):
        ends = ["passed", *["not run"] * len(todo[1:])]
        return [run.Outcome(s.name, end, 0, 1.0, 2.0) for s, end in zip(todo, ends, strict=True)]

    monkeypatch.setattr(run, "run_stages", run_first)
    assert run.main([str(tmp_path), "info", "racecheck", "build"]) == 1
    assert 'OUT=ANOTHER_FOLDER ARGS="build info racecheck"' in capsys.readouterr().out
    with pytest.raises(SystemExit, match="gpu: memchek: expected some of build, info"):
        run.main([str(tmp_path / "new"), "memchek"])
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_at_once(tmp_path):
    # ARGS may come down from the `make test` around this.
    variables = [f"PYTHON={sys.executable}", f"OUT={tmp_path / 'new'}", "ARGS="]
    command = ["make", "-s", "gpu", *variables]
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


def test_small_problems_are_held_to_what_torch_allows(monkeypatch, capsys):
    """TF32, which torch allows to convolutions by default, has a tolerance of its own."""

    def error_of(problem, direction):
        tolerances = {torch.float32: 1e-3 if tf32.allowed() else 1e-5, torch.float16: 2e-3}
        return 0.9 * tolerances.get(problem.dtype, 1e-2)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # the default
    monkeypatch.setattr(small.cuda, "not_supported_reasons", lambda problem: [])
    monkeypatch.setattr(small, "error_of", error_of)
    assert small.main() == 0, capsys.readouterr().out
    found = capsys.readouterr().out.splitlines()
    assert any("float32:" in line for line in found) and any("TF32:" in line for line in found)
    monkeypatch.setattr(small, "error_of", lambda *call: 1.2 * error_of(*call))
    assert small.main() == 1
