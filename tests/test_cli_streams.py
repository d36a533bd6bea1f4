"""The console commands where stdout or stderr is closed, full or read by nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import quick

from resnext_kernels.cli import main
from resnext_kernels.cli.console import ProgressLine

__all__ = ["quick"]
FULL = "/dev/full"
needs_full = pytest.mark.skipif(not Path(FULL).exists(), reason="a disk that is full")


def take_stderr(kind: str, monkeypatch) -> None:
    """Make stderr one that takes nothing; in the test itself, as capsys puts its own back."""
    if kind == "full":
        write = os.open(FULL, os.O_WRONLY)
    else:
        read, write = os.pipe()
        os.close(read)
    stream = os.fdopen(write, "w")
    if kind == "closed":
        stream.close()
    monkeypatch.setattr(sys, "stderr", None if kind == "none" else stream)


KINDS = ["none", "closed", "unread", pytest.param("full", marks=needs_full)]


@pytest.mark.parametrize("kind", KINDS)
def test_progress_ends_no_run(kind, capsys, monkeypatch):
    take_stderr(kind, monkeypatch)
    progress = ProgressLine(3)
    for text in ("one", "two", "three"):
        progress.step(text)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", KINDS)
def test_errors_keep_their_exit_code(kind, capsys, monkeypatch):
    take_stderr(kind, monkeypatch)
    assert main(["verify", "--only", "nothing"]) == 2
    assert capsys.readouterr().out == ""


def run_module(arguments: list[str], **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "resnext_kernels", *arguments]
    return subprocess.Popen(command, **{"stderr": subprocess.PIPE, "text": True} | options)


@needs_full
def test_a_full_stderr_leaves_the_exit_code_of_the_process():
    with open(FULL, "w") as full:
        process = run_module(
            ["verify", "--only", "aten:cpu/fprop/float32/0"], stdout=subprocess.PIPE, stderr=full
        )
        printed, _ = process.communicate()
    assert process.returncode == 0 and "No misses." in printed


def test_nobody_reads_what_is_printed():
    read, write = os.pipe()
    os.close(read)
    process = run_module(["info"], stdout=write)
    os.close(write)
    _, error = process.communicate()
    assert (process.returncode, error) == (141, "")


@needs_full
def test_a_full_stdout_is_one_line_and_exit_code_1():
    with open(FULL, "w") as full:
        process = run_module(["info"], stdout=full)
        _, error = process.communicate()
    expected = "resnext-kernels info: cannot print: [Errno 28] No space left on device\n"
    assert (process.returncode, error) == (1, expected)


def test_a_closed_stdout_is_one_line_and_exit_code_1(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it where the descriptor is closed
    assert main(["info"]) == 1
    assert capsys.readouterr().err == "resnext-kernels info: cannot print: stdout is closed\n"


@needs_full
def test_records_are_written_though_nothing_can_be_printed(tmp_path, capsys, monkeypatch, quick):
    path = tmp_path / "out.json"
    monkeypatch.setattr(sys, "stdout", os.fdopen(os.open(FULL, os.O_WRONLY), "w"))
    chosen = ["--direction", "fprop", "--dtype", "float32", "--batch", "1"]
    assert main(["bench", *chosen, "--json", str(path)]) == 1
    assert "resnext-kernels bench: cannot print: " in capsys.readouterr().err
    assert json.loads(path.read_text())["records"]
