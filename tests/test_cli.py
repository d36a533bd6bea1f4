"""The console commands: what they print, write and return."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from commands import fails_in_one_line, quick, without
from tiny_suite import break_auto

from resnext_kernels import __version__
from resnext_kernels.backends import cpu
from resnext_kernels.bench import runner
from resnext_kernels.bench.implementations import DEFAULT_PEERS, PEERS
from resnext_kernels.cli import main
from resnext_kernels.cli.console import UserError
from resnext_kernels.library import Library

__all__ = ["quick"]
pytestmark = pytest.mark.usefixtures("quick")


def test_info_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "resnext_kernels", "info"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert __version__ in lines["resnext_kernels"]
    assert torch.__version__ in lines["torch"]
    assert {"python", "triton", "threads", "device cpu", "device cuda", "backend cpu"} <= set(lines)


def test_info_says_why_a_library_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(cpu, "LIBRARY", Library("_cpu", False, "_cpu.so failed to load: broken"))
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "_cpu.so failed to load: broken" in text
    assert "no library loaded" in text


def test_bench_prints_tables_and_writes_records(tmp_path, capsys):
    path = tmp_path / "new" / "out.json"
    assert main(["bench", "--suite", "resnext50", "--device", "cpu", "--json", str(path)]) == 0
    text = capsys.readouterr()
    assert "resnext50, bfloat16, batch 8" in text.out and "Geometric means" in text.out
    assert text.err.count("\n") == 2 * 3 * 2 * 2
    result = json.loads(path.read_text())
    assert {"machine", "torch", "commit", "peaks", "records"} <= set(result)
    found = {(r["problem"], r["direction"], r["dtype"], r["batch"]) for r in result["records"]}
    assert len(found) == 2 * 3 * 2 * 2
    names = {r["implementation"] for r in result["records"]}
    assert names == {"auto", *DEFAULT_PEERS, *(["cpu"] if cpu.LIBRARY.loaded else [])}


def test_bench_measures_what_was_asked_for(tmp_path):
    path = tmp_path / "out.json"
    chosen = ["--direction", "dgrad", "--dtype", "float32", "--batch", "3"]
    chosen += ["--peers", "torch:contiguous"]
    assert main(["bench", *chosen, "--json", str(path)]) == 0
    records = json.loads(path.read_text())["records"]
    assert {(r["direction"], r["dtype"], r["batch"]) for r in records} == {("dgrad", "float32", 3)}
    assert {r["implementation"] for r in records} & set(PEERS) == {"torch:contiguous"}


def test_bench_measures_the_backends_and_layouts_asked_for(tmp_path, capsys):
    path = tmp_path / "out.json"
    chosen = ["--direction", "wgrad", "--dtype", "float32", "--batch", "1", "--backend", "aten"]
    chosen += ["--layout", "contiguous", "channels_last", "--peers"]
    assert main(["bench", *chosen, "--json", str(path)]) == 0
    records = json.loads(path.read_text())["records"]
    found = {(r["implementation"], r["layout"]) for r in records}
    assert found == {("aten", "contiguous"), ("aten", "channels_last")}
    assert re.search(r"aten contiguous \d+\.", capsys.readouterr().err)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_bench_on_a_gpu_that_is_not_there(capsys):
    fails_in_one_line(capsys, ["bench", "--device", "cuda"], "--device cuda", "no CUDA device")


def test_bench_on_a_gpu_has_its_own_problems(monkeypatch, capsys):
    seen = []

    def measured(cases, peers, **options):
        seen.extend(cases)
        raise UserError("enough")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runner, "run", measured)
    fails_in_one_line(capsys, ["bench", "--device", "cuda"], "enough")
    found = {(c.problem.device, c.problem.batch, c.problem.dtype) for c in seen}
    assert found == {("cuda", batch, torch.bfloat16) for batch in (64, 256)}


def test_bench_fails_where_a_result_is_wrong(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    break_auto(monkeypatch, 1.0)
    path, image = tmp_path / "out.json", tmp_path / "out.png"
    chosen = ["--direction", "fprop", "--dtype", "float32", "--batch", "1"]
    assert main(["bench", *chosen, "--json", str(path), "--plot", str(image)]) == 1
    text = capsys.readouterr()
    assert "PARITY RED: auto" in text.out and "auto PARITY RED" in text.err
    assert "no plot" in text.out and not image.exists()
    records = json.loads(path.read_text())["records"]
    assert all(r["ms_median"] is None for r in records if r["implementation"] == "auto")


def test_bench_plots(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "out.png"
    chosen = ["--direction", "wgrad", "--dtype", "float32", "--batch", "1", "--plot", str(path)]
    assert main(["bench", *chosen]) == 0
    assert path.stat().st_size > 10_000


def test_bench_plot_without_matplotlib_says_what_to_install(monkeypatch, capsys):
    without(monkeypatch, "matplotlib")
    fails_in_one_line(capsys, ["bench", "--plot", "out.png"], "matplotlib", "pip install", "bench")


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--device", "tpu"], "tpu"),
        (["--direction", "sideways"], "sideways"),
        (["--dtype", "int8"], "int8"),
        (["--batch", "0"], "'0': expected a positive integer"),
        (["--batch", "two"], "'two': expected a positive integer"),
        (["--suite", "alexnet"], "expected one of resnext50, "),
        (["--plot", "out.jpg"], "expected a name that ends in one of .png, .svg, .pdf"),
        (["--json", "."], "expected a file"),
        (["--json", __file__ + "/out.json"], "out.json"),
    ],
)
def test_bench_refuses_bad_arguments(arguments, expected, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", *arguments])
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err


def test_no_command_is_a_misuse(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_an_interrupt_before_there_are_results_is_one_line(capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("resnext_kernels.cli.verify.trials.run", interrupted)
    assert main(["verify", "--only", "aten:cpu/fprop/float32/0"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "resnext-kernels verify: interrupted"


def test_version(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert (exit.value.code, capsys.readouterr().out) == (0, f"{__version__}\n")


def run_module(arguments: list[str], **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "resnext_kernels", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def test_names_that_the_terminals_encoding_lacks(tmp_path):
    file = tmp_path / "ü.py"
    file.write_text("from torch import nn\ndef make():\n    return nn.Conv2d(3, 3, 3, groups=3)\n")
    options = ["--batch", "1", "--dtype", "float32", "--direction", "fprop", "--backend", "aten"]
    environ = os.environ | {"PYTHONIOENCODING": "ascii"}
    arguments = ["bench", "--model", f"{file}:make", "--json", str(tmp_path / "é.json"), *options]
    process = run_module(arguments, stdout=subprocess.PIPE, env=environ)
    printed, error = process.communicate()
    assert process.returncode == 0, error
    assert "records: " in printed and "\\xe9.json" in printed
