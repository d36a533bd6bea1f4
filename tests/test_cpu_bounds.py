"""The CPU kernels touch nothing outside their operands, on every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import resnext_kernels.backends.cpu as cpu

ISAS = ("avx512_bf16", "avx512", "avx2", "portable")


def _run(code: str, isa: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parent
    path = os.pathsep.join((str(here), str(here.parent), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "RESNEXT_KERNELS_CPU_ISA": isa, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message)
@pytest.mark.parametrize("isa", ISAS)
def test_no_access_out_of_bounds(isa: str) -> None:
    seed = int.from_bytes(os.urandom(3), "big")
    result = _run(
        "import guarded, resnext_kernels.backends.cpu as cpu;"
        f"print(cpu.isa()); guarded.run_guarded({seed})",
        isa,
    )
    assert result.returncode == 0, f"seed {seed}: {result.stderr}"
    assert result.stdout.split()[-1] == "unharmed"


def test_the_guard_bites() -> None:
    code = (
        "import ctypes, torch, guarded;"
        "t = guarded.guarded(torch.ones(5), True);"
        "print(ctypes.c_float.from_address(t.data_ptr() + 20).value)"
    )
    assert _run(code, "portable").returncode < 0  # killed by a signal
