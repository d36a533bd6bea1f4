"""Small problems of every CUDA kernel, for compute-sanitizer, which slows them down manyfold.

Every group width and stride, images that leave tails, every direction and epilogue, float32 with
and without TF32; what no kernel serves is left out. Exits with 1 where a result is wrong.
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
from resnext_kernels.verification.numerics import relative_error, tolerance


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
    return torch.randn(shape).to(like.dtype).contiguous(memory_format=torch.channels_last)


def error_of(problem: ConvProblem, direction: Direction) -> float:
    """The relative error of one direction on random numbers.

    All but the kernel runs on the CPU: the sanitizer slows down whatever runs on the GPU.
    """
    shapes = (problem.input_shape, problem.weight_shape, problem.output_shape)
    input, weight, output = on_cpu = tuple(images(shape, problem) for shape in shapes)
    on_gpu = [tensor.to("cuda") for tensor in on_cpu]
    if direction == "wgrad":
        expected = reference.wgrad(problem, output, input)
        out = cuda.wgrad(problem, on_gpu[2], on_gpu[0], torch.channels_last)
    elif direction == "dgrad":
        expected = reference.dgrad(problem, output, weight)
        out = cuda.dgrad(problem, on_gpu[2], on_gpu[1])
    else:
        bias = torch.randn(problem.out_channels).to(problem.dtype)
        expected = (reference.fprop(problem, input, weight, bias) + output.double()).relu()
        out = cuda.fprop(problem, *on_gpu[:2], bias.to("cuda"), on_gpu[2], True)
    return relative_error(out.cpu(), expected)


def main() -> int:
    wrong = served = 0
    for allow_tf32, problem in itertools.product((False, True), problems()):
        torch.backends.cudnn.allow_tf32 = allow_tf32
        if allow_tf32 and problem.dtype != torch.float32:
            continue
        what = f"{problem} {problem.dtype}{' TF32' if allow_tf32 else ''}"
        if reasons := cuda.not_supported_reasons(problem):
            print(f"not served: {what}: {'; '.join(reasons)}")
            continue
        for direction in DIRECTIONS:
            name = f"{direction} {what}"
            error = error_of(problem, direction)
            served += 1
            if not error < tolerance(problem.dtype, problem.device):
                wrong += 1
                name = f"WRONG: {name}"
            print(f"{name}: relative error {error:.1e}")
    print(f"{served} results, {wrong} of them wrong")
    return 1 if wrong or not served else 0


if __name__ == "__main__":
    sys.exit(main())
