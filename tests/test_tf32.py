"""TF32 is taken where torch's flags, the older and the newer ones, allow it to cuDNN."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.backends import cudnn

from resnext_kernels.backends import tf32
from resnext_kernels.verification.numerics import tolerance


@pytest.fixture(autouse=True)
def flags() -> Iterator[None]:
    before = torch.backends.fp32_precision, cudnn.conv.fp32_precision
    yield
    torch.backends.fp32_precision, cudnn.conv.fp32_precision = before


@pytest.mark.parametrize("allowed", [False, True])
def test_the_older_flag(allowed: bool) -> None:
    cudnn.allow_tf32 = allowed
    assert tf32.allowed() == allowed


@pytest.mark.parametrize(
    ("everywhere", "convolutions", "allowed"),
    [
        ("none", "none", False),
        ("none", "ieee", False),
        ("none", "tf32", True),
        ("tf32", "none", True),
        ("tf32", "ieee", False),
        ("ieee", "none", False),
        ("ieee", "tf32", True),
    ],
)
def test_the_newer_flags(everywhere: str, convolutions: str, allowed: bool) -> None:
    torch.backends.fp32_precision = everywhere
    cudnn.conv.fp32_precision = convolutions
    assert tf32.allowed() == allowed


@pytest.mark.parametrize("maker", ["hip", "xpu"])
def test_never_on_another_makers_gpu(maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn.conv.fp32_precision = "tf32"
    monkeypatch.setattr(torch.version, maker, "6.4")
    assert not tf32.allowed()


def test_tolerances_follow_the_flags() -> None:
    cudnn.allow_tf32 = True
    assert tolerance(torch.float32, "cuda") == 1e-3
    assert tolerance(torch.float32, "cpu") == 1e-5
    assert tolerance(torch.float16, "cuda") == tolerance(torch.float16, "cpu") == 2e-3
    cudnn.allow_tf32 = False
    assert tolerance(torch.float32, "cuda") == 1e-5
