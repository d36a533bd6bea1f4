"""What the commands share: printing, errors in one line, progress, paths, optional packages."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TextIO

from ..bench.runner import Measurement


class UserError(Exception):
    """Something the user can put right; shown in one line."""

    code = 2


class OutputError(Exception):
    """stdout takes nothing, as it is closed or its disk full; shown in one line."""

    code = 1


def show(*lines: str) -> None:
    """Print lines on stdout, at once.

    Raises:
        BrokenPipeError: nobody reads them.
        OutputError: stdout is closed or full.
    """
    if sys.stdout is None:
        raise OutputError("cannot print: stdout is closed")
    try:
        print(*lines, sep="\n", flush=True)
    except (OSError, ValueError) as error:
        silence(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(f"cannot print: {error}") from error


def note(text: str, end: str = "\n") -> None:
    """Print on stderr. Where that is closed, full or read by nobody, nothing: it ends no run."""
    if sys.stderr is None:  # print would take stdout
        return
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Lose what a stream could not print: Python tries again at its end, and would fail there."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def require(module: str, package: str, extra: str, purpose: str) -> None:
    """Raise `UserError` saying what to install where ``module`` is missing."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{purpose} needs {package}: pip install 'resnext-kernels[{extra}]'")


def output_path(text: str) -> Path:
    """An argument type: a file to be written, its folder made; refused before any work is done."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from error
    try:
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{text}: is a folder, expected a file")
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: cannot be written: {error.strerror}") from error
    return path


def positive(text: str) -> int:
    """An argument type: an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a positive integer")
    return int(text)


class ProgressLine:
    """A line on stderr for each finished step; on a terminal, each one replaces the last.

    Elsewhere, only every ``every``-th one is printed.
    """

    def __init__(self, total: int, every: int = 1) -> None:
        self._total = total
        self._every = every
        self._done = 0
        self._start = monotonic()
        self._terminal = False
        with suppress(AttributeError, ValueError):  # there is no stderr, or a closed one
            self._terminal = sys.stderr.isatty()

    def step(self, text: str) -> None:
        """Count a step, which ``text`` describes."""
        self._done += 1
        elapsed = monotonic() - self._start
        left = elapsed / self._done * (self._total - self._done)
        line = f"[{self._done}/{self._total}, {left:.0f} s left] {text}"
        last = self._done == self._total
        if not self._terminal:
            if last or self._done % self._every == 0:
                note(line)
            return
        fitting = line[: shutil.get_terminal_size().columns - 1]  # a wrapped line would stay
        note(f"\r\033[K{fitting}", end="\n" * last)


class Progress(ProgressLine):
    """Progress by cases measured."""

    def __call__(self, measurements: Sequence[Measurement]) -> None:
        done = ", ".join(map(str, measurements))
        self.step(f"{measurements[0].case}: {done}" if measurements else "nothing serves this case")
