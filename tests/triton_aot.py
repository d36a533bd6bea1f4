"""Compiles the Triton kernels for GPUs that need not be there, as a call would, and reads them.

Run as a script, because a process interprets kernels or compiles them, but not both: reads problems
as JSON from the standard input and prints what `report` returns for each, as JSON lines.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from resnext_kernels.backends.triton.kernels import configs, conv, device, wgrad
from resnext_kernels.backends.triton.kernels.dgrad import plan as dgrad_plan
from resnext_kernels.backends.triton.kernels.fprop import plan as fprop_plan
from resnext_kernels.backends.triton.kernels.launch import Launch
from resnext_kernels.backends.triton.kernels.tensors import filters, readable
from resnext_kernels.backends.triton.kernels.wgrad import Plan as WgradPlan
from resnext_kernels.problem import ConvProblem

TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
# Of PTX: the name, and of an asynchronous copy its bytes.
INSTRUCTION = re.compile(
    r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)(?=[\s;])(?:.*\], 0x([0-9a-f]+))?", re.M
)


def launches(problem: ConvProblem, direction: str, epilogue: bool, precision: str):
    """The (launch, tensors) that a direction of a problem makes, on tensors of its layout."""

    def like(shape):
        empty = torch.empty(shape, dtype=problem.dtype, device="meta")
        return readable(empty.contiguous(memory_format=problem.memory_format))

    input, weight, out = map(
        like, (problem.input_shape, problem.weight_shape, problem.output_shape)
    )
    if direction == "fprop":
        extra = (like((1, problem.out_channels, 1, 1))[0, :, 0, 0], like(problem.output_shape))
        tensors = (input, filters(weight), *(extra if epilogue else (None, None)), out)
        return [(fprop_plan(problem, epilogue, precision, *tensors), tensors)]
    if direction == "dgrad":
        tensors = (out, filters(weight), None, None, input)
        return [(dgrad_plan(problem, precision, *tensors), tensors)]
    plan = WgradPlan(problem, precision, out, input, weight)
    partial = torch.empty(plan.shape, device="meta") if plan.splits > 1 else weight
    return [(plan.sum, (out, input, partial)), (plan.add, (partial, weight))][: min(plan.splits, 2)]


def compile_launch(launch: Launch, tensors, capability: int):
    """The binary that Triton would compile at this launch, all tensors aligned to 16 bytes."""
    kernel = launch.kernel
    signature, constants, attributes = {}, {}, {}
    for index, (parameter, value) in enumerate(
        zip(kernel.params, (*tensors, *launch.arguments), strict=True)
    ):
        fixed = parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1)
        if fixed:
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        if isinstance(value, torch.Tensor) or value % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)


def read(binary) -> dict:
    """Registers, stack and shared memory of a binary, and the counted instructions of its PTX.

    ptxas takes accesses and matrix instructions as they stand there, and takes to the stack what it
    spills; disassembling would take as long as compiling.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    instructions = Counter(
        f"{name} {int(size, 16)}" if name.startswith("cp.async") and size else name
        for name, size in INSTRUCTION.findall(binary.asm["ptx"])
    )
    return {
        "registers": int(usage["REG"]), "stack": int(usage["STACK"]), "local": int(usage["LOCAL"]),
        "shared": binary.metadata.shared, "warps": binary.metadata.num_warps,
        "instructions": instructions,
    }  # fmt: skip


def report(problem, direction: str, capability: int, precision: str, epilogue=False) -> dict:
    """What the first launch of a direction compiles to, by which configuration, and all grids."""
    taken = []

    def configuration(name, kernel, *rest):
        name = name if configs.load().get(name, {}).get(f"{kernel} {rest[0]} {rest[1]}") else None
        taken.append((name or "default", f"{kernel} {rest[0]} {rest[1]}"))
        config = configs.configuration(name or "default", kernel, *rest)
        taken.append(config.resident)
        return config

    with (
        mock.patch.object(device, "name", lambda tensor: f"sm_{capability}"),
        mock.patch.object(device, "multiprocessors", lambda tensor: 132),
        mock.patch.object(conv, "configuration", configuration),
        mock.patch.object(wgrad, "configuration", configuration),
    ):
        made = launches(problem, direction, epilogue, precision)
    compiled = [compile_launch(launch, tensors, capability) for launch, tensors in made]
    return read(compiled[0]) | {
        "kernel": made[0][0].kernel.__name__,
        "grids": [launch.grid[0] for launch, _ in made],
        "configuration": taken[0],
        "resident": taken[1],
    }


def parse(fields: dict) -> ConvProblem:
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return ConvProblem(**values | {"dtype": getattr(torch, fields["dtype"])})


if __name__ == "__main__":
    for line in sys.stdin:
        case = json.loads(line)
        print(json.dumps(report(parse(case.pop("problem")), **case)), flush=True)
