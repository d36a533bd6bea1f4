"""Predicts the CUDA kernels' times from what the tests' simulator counts, without a GPU.

    python benchmarks/predict_cuda.py [--suite resnext50] [--batch 64] [--tf32] [--json FILE]

For each layer and direction the launches run in the simulator with the tiles and the blocks that
the GPU would get. Their counts over the GPU's rates give one time for each thing that could limit
them; the largest, and the start of each launch, is the prediction. The floor is the least traffic
of the problem over the GPU's copy bandwidth. JSON files in `predictions/` hold both.
Operands are bfloat16, or with --tf32 float32, for the groups that TF32 is for.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

CHECKOUT = Path(__file__).parents[1]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests")]

import cuda_sim  # noqa: E402

from resnext_kernels.bench.suites import SUITES, Case, cases_of  # noqa: E402
from resnext_kernels.problem import DIRECTIONS  # noqa: E402

SECTOR_BYTES = 32
MMA_K16_FLOPS, MMA_K8_FLOPS = 2 * 16 * 8 * 16, 2 * 16 * 8 * 8  # TF32's is of the latter


@dataclass(frozen=True)
class Card:
    """Rates of a GPU: ``copy`` and ``l2`` in bytes a second, ``clock`` in Hz, instructions a clock.

    ``mma_k16`` and ``mma_k8`` count m16n8k16 and m16n8k8 for one multiprocessor; TF32's m16n8k8
    multiplies as many bytes as the former, in the same time. ``start`` is the time of an empty
    launch and of the first loads, in seconds.
    """

    gpu: cuda_sim.Gpu
    copy: float
    l2: float
    clock: float
    mma_k16: float
    mma_k8: float
    start: float = 3e-6


HOPPER = cuda_sim.Gpu(132, 227 << 10, 228 << 10)
# Estimates until they are measured.
CARDS = {
    "H100": Card(HOPPER, 3.0e12, 5.5e12, 1.7e9, 0.6, 1.0),
    "H200": Card(HOPPER, 4.2e12, 5.5e12, 1.7e9, 0.6, 1.0),
    "A100": Card(cuda_sim.Gpu(108, 163 << 10, 164 << 10), 1.7e12, 3.5e12, 1.4e9, 0.5, 1.0),
}


@dataclass(frozen=True)
class Prediction:
    """Times in microseconds; traffic as multiples of the least that the problem needs.

    ``useful``: the share of the matrix instructions' products that the result is made of.
    """

    card: str
    layer: str
    direction: str
    batch: int
    read: float
    written: float
    useful: float
    limits_us: dict[str, float]
    floor_us: float

    @property
    def limit(self) -> str:
        return max(self.limits_us, key=lambda name: self.limits_us[name])

    @property
    def predicted_us(self) -> float:
        return self.limits_us[self.limit] + self.limits_us["start"]

    @property
    def share(self) -> float:
        """Of the copy bandwidth."""
        return self.floor_us / self.predicted_us


@dataclass(frozen=True)
class Counts:
    """Of the launches of one case."""

    launches: int
    read: int  # bytes
    written: int
    least_written: int
    wavefronts: int
    mma_k16: int
    mma_k8: int
    mma_tf32: int


@cache
def simulate(gpu: cuda_sim.Gpu, case: Case) -> Counts:
    """Of random operands. Float32 is multiplied in TF32: what is not counts no instructions."""
    problem = case.problem
    input, weight, output = (
        torch.randn(shape).to(problem.dtype).contiguous(memory_format=torch.channels_last)
        for shape in (problem.input_shape, problem.weight_shape, problem.output_shape)
    )
    operands = {"fprop": (input, weight), "dgrad": (output, weight), "wgrad": (output, input)}
    run = getattr(cuda_sim, case.direction)
    options = cuda_sim.Options(races=False)
    tf32 = {"tf32": True} if problem.dtype == torch.float32 else {}
    ran = run(problem, *operands[case.direction], gpu=gpu, options=options, **tf32)
    count = {key: sum(launch[key] for launch in ran.launches) for key in ran.launches[0].counters}
    return Counts(
        launches=len(ran.launches),
        read=SECTOR_BYTES * count["sectors_read"],
        written=SECTOR_BYTES * count["sectors_written"],
        least_written=ran.out.nbytes,
        wavefronts=sum(count[key] for key in count if key.endswith("_wavefronts")),
        mma_k16=count["mma_k16"],
        mma_k8=count["mma_k8"],
        mma_tf32=count["mma_tf32"],
    )


def predict(name: str, case: Case) -> Prediction:
    """Simulate one case and divide its counts by a card's rates."""
    card, problem = CARDS[name], case.problem
    count = simulate(card.gpu, case)
    least_read = problem.bytes_moved() - count.least_written
    per_clock = card.gpu.multiprocessors * card.clock
    mma = (count.mma_k16 + count.mma_tf32) / card.mma_k16 + count.mma_k8 / card.mma_k8
    flops = count.mma_k16 * MMA_K16_FLOPS + (count.mma_k8 + count.mma_tf32) * MMA_K8_FLOPS
    seconds = {
        # What exceeds the least traffic is served by the L2 cache.
        "memory": problem.bytes_moved() / card.copy,
        "L2": (count.read + count.written) / card.l2,
        "shared memory": count.wavefronts / per_clock,
        "mma": mma / per_clock,
        "start": card.start * count.launches,
    }
    return Prediction(
        name, str(case.layer), case.direction, case.batch, count.read / least_read,
        count.written / count.least_written, problem.flops / flops,
        {key: value * 1e6 for key, value in seconds.items()},
        problem.bytes_moved() / card.copy * 1e6,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=SUITES, default="resnext50")
    parser.add_argument("--card", choices=CARDS, nargs="+", default=list(CARDS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    dtype = torch.float32 if arguments.tf32 else torch.bfloat16
    directions = ("fprop", "dgrad") if arguments.tf32 else DIRECTIONS
    cases = cases_of(arguments.suite, directions, [dtype], [arguments.batch], "cuda")
    if arguments.tf32:
        cases = [case for case in cases if 8 < case.problem.in_width <= 64]
    predictions = []
    for card in arguments.card:
        for case in cases:
            p = predict(card, case)
            predictions.append(p)
            print(
                f"{card} {p.layer:22} {p.direction} read {p.read:5.2f} written {p.written:6.2f}  "
                f"useful {100 * p.useful:3.0f}% of mma  "
                f"floor {p.floor_us:6.1f} us, predicted {p.predicted_us:6.1f} us by {p.limit}, "
                f"{100 * p.share:.0f}% of copy",
                flush=True,
            )
    if arguments.json:
        records = [
            asdict(p) | {"limit": p.limit, "predicted_us": p.predicted_us, "share": p.share}
            for p in predictions
        ]
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"predictions": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
