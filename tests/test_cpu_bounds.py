"""The CPU kernels touch nothing outside their operands, on every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from problems import truth

import resnext_kernels
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
    assert "RESNEXT_KERNELS_CPU_ISA" not in _run("import resnext_kernels", "").stderr


# Group widths of a part, of one and of several vectors of channels, odd numbers of them too, and
# more channels than are worked on together.
LARGE = [(1, 112), (1, 104), (2, 56), (4, 28), (8, 14), (24, 6), (40, 4), (8, 96)]


@pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message)
@pytest.mark.parametrize(("direction", "stride"), [("fprop", 1), ("dgrad", 2)])
@pytest.mark.parametrize(
    ("width", "groups", "finite"), [*((*case, True) for case in LARGE), (4, 28, False)]
)
def test_a_result_larger_than_the_caches(
    width: int, groups: int, finite: bool, direction: str, stride: int
) -> None:
    """Such results are written past the caches, by other instructions."""
    channels, size = width * groups, (150, 146) if width * groups < 300 else (62, 58)
    large = torch.randn(2, channels, *size).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, width, 3, 3)
    if not finite:
        weight[channels // 2, width // 2, 1, 1] = float("inf")  # the tap that meets no padding
    conv = (stride, stride), (1, 1), (1, 1), groups
    problem = ConvProblem.of(large, weight, *conv)
    if direction == "fprop":
        bias, residual = torch.randn(channels), torch.randn_like(large)
        result = cpu.fprop(problem, large, weight, bias, residual, True)
        expected = truth(problem, direction, large, weight)
        expected = (expected + bias.view(-1, 1, 1) + residual).relu()
    else:
        grad = torch.randn(problem.output_shape).contiguous(memory_format=torch.channels_last)
        result = cpu.dgrad(problem, grad, weight)
        expected = truth(problem, direction, grad, weight)
    assert result.numel() * result.element_size() > 8 << 20
    assert torch.equal(result.isfinite(), expected.isfinite())
    result, expected = (t.nan_to_num(0, 0, 0) for t in (result, expected))
    assert ((result - expected).norm() / expected.norm()).item() < 1e-5


@pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message)
def test_rows_that_no_memory_holds_go_elsewhere() -> None:
    operands = torch.ones(1, 60_000, 1, 1), torch.ones(1, 60_000, 3, 3)
    problem = ConvProblem.of(*operands, (1, 1), (256, 256), (256, 256), 1)
    (reason,) = cpu.not_supported_reasons(problem)
    assert reason.endswith(
        "in the rows of a group that the taps reach at once, serves up to 67108864"
    )
    result = resnext_kernels.grouped_conv2d(*operands, None, 1, 256, 256)
    assert torch.equal(result, torch.full((1, 1, 1, 1), 60_000.0))


BAD_OPERANDS = {
    "weight is empty": {"weight": torch.ones(4, 5, 0, 3)},
    "expected images with pixels that the kernel fits in": {
        "input": torch.ones(1, 10, 2, 7),
        "padding": [0, 0],
    },
    "weight in channels_last has 5 channels, expected an even number": {
        "weight": torch.ones(4, 5, 3, 3).contiguous(memory_format=torch.channels_last)
    },
    "weight is not of the dtype": {"weight": torch.ones(4, 5, 3, 3).bfloat16()},
    "weight is neither contiguous nor channels_last": {"weight": torch.ones(4, 5, 3, 6)[..., ::2]},
    "weight expected 4 dimensions, the first in whole groups": {"groups": 3},
    "bias is not one dense row": {"bias": torch.ones(3)},
    "bias is not of the dtype": {"bias": torch.ones(4).bfloat16()},
    "residual is not of the dtype": {"residual": torch.ones(1, 4, 6, 7).bfloat16()},
    "residual is not dense": {"residual": torch.ones(1, 4, 6, 8)[..., 1:]},
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
