"""The CPU kernels touch nothing outside their operands, on every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import resnext_kernels.backends.cpu as cpu
from resnext_kernels.problem import ConvProblem


def _run(code: str, isa: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parent
    path = os.pathsep.join((str(here), str(here.parent), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "RESNEXT_KERNELS_CPU_ISA": isa, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message)
@pytest.mark.parametrize("isa", cpu.ISAS)
def test_no_access_out_of_bounds(isa: str) -> None:
    if cpu.ISAS.index(isa) < cpu.ISAS.index(cpu.isa()):
        pytest.skip(f"this machine has {cpu.isa()} at best")
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


@pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message)
def test_an_unknown_isa_is_told() -> None:
    result = _run("import resnext_kernels.backends.cpu as cpu; print(cpu.isa())", "sse9")
    assert result.returncode == 0
    assert result.stdout.strip() in cpu.ISAS
    assert "RESNEXT_KERNELS_CPU_ISA='sse9': expected one of 'avx512_bf16'" in result.stderr


@pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_result_larger_than_the_caches(stride: int) -> None:
    """Such results are written past the caches, by other instructions."""
    input = torch.randn(2, 96, 160 * stride, 150 * stride)
    input = input.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(96, 8, 3, 3)
    conv = (stride, stride), (1, 1), (1, 1), 12
    problem = ConvProblem.of(input, weight, *conv)
    expected = F.conv2d(input.double(), weight.double(), None, *conv)
    result = cpu.fprop(problem, input, weight, None, None, False)
    assert result.numel() * result.element_size() > 8 << 20
    assert ((result - expected).norm() / expected.norm()).item() < 1e-5


BAD_OPERANDS = {
    "weight in channels_last has 5 channels, expected an even number": {
        "weight": torch.ones(4, 5, 3, 3).contiguous(memory_format=torch.channels_last)
    },
    "weight is not of the dtype": {"weight": torch.ones(4, 5, 3, 3).bfloat16()},
    "weight is neither contiguous nor channels_last": {"weight": torch.ones(4, 5, 3, 6)[..., ::2]},
    "weight expected 4 dimensions, the first in whole groups": {"groups": 3},
    "bias is not one dense row": {"bias": torch.ones(3)},
    "bias is not of the dtype": {"bias": torch.ones(4).bfloat16()},
    "residual is not of the dtype": {"residual": torch.ones(1, 4, 6, 7).bfloat16()},
    "residual is not dense": {"residual": torch.ones(1, 4, 6, 7)},
    "source has the wrong shape": {"input": torch.ones(1, 2, 6, 7)},
    "destination has the wrong shape": {"output": torch.ones(1, 4, 6, 6)},
    "stride expected two values >= 1": {"stride": [0, 1]},
    "padding expected two values >= 0": {"padding": [1]},
    "dilation expected two values >= 1": {"dilation": [1, -1]},
}


@pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message)
@pytest.mark.parametrize("message", BAD_OPERANDS)
def test_the_private_operator_refuses_what_it_cannot_read(message: str) -> None:
    def pixels(channels: int) -> torch.Tensor:
        return torch.ones(1, channels, 6, 7).contiguous(memory_format=torch.channels_last)

    arguments = {
        "input": pixels(10), "weight": torch.ones(4, 5, 3, 3), "bias": torch.ones(4),
        "residual": pixels(4), "output": pixels(4), "stride": [1, 1], "padding": [1, 1],
        "dilation": [1, 1], "groups": 2, "relu": False,
    }  # fmt: skip
    torch.ops.resnext_kernels_cpu.fprop(**arguments)
    with pytest.raises(RuntimeError, match=f"resnext_kernels_cpu: {message}"):
        torch.ops.resnext_kernels_cpu.fprop(**arguments | BAD_OPERANDS[message])
