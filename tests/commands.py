"""What the tests of the console commands share."""

from __future__ import annotations

import sys

import pytest

from resnext_kernels.bench import peaks, suites, timing
from resnext_kernels.bench.suites import Layer
from resnext_kernels.cli import main


@pytest.fixture
def quick(monkeypatch):
    """Tiny problems under the names of the real ones, few repeats."""
    monkeypatch.setattr(timing, "_MAX_ROUNDS", 2)
    monkeypatch.setitem(peaks._SIZES, "cpu", peaks._Sizes(32, 1 << 16))
    monkeypatch.setitem(suites.SUITES, "resnext50", (Layer(16, 6, 1, 4, 2), Layer(32, 7, 2, 4, 1)))


def without(monkeypatch, module: str) -> None:
    """Make a package look as if it were not installed."""
    monkeypatch.setitem(sys.modules, module, None)


def fails_in_one_line(capsys, arguments: list[str], *expected: str) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"resnext-kernels {arguments[0]}: ")
    assert all(text in error for text in expected)
