"""The Triton backend without a GPU: reasons, plans, launches; its kernels interpreted."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import problem

import resnext_kernels as rk
from resnext_kernels import dispatch
from resnext_kernels.backends import BACKENDS, triton
from resnext_kernels.cli import info
from resnext_kernels.library import Library
from resnext_kernels.problem import DIRECTIONS

needs_triton = pytest.mark.skipif(not triton.LIBRARY.loaded, reason=triton.LIBRARY.message)
SERVED = dataclasses.replace(problem(8), device="cuda", dtype=torch.bfloat16, channels_last=True)
WIDTHS = st.integers(1, 200)


@pytest.fixture
def gpus(monkeypatch):
    """Makes the backend see Triton, and GPUs of the capabilities in the list that it returns."""
    capabilities = [(9, 0)]
    monkeypatch.setattr(triton, "LIBRARY", Library("triton", True, "there"))
    monkeypatch.setattr(triton, "INTERPRETED", False)
    monkeypatch.setattr(triton, "_reasons_of_driver", lambda: ())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: capabilities[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: "a GPU")
    dispatch.choose.cache_clear()
    yield capabilities
    dispatch.choose.cache_clear()


def test_its_place():
    assert list(BACKENDS) == ["cuda", "triton", "cpu", "aten"]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_nothing_speaks_against_is_served(gpus, direction):
    assert triton.not_supported_reasons(SERVED) == []
    assert dispatch.choose(SERVED, direction, "triton") is triton
    for changed in ({"dtype": torch.float32}, {"channels_last": False}, {"dilation": (2, 1)}):
        case = dataclasses.replace(SERVED, **changed)
        assert triton.not_supported_reasons(case) == []
    assert triton.isa() == "sm_90 a GPU"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"device": "cpu"}, "device cpu, serves cuda, xpu"),
        ({"dtype": torch.float64}, "dtype torch.float64, serves torch.float16, torch.bfloat16, "),
        ({"batch": 0}, "empty input (0, 16, 6, 7)"),
    ],
    ids=str,
)
def test_reasons_of_a_problem(gpus, changed, expected):
    (reason,) = triton.not_supported_reasons(dataclasses.replace(SERVED, **changed))
    assert reason.startswith(expected)


def test_reasons_of_devices(gpus):
    gpus.append((7, 5))
    (reason,) = triton.not_supported_reasons(SERVED)
    assert reason == "cuda:1 has compute capability 7.5, serves 8.0 and later"
    gpus.clear()
    assert triton.not_supported_reasons(SERVED) == ["torch finds no CUDA device"]


@needs_triton
@pytest.mark.skipif(torch.accelerator.is_available(), reason="triton starts on a GPU")
def test_triton_that_does_not_start_is_passed_over(monkeypatch):
    monkeypatch.setattr(triton, "INTERPRETED", False)
    case = dataclasses.replace(SERVED, device="xpu")
    (reason,) = triton.not_supported_reasons(case)
    assert reason.startswith("triton does not start: RuntimeError: 0 active drivers")
    assert dispatch.choose(case, "fprop").NAME == "aten"


def test_auto_without_the_cuda_library(gpus, monkeypatch):
    """Narrow groups in half precision and channels_last are served; the rest is ATen's."""
    cuda = BACKENDS["cuda"]
    monkeypatch.setattr(cuda, "LIBRARY", Library("_cuda", False, "_cuda.so was not built"))
    assert dispatch.choose(SERVED, "fprop") is triton
    for changed in ({"channels_last": False}, {"dtype": torch.float32}):
        assert dispatch.choose(dataclasses.replace(SERVED, **changed), "fprop").NAME == "aten"


@pytest.mark.parametrize(
    ("found", "loaded", "text"),
    [
        (None, False, "triton is not installed, 3.6 or later is needed"),
        ("3.5.1", False, "triton 3.5.1 is installed, 3.6 or later is needed"),
        ("3.10.0+git1", True, "triton 3.10.0+git1"),
    ],
)
def test_which_triton_serves(found, loaded, text, monkeypatch):
    def version(name):
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(triton, "version", version)
    library = triton._find()
    assert library.loaded == loaded
    assert library.message.startswith(text)
    monkeypatch.setattr(triton, "LIBRARY", library)
    assert info.describe()["backend triton"] == library.message
    if not loaded:
        assert library.message in triton.not_supported_reasons(SERVED)


@pytest.mark.parametrize("package", ["triton-rocm", "pytorch-triton-xpu", "pytorch-triton"])
def test_triton_of_torchs_other_builds(package, monkeypatch):
    def version(name):
        if name != package:
            raise importlib.metadata.PackageNotFoundError(name)
        return "3.7.0+rocm"

    monkeypatch.setattr(triton, "version", version)
    assert triton._find().loaded
    assert info.describe()["triton"] == "3.7.0+rocm"


def test_more_pixels_than_32_bits_count(monkeypatch):
    case = dataclasses.replace(SERVED, batch=2**20, in_size=(2**6, 2**6))
    assert f"{2**32} pixels, serves up to {2**30}" in triton.not_supported_reasons(case)


def test_tensors_on_the_cpu_are_refused():
    if triton.INTERPRETED:
        pytest.skip("the interpreter serves them")
    with pytest.raises(rk.ProblemError, match="device cpu, serves cuda, xpu"):
        rk.grouped_conv2d(torch.randn(1, 8, 5, 5), torch.randn(8, 4, 3, 3), groups=2,
                          backend="triton")  # fmt: skip


@needs_triton
@settings(deadline=None)
@given(st.integers(1, 40), WIDTHS, WIDTHS, st.sampled_from(["half", "tf32", "ieee"]))
def test_cells_cover_every_channel_once(groups, src_width, dst_width, precision):
    from resnext_kernels.backends.triton.kernels.cells import conv_cells, wgrad_cells

    cells = conv_cells(groups, src_width, dst_width, precision)
    blocks = -(-groups // cells.merged)
    assert cells.count == blocks * cells.parts
    assert cells.merged * dst_width in range(1, cells.parts * cells.breadth + 1)
    assert (cells.parts - 1) * cells.breadth < cells.merged * dst_width
    assert cells.merged == 1 or cells.merged * src_width <= cells.depth
    cells = wgrad_cells(groups, src_width, dst_width, precision)
    assert cells.count == blocks * cells.out_parts * cells.in_parts
    assert cells.merged * src_width <= cells.in_parts * cells.breadth
    assert cells.merged * dst_width <= cells.out_parts * cells.height


@needs_triton
@settings(deadline=None)
@given(*[st.integers(1, 300)] * 2, st.integers(0, 4), st.integers(1, 600))
def test_strips_take_the_least_time(rows, programs, early, slots):
    from resnext_kernels.backends.triton.kernels.conv import _START, strip_of_rows

    def time(strip):
        return -(-programs * -(-rows // strip) // slots) * (strip + early + _START)

    strip = strip_of_rows(rows, early, programs, slots)
    assert 1 <= strip <= rows
    assert time(strip) == min(map(time, range(1, rows + 1)))


@needs_triton
def test_configurations_of_a_device_and_a_batch(monkeypatch):
    from resnext_kernels.backends.triton.kernels import configs

    small, large = (configs.Config(batch, 16, 4, 4, 2, 2) for batch in (2, 128))
    default = configs.Config(32, 32, 4, 4, 2, 2)
    table = {"default": {"ring half 16": (default,)}, "sm_90": {"ring half 16": (small, large)}}
    monkeypatch.setattr(configs, "load", lambda: table)
    wanted = "ring", "half", 16
    for batch, expected in ((0, small), (15, small), (17, large), (1000, large)):
        assert configs.configuration("sm_90", *wanted, batch) is expected
    assert configs.configuration("gfx942", *wanted, 8) is default
    assert not configs.has_configuration("sm_90", "ring", "half", 32)
    with pytest.raises(KeyError, match="ring half 32"):
        configs.configuration("sm_90", "ring", "half", 32, 8)


@needs_triton
@pytest.mark.parametrize("allowed", [False, True])
def test_precision_follows_torch(allowed, monkeypatch):
    from resnext_kernels.backends.triton.kernels import device

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    assert device.precision(torch.float32) == ("tf32" if allowed else "ieee")
    assert device.precision(torch.bfloat16) == "half"


def numbers(package: str) -> tuple[int, ...]:
    """The first two numbers of the version of a package."""
    return tuple(map(int, importlib.metadata.version(package).split(".")[:2]))


@needs_triton
@pytest.mark.skipif(triton.INTERPRETED, reason="runs inside such a process")
def test_kernels_interpreted():
    """Two halves side by side, because the interpreter is slow and uses one core."""
    if numbers("triton") < (3, 9) and numbers("numpy") >= (2, 4):
        pytest.skip("the interpreter of this Triton needs a NumPy before 2.4")
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    files = ("test_triton_interpreted.py", "test_triton_operators.py")
    command += [str(folder / file) for file in files]
    halves = [
        subprocess.Popen(
            [*command, "-k", names],
            env=os.environ | {"TRITON_INTERPRET": "1"},
            cwd=folder.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for names in ("core_problems", "not core_problems")
    ]
    for half in halves:
        printed, _ = half.communicate()
        assert half.returncode == 0, printed[-4000:]
        assert " passed" in printed and " skipped" not in printed
