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
from problems import operand_shapes, randn

from resnext_kernels.bench.suites import SUITES

QUARTER = Gpu(33, 227 << 10, 228 << 10)
SECTOR = 32
ELEMENT = 2
MOST_READ, MOST_WRITTEN = 1.25, 1.02


def launches(layer, direction, batch):
    problem = layer.problem(batch, torch.bfloat16)
    operands = [
        randn(s, torch.bfloat16, "channels_last") for s in operand_shapes(problem, direction)
    ]
    run = getattr(cuda_sim, direction)
    result = run(problem, *operands, gpu=QUARTER, options=Options(races=False))
    read = ELEMENT * sum(operand.numel() for operand in operands)
    return result.launches, read, ELEMENT * result.out.numel()


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


def test_docs_agree_with_the_committed_predictions():
    path = Path(__file__).parents[1] / "benchmarks" / "update_predictions.py"
    spec = importlib.util.spec_from_file_location("update_predictions", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.DOCS.read_text()
    assert module.with_predictions(text, module.render(module.PREDICTIONS)) == text
    with pytest.raises(ValueError, match="markers"):
        module.with_predictions("no markers", "")
