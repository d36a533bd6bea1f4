"""What the Triton kernels compile to, for GPUs that need not be there: the code of every shipped
configuration, and of all layers of ResNeXt-50 32x4d, 101 32x8d and their like."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from resnext_kernels.backends import triton
from resnext_kernels.backends.triton.kernels.tensors import IN_PLACE
from resnext_kernels.problem import DIRECTIONS, ConvProblem

pytestmark = [
    pytest.mark.skipif(not triton.LIBRARY.loaded, reason=triton.LIBRARY.message),
    pytest.mark.skipif(triton.INTERPRETED, reason="this process interprets kernels"),
]

KIB = 1024
# Bytes of shared memory: of a program at most, and of a multiprocessor (CUDA C++ Programming Guide,
# "Technical Specifications per Compute Capability"); a program costs 1 KiB more than it asks for.
SHARED = {80: (163, 164), 86: (99, 100), 90: (227, 228), 100: (227, 228)}
REGISTERS = 65536
MATRIX = r"mma\.sync|wgmma\.mma_async|tcgen05\.mma"


def layer(width: int, size: int, stride: int = 1, dtype=torch.bfloat16) -> ConvProblem:
    """A grouped layer of a ResNeXt with 32 groups, for a batch of 32."""
    return ConvProblem(
        32, 32 * width, (size, size), 32 * width, (3, 3), (stride,) * 2, (1, 1), (1, 1), 32,
        dtype, "cuda", True,
    )  # fmt: skip


LAYERS = [
    *(layer(4 << stage, 56 >> stage) for stage in range(4)),
    *(layer(8 << stage, 56 >> stage, 2) for stage in range(3)),
    layer(64, 7),
    layer(64, 14, 2),
]
# Every kernel and case once: for classes of the default table, which another GPU would use.
KINDS = [layer(8, 28), layer(8, 56, 2), layer(32, 14), layer(32, 14, 2), layer(64, 7),
         layer(64, 14, 2), dataclasses.replace(layer(8, 28), kernel=(5, 5)),
         dataclasses.replace(layer(64, 14), kernel=(5, 5))]  # fmt: skip

# Four groups of 4 channels, which a single cell holds.
ONE_CELL = dataclasses.replace(layer(4, 28), in_channels=16, out_channels=16, groups=4)


def _cases():
    """(problem, direction, capability, precision, epilogue)"""
    for direction in DIRECTIONS:
        for case in LAYERS:
            for capability in (80, 90, 100):
                yield case, direction, capability, "half", False
        for case in KINDS:
            yield case, direction, 86, "half", False
        for case in KINDS[:6]:
            case = dataclasses.replace(case, dtype=torch.float32)
            yield case, direction, 86, "tf32", False
            if case.in_width < 64:
                yield case, direction, 86, "ieee", False
    for capability in (90, 100):
        yield KINDS[6], "fprop", capability, "half", False
    for direction in ("fprop", "dgrad"):
        yield ONE_CELL, direction, 100, "half", False
    for capability in (80, 90, 100):
        for case in (layer(4, 56), layer(32, 7), layer(64, 7), layer(8, 56, 2)):
            yield case, "fprop", capability, "half", True


def contiguous(case: ConvProblem) -> ConvProblem:
    """``case`` on contiguous images, in the largest batch of them that is read in place."""
    sizes = (math.prod(shape[1:]) for shape in (case.input_shape, case.output_shape))
    batch = max(1, IN_PLACE // (case.dtype.itemsize * max(sizes)))
    return dataclasses.replace(case, batch=batch, channels_last=False)


VECTORS = list(_cases())
# Contiguous images are read by the same kernels: half of the cases, capabilities in turn.
CASES = VECTORS + [(contiguous(case), *rest) for case, *rest in VECTORS[::2]]


def name(index: int) -> str:
    case, direction, capability, precision, epilogue = CASES[index]
    kind = f"{direction}{' fused' if epilogue else ''} sm_{capability} {precision}"
    kind += "" if case.channels_last else " contiguous"
    return f"{kind} {case} {case.kernel[0]}x{case.kernel[1]}"


each_case = pytest.mark.parametrize("index", range(len(CASES)), ids=name)


@pytest.fixture(scope="module")
def reports() -> list[dict]:
    """What `triton_aot` tells of each case, by two processes of it."""

    def compile_every_second(first: int) -> list[dict]:
        lines = []
        for case, direction, capability, precision, epilogue in CASES[first::2]:
            fields = dataclasses.asdict(case) | {"dtype": str(case.dtype).removeprefix("torch.")}
            lines.append(json.dumps({
                "problem": fields, "direction": direction, "capability": capability,
                "precision": precision, "epilogue": epilogue,
            }))  # fmt: skip
        script = Path(__file__).with_name("triton_aot.py")
        done = subprocess.run(
            [sys.executable, script],
            input="\n".join(lines),
            env=os.environ | {"PYTHONPATH": str(script.parent.parent)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(2) as pool:
        even, odd = pool.map(compile_every_second, (0, 1))
    found: list[dict] = [{}] * len(CASES)
    found[::2], found[1::2] = even, odd
    return found


def of(report: dict, pattern: str) -> dict[str, int]:
    """How often each instruction occurs whose name begins with ``pattern``."""
    return {n: count for n, count in report["instructions"].items() if re.match(pattern, n)}


@each_case
def test_nothing_is_spilled(reports, index):
    report = reports[index]
    assert (report["stack"], report["local"]) == (0, 0)
    assert not of(report, r"(st|ld)\.local")


@each_case
def test_programs_fit_a_multiprocessor(reports, index):
    """In the number that the configuration expects, or one less: versions of Triton differ.

    A fused epilogue needs more registers.
    """
    report, (_, _, capability, _, epilogue) = reports[index], CASES[index]
    most, whole = SHARED[capability]
    assert report["shared"] <= most * KIB
    resident = max(1, 0 if epilogue else report["resident"] - 1)
    assert resident * (report["shared"] + KIB) <= whole * KIB
    registers = -(-report["registers"] // 8) * 8 * 32 * report["warps"]
    assert resident * registers <= REGISTERS


@each_case
def test_products_are_matrix_instructions(reports, index):
    report, precision = reports[index], CASES[index][3]
    products = of(report, MATRIX)
    if precision == "ieee":
        assert not products and report["instructions"]["fma.rn.f32"] > 100
    else:
        kind = {"half": r"bf16|kind::f16", "tf32": "tf32"}[precision]
        assert products and all(re.search(kind, name) for name in products)


@each_case
def test_blackwells_instructions_add_to_one_sum_a_step(reports, index):
    """Triton up to 3.8 miscompiles those that add to one sum one after the other."""
    if reports[index]["kernel"] == "conv_rows":
        assert not of(reports[index], "tcgen05")


@pytest.mark.parametrize("index", range(len(VECTORS)), ids=name)
def test_images_are_read_and_written_in_vectors(reports, index):
    """Asynchronous copies of 16 bytes, ahead of their use; results in 16 bytes too."""
    report, (_, direction, _, precision, _) = reports[index], CASES[index]
    copies = of(report, r"cp\.async\.c[ag]")
    assert copies
    if precision == "half":  # elements of 4 bytes are sometimes transposed on the way
        assert all(name.endswith(" 16") for name in copies)
    if direction != "wgrad":
        stores = of(report, r"st\.global")
        assert stores and all("v4.b32" in name for name in stores)


def test_every_shipped_configuration_was_compiled(reports):
    from resnext_kernels.backends.triton.kernels import configs

    shipped = {(device, kind) for device, kinds in configs.load().items() for kind in kinds}
    assert {tuple(report["configuration"]) for report in reports} == shipped


def test_kernels(reports):
    """Which kernel serves what: narrow groups march, wide ones and large kernels do not."""
    for (case, direction, capability, _, _), report in zip(CASES, reports, strict=True):
        marches = case.kernel == (3, 3) and case.in_width <= 16 and case.dtype == torch.bfloat16
        marches &= case.channels_last
        if marches and direction != "wgrad":
            assert report["kernel"] == "conv_rows", (str(case), direction, capability)
        if case.kernel == (5, 5) and direction != "wgrad":
            assert report["kernel"] == "conv_taps"
        assert all(grid > 0 for grid in report["grids"])
        assert direction == "wgrad" or len(report["grids"]) == 1
