"""The CUDA kernels' traffic on the layers of ResNeXt-50, as the simulator counts it.

A quarter of an H100 (33 multiprocessors) with a quarter of a batch: each multiprocessor does what
it would do on the whole one.
"""

import importlib.util
from pathlib import Path

import cuda_sim
import pytest
import torch
from cuda_sim import Gpu, Options
from problems import TOLERANCES, operand_shapes, problem, randn, relative_error, truth

from resnext_kernels.bench.suites import SUITES, Layer

QUARTER = Gpu(33, 227 << 10, 228 << 10)
SECTOR = 32
MOST_READ, MOST_WRITTEN = 1.25, 1.02


def launches(layer, direction, batch, dtype=torch.bfloat16, **arguments):
    problem = layer.problem(batch, dtype)
    operands = [randn(s, dtype, "channels_last") for s in operand_shapes(problem, direction)]
    run = getattr(cuda_sim, direction)
    result = run(problem, *operands, gpu=QUARTER, options=Options(races=False), **arguments)
    return result.launches, sum(operand.nbytes for operand in operands), result.out.nbytes


def conflicts_in_main_loop(launch):
    return sum(place.conflicts for place in launch.places if place.kind.startswith("ldmatrix"))


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
@pytest.mark.parametrize("layer", SUITES["resnext50"], ids=str)
def test_each_image_is_moved_about_once(layer, direction):
    (launch,), read, written = launches(layer, direction, batch=16)
    assert SECTOR * launch["sectors_read"] <= MOST_READ * read
    assert SECTOR * launch["sectors_written"] <= MOST_WRITTEN * written
    assert conflicts_in_main_loop(launch) == 0
    assert launch["mma_k16"] + launch["mma_k8"] > 0


# Groups of 16, 32 and 40 channels: weights in registers, and in shared memory.
@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
@pytest.mark.parametrize("layer", [*SUITES["resnext50"][4:7:2], Layer(160, 28, 1, 4, 1)], ids=str)
def test_each_image_is_moved_about_once_in_tf32(layer, direction):
    (launch,), read, written = launches(layer, direction, 16, torch.float32, tf32=True)
    assert SECTOR * launch["sectors_read"] <= MOST_READ * read
    assert SECTOR * launch["sectors_written"] <= MOST_WRITTEN * written
    assert conflicts_in_main_loop(launch) == 0
    # Wide dgrad reads weights without ldmatrix; those of the rounding, once a block, are few.
    places = [place for place in launch.places if place.file == "wide.cuh"]
    words = sum(place.conflicts for place in places if place.kind == "ld_shared")
    assert words <= 0.02 * sum(place.wavefronts for place in places)
    assert launch["mma_tf32"] > 0


# At the batch of 256 images for a whole GPU: the partial sums do not grow with it.
@pytest.mark.parametrize("layer", SUITES["resnext50"][::2], ids=str)
def test_wgrad_reads_each_image_about_once(layer):
    (sums, total), read, written = launches(layer, "wgrad", batch=64)
    assert SECTOR * sums["sectors_read"] <= 1.05 * read
    assert SECTOR * total["sectors_written"] <= MOST_WRITTEN * written
    keys = ("sectors_read", "sectors_written")
    every = sum(launch[key] for launch in (sums, total) for key in keys)
    assert SECTOR * every <= MOST_READ * (read + written)
    assert conflicts_in_main_loop(sums) == 0


# Few splits, and so many that several threads share those of a weight.
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("images", [3, 35])
def test_partial_sums_are_added_by_threads_with_vectors_to_load(images, dtype):
    p = problem(4, groups=8, batch=images, size=(16, 16))
    grad, input = (randn(s, dtype, "channels_last") for s in operand_shapes(p, "wgrad"))
    result = cuda_sim.wgrad(p, grad, input)
    sums, total = result.launches
    splits = sums["bytes_written"] // (4 * result.out.numel())
    assert (splits >= 16) == (images == 35) == (total["barriers"] > 0)
    threads = total["blocks"] * total["threads"]
    assert 16 * threads <= total["bytes_read"] + 16 * total["threads"]
    assert relative_error(result.out, truth(p, "wgrad", grad, input)) < TOLERANCES[dtype]


def test_docs_agree_with_the_committed_predictions():
    path = Path(__file__).parents[1] / "benchmarks" / "update_predictions.py"
    spec = importlib.util.spec_from_file_location("update_predictions", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.DOCS.read_text()
    assert module.with_predictions(text, module.render(module.PREDICTIONS)) == text
    with pytest.raises(ValueError, match="markers"):
        module.with_predictions("no markers", "")
