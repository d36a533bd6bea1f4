"""The peers of single layers that are compiled: Inductor, and JAX where it is installed."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from tiny_suite import LAYERS, case
from torch._dynamo import config

from resnext_kernels.bench import jax_peer, peaks, runner, timing
from resnext_kernels.bench.implementations import PEERS, Operands, result_of
from resnext_kernels.bench.suites import DTYPES
from resnext_kernels.problem import DIRECTIONS
from resnext_kernels.verification.numerics import tolerance


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "_MAX_ROUNDS", 1)
    monkeypatch.setitem(peaks._SIZES, "cpu", peaks._Sizes(32, 1 << 16))


@pytest.fixture
def no_jax(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *args: None if name == "jax" else find(name, *args),
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_all_peers_are_asked_for_where_one_is_not_installed(no_jax, direction):
    result = runner.run([case(direction)], list(PEERS), ours=["auto"], seconds=0)
    found = {r["implementation"]: r["parity"] for r in result["records"]}
    assert found == dict.fromkeys(["auto", *(name for name in PEERS if name != "jax")], "green")
    assert "pip install" in result["skipped"]["jax"]


@torch.no_grad()
def test_inductor_compiles_every_shape_anew():
    """What is compiled of one function is limited, and beyond that it runs uncompiled."""
    with config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for direction in ("fprop", "dgrad"):
            for layer in LAYERS:
                problem = case(direction, layer=layer).problem
                call = PEERS["torch:inductor"].bind(problem, direction, Operands.random(problem))
                assert result_of(direction, call()).shape[0] == problem.batch


@torch.no_grad()
def test_inductor_has_the_weight_of_fprop_frozen():
    problem = case().problem
    x = PEERS["torch:inductor"].copy_operands(Operands.random(problem))
    call = PEERS["torch:inductor"].bind(problem, "fprop", x)
    before = call().clone()
    x.weight.zero_()
    assert torch.equal(call(), before)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_jax_is_right(direction, dtype, layer):
    pytest.importorskip("jax")
    (found,) = runner.measure(case(direction, dtype, 3, layer), [PEERS["jax"]], 0)
    assert found.timing and found.error <= tolerance(dtype, "cpu")


def test_jax_is_not_asked_for_what_takes_seconds_or_is_no_cpu():
    problem = case("wgrad").problem
    assert "seconds" in jax_peer.reasons_against(problem, "wgrad")[-1]
    on_gpu = LAYERS[0].problem(1, torch.float32, device="cuda")
    assert "CPU alone" in jax_peer.reasons_against(on_gpu, "fprop")[-1]
