"""Fixtures of all tests."""

import os
import random
from collections.abc import Iterator

import pytest
import torch

from resnext_kernels.verification import numerics, operands

# The measurements of whoever runs the tests must not decide what "auto" takes in them.
os.environ["RESNEXT_KERNELS_CACHE"] = os.path.join(os.devnull, "nowhere")
# In the environment, so that processes that share the tests agree on what is parametrised by it.
SEED = int(
    os.environ.setdefault("RESNEXT_KERNELS_TEST_SEED", str(random.SystemRandom().randrange(2**32)))
)


def pytest_report_header() -> str:
    return f"inputs are random: RESNEXT_KERNELS_TEST_SEED={SEED} repeats this run"


@pytest.fixture(autouse=True)
def fresh_random_numbers(request: pytest.FixtureRequest) -> None:
    """Seeds torch by the run's seed and the test's name, so that one test alone repeats too."""
    operands.seed(random.Random(f"{SEED} {request.node.nodeid}").randrange(2**32))


@pytest.fixture(autouse=True)
def true_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps cuDNN from rounding float32 operands to TF32, which has a tolerance of its own."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Makes `torch.empty` and its kin return NaN, so that output left unwritten shows."""
    with numerics.strict():
        assert torch.empty(64).isnan().all()
        yield
