"""The CUDA backend without a GPU: what it refuses and why, and how it hands tensors to kernels."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from problems import LAYOUTS, problem, randn

import resnext_kernels as rk
from resnext_kernels import dispatch
from resnext_kernels.backends import BACKENDS, cuda
from resnext_kernels.cli import info
from resnext_kernels.library import Library
from resnext_kernels.problem import DIRECTIONS

SERVED = dataclasses.replace(problem(8), device="cuda", dtype=torch.bfloat16, channels_last=True)


@pytest.fixture
def loaded(monkeypatch) -> dict[str, object]:
    """Makes the backend see a library and GPUs; returns what those say, to be changed."""
    facts = {"archs": "8.0;9.0a;10.0+PTX", "reason": "", "gpus": [(9, 0)], "asked": []}

    class Operators:
        archs = staticmethod(lambda: facts["archs"])

        @staticmethod
        def not_supported_reason(*arguments):
            facts["asked"].append(arguments)
            return facts["reason"]

    def forget():
        cuda._reasons_of_devices.cache_clear()
        dispatch.choose.cache_clear()

    monkeypatch.setattr(cuda, "LIBRARY", Library("_cuda", True, "loaded"))
    monkeypatch.setattr(torch.ops, "resnext_kernels_cuda", Operators(), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(facts["gpus"]))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(facts["gpus"]))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: facts["gpus"][index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: "a GPU")
    forget()
    yield facts
    forget()


def test_it_comes_first():
    assert list(BACKENDS)[0] == "cuda" and list(BACKENDS)[-2:] == ["cpu", "aten"]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_nothing_speaks_against_is_served(loaded, direction):
    assert cuda.not_supported_reasons(SERVED) == []
    assert dispatch.choose(SERVED, direction) is cuda
    shapes = (2, 16, 6, 7), (16, 8, 3, 3)
    assert loaded["asked"][0] == (*shapes, (1, 1), (1, 1), (1, 1), 2, SERVED.dtype.itemsize)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"device": "cpu"}, "device cpu, serves cuda"),
        (
            {"dtype": torch.float64},
            "dtype torch.float64, serves torch.float16, torch.bfloat16, torch.float32",
        ),
        ({"batch": 0}, "empty input (0, 16, 6, 7)"),
    ],
    ids=str,
)
def test_reasons_of_a_problem(loaded, changed, expected):
    case = dataclasses.replace(SERVED, **changed)
    assert cuda.not_supported_reasons(case) == [expected]
    assert dispatch.choose(case, "fprop") is not cuda


def test_the_kernels_own_reason(loaded):
    loaded["reason"] = "kernels other than 3x3"
    assert cuda.not_supported_reasons(SERVED) == ["kernels other than 3x3"]


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ([], "torch finds no CUDA device"),
        ([(7, 5)], "cuda:0 has compute capability 7.5, serves 8.0 and later"),
        ([(8, 9)], None),
        ([(9, 0), (7, 0)], "cuda:1 has compute capability 7.0, serves 8.0 and later"),
        ([(9, 1)], "cuda:0 has compute capability 9.1, the library is compiled for 8.0;9.0a;10.0"),
        ([(12, 0)], None),
    ],
)
def test_reasons_of_the_gpus(loaded, gpus, expected):
    loaded["gpus"] = gpus
    found = cuda.not_supported_reasons(SERVED)
    assert (found == []) if expected is None else (len(found) == 1 and expected in found[0])


def test_without_the_library_it_says_so_and_asks_nothing(loaded, monkeypatch):
    monkeypatch.setattr(cuda, "LIBRARY", Library("_cuda", False, "_cuda.so was not built"))
    assert cuda.not_supported_reasons(SERVED) == ["_cuda.so was not built"]
    assert loaded["asked"] == []


@pytest.mark.parametrize(
    ("archs", "runs", "does_not"),
    [
        ("8.0", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0), (12, 0)]),
        ("8.6", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("9.0a", [(9, 0)], [(8, 0), (9, 1), (10, 0)]),
        ("9.0a+PTX", [(9, 0)], [(10, 0)]),
        ("10.0f", [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
        ("10.0+PTX", [(10, 0), (10, 3), (12, 1)], [(9, 0)]),
        ("8.0;9.0a", [(8, 6), (9, 0)], [(10, 0)]),
    ],
)
def test_which_gpus_run_what_was_compiled(archs, runs, does_not):
    for capability in (*runs, *does_not):
        assert cuda.runs_on(capability, archs) == (capability in runs)


def test_isa_names_the_hardware(loaded):
    assert cuda.isa() == "sm_90 a GPU"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 16, 5, 7), (1, 8, 1, 1), (3, 24, 1, 4)], ids=str)
def test_images_are_copied_only_where_the_kernels_cannot_read_them(layout, shape):
    images = randn(shape, torch.bfloat16, layout)
    given = cuda._pixels(images)
    assert torch.equal(given, images)
    assert given.stride(1) == 1
    assert all(given.stride(i) % 8 == 0 for i in (0, 2, 3)) and given.data_ptr() % 16 == 0
    if layout in ("channels_last", "window_last") and images.data_ptr() % 16 == 0:
        assert given is images


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (16, 1, 3, 3), (8, 8, 1, 1)], ids=str)
def test_weights_are_dense_with_the_channels_side_by_side(layout, shape):
    weight = randn(shape, torch.float16, layout)
    given = cuda._filters(weight)
    k, c, r, s = shape
    in_memory = given.as_strided((k, r, s, c), (r * s * c, s * c, c, 1))
    assert torch.equal(in_memory, weight.permute(0, 2, 3, 1))
    assert given.data_ptr() % 16 == 0


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_follows_torch(loaded, monkeypatch, allowed):
    given = []
    for name in ("fprop", "dgrad"):
        run = lambda *arguments: given.append(arguments[-1])  # noqa: E731
        monkeypatch.setattr(torch.ops.resnext_kernels_cuda, name, run, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    case = problem(16)
    images, weight = torch.randn(case.input_shape), torch.randn(case.weight_shape)
    cuda.fprop(case, images, weight, None, None, relu=not allowed)
    cuda.dgrad(case, torch.randn(case.output_shape), weight)
    assert given == [allowed, allowed]


def test_info_tells_what_the_library_is_compiled_for(loaded):
    assert info.describe()["backend cuda"] == "loaded, compiled for 8.0;9.0a;10.0+PTX"


def test_a_named_backend_refuses_with_every_reason():
    input, weight = torch.randn(1, 16, 5, 5).double(), torch.randn(16, 8, 3, 3).double()
    with pytest.raises(rk.ProblemError, match=re.escape("backend='cuda' cannot serve")) as caught:
        rk.grouped_conv2d(input, weight, groups=2, backend="cuda")
    for reason in ("device cpu, serves cuda", "dtype torch.float64, serves"):
        assert reason in str(caught.value)
