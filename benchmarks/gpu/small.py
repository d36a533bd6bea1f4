"""Small problems of every CUDA kernel, for compute-sanitizer, which slows them down manyfold.

Every group width and stride, images that leave tails, every direction and epilogue; what no kernel
serves is left out. Exits with 1 where a result is wrong.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from resnext_kernels import reference
from resnext_kernels.backends import cuda
from resnext_kernels.problem import DIRECTIONS, ConvProblem, Direction

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


def problems() -> Iterator[ConvProblem]:
    sizes = ((9, 13), (25, 18))
    for index, width in enumerate((1, 2, 4, 8, 16, 24, 32, 40, 64, 112)):
        dtypes = (torch.bfloat16, torch.float16)[index % 2], torch.float32
        unit = math.lcm(8, width)
        channels = unit * max(2, -(-72 // unit))  # one block of 64 and a part of the next
        for stride, dtype in itertools.product((1, 2), dtypes):
            for size in sizes:
                yield ConvProblem(
                    2, channels, size, channels, (3, 3), (stride, stride), (1, 1), (1, 1),
                    channels // width, dtype, "cuda", True,
                )  # fmt: skip


def images(shape: tuple[int, ...], like: ConvProblem) -> Tensor:
    tensor = torch.randn(shape, dtype=like.dtype, device="cuda")
    return tensor.contiguous(memory_format=torch.channels_last)


def error_of(problem: ConvProblem, direction: Direction) -> float:
    """The relative error of one direction on random numbers.

    The truth is computed on the CPU: the sanitizer would slow it down on the GPU.
    """
    shapes = (problem.input_shape, problem.weight_shape, problem.output_shape)
    input, weight, output = (images(shape, problem) for shape in shapes)
    on_cpu = input.cpu(), weight.cpu(), output.cpu()
    if direction == "wgrad":
        expected = reference.wgrad(problem, on_cpu[2], on_cpu[0])
        out = cuda.wgrad(problem, output, input, torch.channels_last)
    elif direction == "dgrad":
        expected = reference.dgrad(problem, on_cpu[2], on_cpu[1])
        out = cuda.dgrad(problem, output, weight)
    else:
        bias = torch.randn(problem.out_channels, dtype=problem.dtype, device="cuda")
        expected = reference.fprop(problem, *on_cpu[:2], bias.cpu())
        expected = (expected + on_cpu[2].double()).relu()
        out = cuda.fprop(problem, input, weight, bias, output, True)
    return float((out.double().cpu() - expected).norm() / expected.norm())


def main() -> int:
    wrong = served = 0
    for problem in problems():
        for direction in DIRECTIONS:
            reasons = cuda.not_supported_reasons(problem, direction)
            if reasons:
                print(f"not served: {direction} {problem}: {'; '.join(reasons)}")
                continue
            error = error_of(problem, direction)
            served += 1
            if not error < TOLERANCE[problem.dtype]:
                wrong += 1
                print(f"WRONG: {direction} {problem} {problem.dtype}: relative error {error:.1e}")
    print(f"{served} results, {wrong} of them wrong")
    return 1 if wrong or not served else 0


if __name__ == "__main__":
    sys.exit(main())
