"""The machine code of the CUDA kernels: no spills, tensor cores, wide accesses, occupancy."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cuda_build
import pytest

ARCHS = ("sm_80", "sm_90a", "sm_100")
REGISTERS = 65536  # of a multiprocessor, on all of these; given to a warp in units of 256
RESERVED = 1024  # bytes of shared memory that each block takes beside its own, from sm_90 on
ENDINGS = {"Bf16": "BF16", "Fp16": "F32", "Tf32": "TF32"}  # of matrix instructions
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", re.M)
_USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_PLAN = re.compile(r"\.entry (\w+)\([^)]*\)\s+\.maxntid (\d+)\s+\.minnctapersm (\d+)")


@dataclass(frozen=True)
class Kernel:
    """What the compiler made of a kernel for one architecture."""

    name: str
    registers: int  # a thread
    stack: int  # bytes a thread, local memory included
    shared: int  # bytes a block, beside what the launch asks for
    instructions: Counter[str]

    def count(self, *prefixes: str) -> int:
        return sum(n for name, n in self.instructions.items() if name.startswith(prefixes))

    def accesses(self, instruction: str) -> list[tuple[int, int]]:
        """Bytes a lane of the accesses to global memory of a kind, and how many there are."""
        return [
            (int(bits.group()) // 8 if (bits := re.search(r"(64|128)", name)) else 4, count)
            for name, count in self.instructions.items()
            if name.split(".")[0] == instruction
        ]

    @property
    def convolves(self) -> bool:
        """Whether it is a convolution, and not a sum of its parts."""
        return "sum" not in self.name

    @property
    def in_float32(self) -> bool:
        return "direct" in self.name or "3F32" in self.name

    @property
    def writes_images(self) -> bool:
        return self.convolves and "wgrad" not in self.name


@pytest.fixture(scope="session")
def library() -> Path:
    return cuda_build.library()


def cuobjdump(*arguments: str | Path) -> str:
    # -sass calls nvdisasm, which may stand elsewhere.
    folders = [str(cuda_build.tool(name).parent) for name in ("cuobjdump", "nvdisasm")]
    return subprocess.run(
        [cuda_build.tool("cuobjdump"), *arguments],
        env=cuda_build.environment(PATH=":".join(folders)),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.fixture(scope="session", params=ARCHS)
def kernels(library: Path, request: pytest.FixtureRequest) -> list[Kernel]:
    usage = _USAGE.findall(cuobjdump("-arch", request.param, "-res-usage", library))
    parts = cuobjdump("-arch", request.param, "-sass", library).split("\t\tFunction : ")[1:]
    code = {name: Counter(_INSTRUCTION.findall(text)) for name, _, text in
            (part.partition("\n") for part in parts)}  # fmt: skip
    assert {name for name, *_ in usage} == set(code)
    assert all(instructions["EXIT"] for instructions in code.values())
    return [Kernel(n, int(r), int(s) + int(x), int(m), code[n]) for n, r, s, m, x in usage]


def test_every_architecture_has_every_kernel(library: Path, kernels: list[Kernel]) -> None:
    names = {kernel.name for kernel in kernels}
    assert names == set(plans(library))
    for part in ("Bf16", "Fp16", "Tf32", "wgrad"):
        assert any(part in name for name in names)


def test_of_cuda_it_calls_nothing_that_waits_or_takes_memory(library: Path) -> None:
    command = ["nm", "--dynamic", "--undefined-only", library]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {*re.findall(r"\bU (cuda\w+)", symbols)} == {
        "cudaDeviceGetAttribute", "cudaFuncSetAttribute", "cudaGetDevice", "cudaGetErrorString",
        "cudaGetLastError", "cudaLaunchKernelExC",
    }  # fmt: skip


def test_newer_gpus_get_ptx(library: Path) -> None:
    assert {*re.findall(r"^\.target (\w+)", cuobjdump("-ptx", library), re.M)} == {"sm_100"}


def plans(library: Path) -> dict[str, tuple[int, int]]:
    """Threads of a block and blocks of a multiprocessor that each kernel is planned for."""
    ptx = cuobjdump("-ptx", library)
    return {name: (int(threads), int(blocks)) for name, threads, blocks in _PLAN.findall(ptx)}


def test_nothing_is_spilled(kernels: list[Kernel]) -> None:
    spilled = {k.name: k.stack for k in kernels if k.stack or k.count("LDL", "STL")}
    assert spilled == {}


def test_all_but_exact_float32_runs_on_tensor_cores(kernels: list[Kernel]) -> None:
    assert any(kernel.convolves for kernel in kernels)
    for kernel in kernels:
        if not kernel.convolves:
            continue
        found = [name for name in kernel.instructions if name.startswith("HMMA")]
        if kernel.in_float32:
            assert not found and kernel.count("FFMA") > 0, kernel.name
        else:
            format = next(format for format in ENDINGS if format in kernel.name)
            assert found and all(name.endswith(ENDINGS[format]) for name in found), kernel.name


def test_images_move_sixteen_bytes_at_a_time(kernels: list[Kernel]) -> None:
    assert any(kernel.writes_images for kernel in kernels)
    for kernel in kernels:
        if not kernel.convolves:
            assert {w for w, _ in kernel.accesses("LDG")} == {16}, kernel.name
            continue
        copies = kernel.accesses("LDGSTS")
        assert copies and {width for width, _ in copies} == {16}, kernel.name
        if kernel.writes_images:
            stores = kernel.accesses("STG")
            assert stores and {width for width, _ in stores} == {16}, kernel.name
            loads = kernel.accesses("LDG")
            assert 16 in {width for width, _ in loads}  # residuals
            # Narrower ones are done once a block: the bias, and the weights in float32.
            assert sum(count for width, count in loads if width < 16) <= 8
        else:
            assert kernel.accesses("LDG") == []
            # Nothing but the partial sums, once a block: those that a thread has.
            assert 0 < sum(count for _, count in kernel.accesses("STG")) <= 144


def test_registers_allow_the_planned_occupancy(library: Path, kernels: list[Kernel]) -> None:
    """So does shared memory: test_cuda_traffic.py holds what launches ask for, the rest is 0."""
    planned = plans(library)
    for kernel in kernels:
        threads, blocks = planned[kernel.name]
        of_warp = -(-kernel.registers * 32 // 256) * 256
        assert of_warp * (threads // 32) * blocks <= REGISTERS, (kernel.name, kernel.registers)
        assert kernel.shared <= RESERVED, (kernel.name, kernel.shared)
