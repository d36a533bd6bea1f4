"""Everything that needs a GPU, in one run: build, tests, compute-sanitizer, times.

`make gpu OUT=folder` runs it on a machine with a GPU, nvcc and a torch with CUDA; neither a network
nor a virtual environment is needed. With `ARGS="build resnext50"` it runs those stages alone. Every
stage is a command with a time limit. It leaves NAME.log in the folder, and the benchmarks their
records; stages.json tells how each ended, and results.tgz holds all of it, both written anew after
each stage. A stage that fails, but for the build, stops none of the later ones; the exit status is
then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from random import SystemRandom
from time import monotonic

CHECKOUT = Path(__file__).parents[2]
MOST_SECONDS = 470.0  # of all stages together
_GRACE = 15.0  # seconds in which an interrupted stage may write down what it has
_LINES_SHOWN = 12  # of the log of a stage that did not pass
_ARCHIVE = "results.tgz"


@dataclass(frozen=True)
class Stage:
    """A command, run in the checkout, and the seconds that it may take."""

    name: str
    command: Sequence[str]
    seconds: float
    environ: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: "passed", "failed", "cut" by its limit, or "not run"."""

    name: str
    status: str
    returncode: int | None
    seconds: float
    limit: float


def stages(out: Path, arch: str, sanitizer: str) -> list[Stage]:
    """All stages: what the later ones build on, the times, the sanitizer, then what may be cut.

    Together they may take longer than one run: `main` tells how to go on with what was left.

    Triton compiles each kernel it meets, so of its parity only the core problems are run; Inductor
    a dozen for each layer, to choose among, so what it compiles is last. Tests run in several
    processes where pytest-xdist is installed.
    """
    python = sys.executable
    pytest = [python, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-m", "gpu"]
    # Triton takes a second for each kernel, and the CPU as long for many a reference.
    several, alike = [], {}
    if find_spec("xdist"):
        several = ["-n", str(min(12, os.cpu_count() or 1))]
        seed = str(SystemRandom().randrange(2**32))
        # Threads that turn while they wait would take the cores from the other processes.
        threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
        alike = threads | {"RESNEXT_KERNELS_TEST_SEED": seed}
    subjects = ("gpu", "gpu_ops", "parity", "ops", "gradients", "autocast")
    tests = [f"tests/test_{subject}.py" for subject in subjects]
    bench = [python, "-m", "resnext_kernels", "bench", "--device", "cuda"]
    ours = ["cuda", "aten", "auto"]  # what update_tuned.py reads, and what users get
    build = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": arch}
    # Without torch's cache an access beyond a tensor is one beyond an allocation.
    apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    check = [sanitizer, "--error-exitcode", "9", "--tool"]
    # Looking for functions that a driver lacks is no error; our launches raise their own.
    memcheck = [*check, "memcheck", "--report-api-errors", "no"]
    small = [python, "benchmarks/gpu/small.py"]

    def times(name: str, backends: Sequence[str], suite: str, *batches: str) -> list[str]:
        what = ["--backend", *backends, "--suite", suite, "--batch", *batches]
        return [*bench, *what, "--json", str(out / f"{name}.json")]

    return [
        Stage("build", [python, "setup.py", "build_ext", "--inplace"], MOST_SECONDS, build),
        Stage("info", [python, "-m", "resnext_kernels", "info"], 30),
        Stage(
            "tests",
            [*pytest, *several, "-k", "not triton and not aten and not 2_to_the_31", *tests],
            120, alike,
        ),
        Stage("large", [*pytest, "-k", "2_to_the_31", "tests/test_gpu.py"], 40),
        Stage("resnext50", times("resnext50", ours, "resnext50", "64"), 75),
        Stage("resnext101_32x8d", times("resnext101_32x8d", ours, "resnext101_32x8d", "64"), 75),
        Stage("memcheck", [*memcheck, *small], 60, apart),
        Stage("racecheck", [*check, "racecheck", *small], 60, apart),
        Stage(
            "triton",
            [*pytest, *several, "-k", "triton and (core or test_triton_gpu)",
             "tests/test_parity.py", "tests/test_triton_gpu.py"],
            75, alike,
        ),
        Stage("triton_resnext50", times("triton", ["triton", "aten"], "resnext50", "64"), 75),
        Stage("resnext50_batch256", times("resnext50_batch256", ours, "resnext50", "256"), 90),
        Stage(
            "resnext101_32x8d_batch256",
            times("resnext101_32x8d_batch256", ours, "resnext101_32x8d", "256"),
            90,
        ),
        Stage("regnet", times("regnet", ours, "regnet", "64"), 75),
        Stage(
            "model",
            # Without the peer that Inductor compiles, which takes minutes for a whole model.
            [*bench, "--suite", "model", "--batch", "64", "--dtype", "bfloat16", "--peers",
             "torch:channels_last", "torch:contiguous", "--json", str(out / "model.json")],
            120,
        ),
        Stage(
            "inductor",
            [*times("inductor", ["auto"], "resnext50", "64"), "--direction", "fprop",
             "--peers", "torch:channels_last", "torch:inductor"],
            150,
        ),
    ]  # fmt: skip


def run_stages(todo: Sequence[Stage], out: Path, most_seconds: float) -> list[Outcome]:
    """Run the stages in their order until ``most_seconds`` have passed, and write down each.

    None is run after a build that did not pass: backends that are not there would be left out of
    tests and times without a failure.
    """
    deadline = monotonic() + most_seconds
    outcomes: list[Outcome] = []
    for stage in todo:
        print(f"== {stage.name}", flush=True)
        if any(o.name == "build" and o.status != "passed" for o in outcomes):
            deadline = monotonic()
        outcomes.append(run_stage(stage, out, min(stage.seconds, deadline - monotonic())))
        last = outcomes[-1]
        print(f"   {last.status} after {last.seconds:.0f} s, {out / stage.name}.log", flush=True)
        if last.status in ("failed", "cut"):
            print(_end_of(out / f"{stage.name}.log"), flush=True)
        try:
            write_down(outcomes, out)
        except OSError as error:  # the stages' own files are there all the same
            print(f"   {out}: {error}", flush=True)
    return outcomes


def _end_of(log: Path) -> str:
    with log.open(errors="replace") as lines:
        return "".join(f"   | {line.rstrip()[:200]}\n" for line in deque(lines, _LINES_SHOWN))


def write_down(outcomes: Sequence[Outcome], out: Path) -> None:
    """Write stages.json, and every file of the folder into results.tgz, replaced at once."""
    text = json.dumps([asdict(outcome) for outcome in outcomes], indent=1)
    (out / "stages.json").write_text(text + "\n")
    new = out / f"{_ARCHIVE}.new"
    with tarfile.open(new, "w:gz") as archive:
        for path in sorted(out.iterdir()):
            if path.is_file() and path.name not in (_ARCHIVE, new.name):
                archive.add(path, path.name)
    new.replace(out / _ARCHIVE)


def run_stage(stage: Stage, out: Path, limit: float) -> Outcome:
    """Run one stage, its output in NAME.log; at the limit it is interrupted, then killed.

    What it has started ends with it.
    """
    if limit <= 0:
        return Outcome(stage.name, "not run", None, 0.0, 0.0)
    path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    environ = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | stage.environ
    start = monotonic()
    cut = False
    with (out / f"{stage.name}.log").open("w") as log:
        try:
            process = subprocess.Popen(
                stage.command, cwd=CHECKOUT, env=environ, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=_hear_interrupts,
            )  # fmt: skip
        except OSError as error:
            log.write(f"{stage.command[0]}: {error.strerror}\n")
            return Outcome(stage.name, "failed", None, monotonic() - start, limit)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            cut = True
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
        finally:  # also where this script is interrupted itself
            with suppress(ProcessLookupError):  # nothing of it is left
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    status = "cut" if cut else "failed" if code else "passed"
    return Outcome(stage.name, status, code, monotonic() - start, limit)


def _hear_interrupts() -> None:
    """A background job ignores SIGINT, and hands that on to whatever it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def find_sanitizer() -> str:
    """compute-sanitizer of the toolkit that compiles, or else the one on PATH."""
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    path = Path(home) / "bin" / "compute-sanitizer"
    return str(path) if path.exists() else shutil.which(path.name) or path.name


def arch_of(capability: tuple[int, int]) -> str:
    """The entry of TORCH_CUDA_ARCH_LIST for one GPU; 9.0 with what only it has."""
    return "{}.{}".format(*capability) + ("a" if capability == (9, 0) else "")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder for logs and records")
    parser.add_argument(
        "stages", nargs="*", metavar="STAGE", help="run these alone, in their usual order"
    )
    args = parser.parse_args(arguments)
    out = args.out.resolve()
    try:
        import torch
    except ModuleNotFoundError:
        raise SystemExit(f"gpu: {sys.executable} has no torch; name another: PYTHON=...") from None
    if not torch.cuda.is_available():
        raise SystemExit(f"gpu: torch {torch.__version__} finds no CUDA device on this machine")
    todo = stages(out, arch_of(torch.cuda.get_device_capability()), find_sanitizer())
    if unknown := set(args.stages).difference(stage.name for stage in todo):
        known = ", ".join(stage.name for stage in todo)
        raise SystemExit(f"gpu: {', '.join(sorted(unknown))}: expected some of {known}")
    todo = [stage for stage in todo if not args.stages or stage.name in args.stages]
    out.mkdir(parents=True, exist_ok=True)
    outcomes = run_stages(todo, out, MOST_SECONDS)
    bad = [
        f"{outcome.name} ({outcome.status})" for outcome in outcomes if outcome.status != "passed"
    ]
    print(f"== {len(outcomes) - len(bad)} of {len(outcomes)} stages passed, results in {out}")
    if bad:
        print("== not passed: " + ", ".join(bad))
    if left := [outcome.name for outcome in outcomes if outcome.status == "not run"]:
        again = " ".join(dict.fromkeys(["build", *left]))  # a moment where it is built already
        print(f'== what was not run: make gpu OUT=ANOTHER_FOLDER ARGS="{again}"')
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
