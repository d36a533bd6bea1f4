"""The CUDA kernels' traffic on the layers of ResNeXt, as the simulator counts it.

A part of a GPU with as much of a batch: each multiprocessor does what it would do on the whole one.
Only the weights are not divided: each part reads all of them, of which its share is a part.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import cuda_sim
import pytest
import torch
from cuda_sim import Gpu, Launch, Options
from problems import TOLERANCES, operand_shapes, problem, randn, relative_error, truth

from resnext_kernels.bench.suites import SUITES, Layer, cases_of
from resnext_kernels.problem import DIRECTIONS, ConvProblem, Direction

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PREDICTIONS = BENCHMARKS / "predictions"
KIB = 1024
SECTOR = 32
MOST_READ, MOST_WRITTEN = 1.25, 1.02
FLOPS = {"mma_k16": 2 * 16 * 8 * 16, "mma_k8": 2 * 16 * 8 * 8, "mma_tf32": 2 * 16 * 8 * 8}


@dataclass(frozen=True)
class Part:
    """One of ``count`` parts of a GPU, which still has room for all kinds of blocks."""

    gpu: Gpu
    count: int


H100 = Part(Gpu(33, 227 * KIB, 228 * KIB), 4)
A100 = Part(Gpu(108, 163 * KIB, 164 * KIB), 1)
LAYERS = list(dict.fromkeys([*SUITES["resnext50"], *SUITES["resnext101_32x8d"]]))
ON_CARDS = [
    *(pytest.param(H100, layer, id=f"H100-{layer}") for layer in LAYERS),
    *(pytest.param(A100, layer, id=f"A100-{layer}") for layer in SUITES["resnext50"][1:]),
]


@dataclass(frozen=True)
class Run:
    problem: ConvProblem
    launches: list[Launch]
    images: int  # bytes of the operands that are images
    weights: float  # of those that are weights, the part's share
    written: int

    @property
    def useful(self) -> float:
        """The share of the products that the matrix instructions do for the result."""
        done = [launch[name] * flops for launch in self.launches for name, flops in FLOPS.items()]
        return self.problem.flops / sum(done)


def simulate(
    part: Part, layer: Layer, direction: Direction, batch: int, dtype=torch.bfloat16, **arguments
) -> Run:
    """``batch``: images of the whole GPU."""
    p = layer.problem(batch // part.count, dtype)
    shapes = operand_shapes(p, direction)
    operands = [
        torch.zeros(s, dtype=dtype).contiguous(memory_format=torch.channels_last) for s in shapes
    ]
    run = getattr(cuda_sim, direction)
    result = run(p, *operands, gpu=part.gpu, options=Options(races=False), **arguments)
    weights = 0 if direction == "wgrad" else operands[1].nbytes
    images = sum(operand.nbytes for operand in operands) - weights
    return Run(p, result.launches, images, weights / part.count, result.out.nbytes)


def check_shared_memory(launch: Launch, part: Part) -> None:
    """No bank conflict where the main loop reads; few where copies arrive; room for all blocks.

    Of a copy's eight vectors two may meet where they lie in different rows.
    """
    reads = [place for place in launch.places if place.kind in ("ldmatrix", "ld_shared")]
    assert sum(place.conflicts for place in reads) == 0, reads
    passes = sum(place.wavefronts for place in launch.places)
    assert launch["cp_async_conflicts"] <= 0.08 * passes
    resident = -(-launch["blocks"] // part.gpu.multiprocessors)
    assert resident * (launch["shared_bytes"] + KIB) <= part.gpu.shared_per_multiprocessor


def is_small(layer: Layer) -> bool:
    """Whether a batch of 64 is so little that copies of the weights outweigh halos."""
    return layer.size // layer.stride == 7


def batches(part: Part, layer: Layer) -> tuple[int, ...]:
    return (64, 256) if is_small(layer) and part is H100 else (64,)


def least_useful(p: ConvProblem) -> float:
    """Half of the products of merged groups of 4 channels are with zeros."""
    return 0.4 if p.in_width == 4 else 0.75


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
@pytest.mark.parametrize(("part", "layer"), ON_CARDS)
def test_each_image_is_moved_about_once(part: Part, layer: Layer, direction: Direction) -> None:
    """At a batch of 64; of small images at 256 too, for which the weights' copies are few."""
    for batch in batches(part, layer):
        run = simulate(part, layer, direction, batch)
        (launch,) = run.launches
        images = sum(place.sectors for place in launch.places
                     if (place.file, place.kind) == ("ring.cuh", "ld_global"))  # fmt: skip
        assert run.images <= SECTOR * images <= MOST_READ * run.images
        if batch == 256 or not is_small(layer):
            assert SECTOR * launch["sectors_read"] <= MOST_READ * (run.images + run.weights)
        assert SECTOR * launch["sectors_written"] <= MOST_WRITTEN * run.written
        assert launch["mma_k16"] + launch["mma_k8"] > 0
        assert run.useful >= least_useful(run.problem)
        check_shared_memory(launch, part)


# Groups of 16, 32 and 40 channels: weights in registers, and in shared memory.
@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
@pytest.mark.parametrize("layer", [*SUITES["resnext50"][4:7:2], Layer(160, 28, 1, 4, 1)], ids=str)
def test_each_image_is_moved_about_once_in_tf32(layer: Layer, direction: Direction) -> None:
    batch = batches(H100, layer)[-1]
    run = simulate(H100, layer, direction, batch, torch.float32, tf32=True)
    (launch,) = run.launches
    assert SECTOR * launch["sectors_read"] <= MOST_READ * (run.images + run.weights)
    assert SECTOR * launch["sectors_written"] <= MOST_WRITTEN * run.written
    assert all(place.conflicts == 0 for place in launch.places if place.kind == "ldmatrix")
    # Wide dgrad reads weights without ldmatrix; those of the rounding, once a block, are few.
    places = [place for place in launch.places if place.file == "wide.cuh"]
    words = sum(place.conflicts for place in places if place.kind == "ld_shared")
    assert words <= 0.02 * sum(place.wavefronts for place in places)
    assert launch["mma_tf32"] > 0


@pytest.mark.parametrize(("part", "layer"), ON_CARDS)
def test_wgrad_reads_each_image_about_once(part: Part, layer: Layer) -> None:
    """And at a batch of 256 adds little to that by its partial sums, which do not grow with it."""
    for batch in batches(part, layer):
        run = simulate(part, layer, "wgrad", batch)
        sums, total = run.launches
        assert SECTOR * sums["sectors_read"] <= 1.05 * run.images
        assert SECTOR * total["sectors_written"] <= MOST_WRITTEN * run.written
        if batch == 256 or not is_small(layer):
            partial = SECTOR * (sums["sectors_written"] + total["sectors_read"])
            read = SECTOR * sums["sectors_read"] + partial
            most = 1.4 if run.problem.in_width == 64 else MOST_READ
            assert read <= most * (run.images + run.written / part.count)
        assert sums["mma_k16"] > 0
        assert run.useful >= least_useful(run.problem)
        check_shared_memory(sums, part)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layer", SUITES["resnext50"][:3:2], ids=str)
def test_float32_moves_each_image_about_once(layer: Layer, direction: Direction) -> None:
    """Groups of 4 and 8 channels, in which exact sums are to keep up with the memory."""
    run = simulate(H100, layer, direction, 64, torch.float32)
    launch = run.launches[0]
    assert SECTOR * launch["sectors_read"] <= MOST_READ * (run.images + run.weights)
    assert SECTOR * run.launches[-1]["sectors_written"] <= MOST_WRITTEN * run.written
    # A few meet at the end of a chunk, whose last anchor stands for those that are not there.
    assert launch["ld_shared_conflicts"] <= 0.02 * launch["ld_shared_wavefronts"]


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


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_two_blocks_fit_a_multiprocessor_where_two_are_planned(direction: Direction) -> None:
    """Of each the GPU takes a KiB more than it asks for."""
    p = problem(8, groups=8, batch=4, size=(28, 28))
    a, b = (randn(s, torch.bfloat16, "channels_last") for s in operand_shapes(p, direction))
    run = getattr(cuda_sim, direction)
    pairs = 0
    for room in range(96 * KIB, 228 * KIB, 3 * KIB // 2):
        gpu = Gpu(1, min(room - KIB, 227 * KIB), room)
        launch = run(p, a, b, gpu=gpu, options=Options(races=False)).launches[0]
        if launch["blocks"] == 2:
            pairs += 1
            assert 2 * (launch["shared_bytes"] + KIB) <= room
    assert pairs > 2


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("file", sorted(PREDICTIONS.glob("*.json")), ids=lambda file: file.stem)
def test_committed_predictions_are_those_of_these_kernels(file: Path, direction: Direction) -> None:
    """By the last layer, which is the smallest."""
    predict_cuda = script("predict_cuda")
    suite, _, batch = file.stem.partition("-batch")
    case = cases_of(suite, [direction], [torch.bfloat16], [int(batch)], "cuda")[-1]
    committed = [
        record
        for record in json.loads(file.read_text())["predictions"]
        if (record["layer"], record["direction"]) == (str(case.layer), direction)
    ]
    assert {record["card"] for record in committed} == set(predict_cuda.CARDS)
    for record in committed:
        now = asdict(predict_cuda.predict(record["card"], case))
        for key in ("read", "written", "useful", "limits_us", "floor_us"):
            assert record[key] == pytest.approx(now[key]), key


def test_docs_agree_with_the_committed_predictions():
    module = script("update_predictions")
    text = module.DOCS.read_text()
    assert module.with_predictions(text, module.render(module.PREDICTIONS)) == text
    with pytest.raises(ValueError, match="markers"):
        module.with_predictions("no markers", "")
