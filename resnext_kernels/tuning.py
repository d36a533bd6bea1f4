"""Recorded measurements: for which problems ATen is faster than this package's kernels.

`tuned/BACKEND.json` holds ``{"runs": [...]}``, one run for each kind of hardware, with the
processor and the number of threads that it was measured with and one record for each problem,
direction, dtype and layout: the milliseconds of the backend and of ATen on images in the same
layout. The user's own measurements come before them, see
`user_table`. `compare` takes the nearest record; where none is near, a rule that prefers ATen
wherever it is known to be good.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from . import user_table
from .measured import DAMAGE, Measured, runs_from_json
from .problem import ConvProblem, Direction

FOLDER = Path(__file__).parent / "tuned"
_FARTHEST = 3.0
_ONEDNN_WIDTH = 16
_BANDWIDTH_BOUND = 64  # channels of a group
_NO_FAST_BFLOAT16 = ("avx2", "portable")  # instruction sets on which oneDNN refuses bfloat16


@dataclass(frozen=True)
class Comparison:
    """Whether ATen serves a call faster, and what tells so.

    ``ours`` and ``aten`` are the times to be expected in milliseconds: those of the nearest record
    in proportion to the operations. None without a record.
    """

    aten_is_faster: bool
    reason: str
    ours: float | None = None
    aten: float | None = None


def compare(backend: str, isa: str, problem: ConvProblem, direction: Direction) -> Comparison:
    """Compare ``backend`` on the instruction set ``isa`` with ATen for one direction."""
    wanted = Measured.of(problem, direction)
    name = hardware(isa, wanted.dtype)
    known = records(backend, name, problem.device)
    found = nearest(wanted, known) if problem.dilation == (1, 1) else None
    if found is None:
        rule = _rule if problem.device == "cpu" else _gpu_rule
        return rule(backend, isa, problem)
    aten_is_faster = found.aten < found.ours
    names = ("aten", backend) if aten_is_faster else (backend, "aten")
    low, high = sorted((found.ours, found.aten))
    own = found in user_table.load(backend, problem.device).runs.get(name, ())
    where = "by tune" if own else f"({_shipped(backend, name).machine})"
    reason = f"{names[0]} measured faster {where}: {low:.3g} ms against {high:.3g} ms for {found}"
    scale = wanted.operations / found.operations
    return Comparison(aten_is_faster, reason, scale * found.ours, scale * found.aten)


def nearest(wanted: Measured, known: Sequence[Measured]) -> Measured | None:
    """The record most like ``wanted`` among those of its kind; None where all are too far."""
    alike = [record for record in known if record.kind == wanted.kind]
    found = min(alike, key=wanted.distance, default=None)
    return found if found and wanted.distance(found) <= _FARTHEST else None


def hardware(isa: str, dtype: str) -> str:
    """Under which name the times of ``dtype`` are kept: float32 needs no bfloat16 instructions."""
    return "avx512" if isa == "avx512_bf16" and dtype == "float32" else isa


def _rule(backend: str, isa: str, problem: ConvProblem) -> Comparison:
    """Without a measurement nearby: channels_last groups of 2 to 15 channels are ours.

    oneDNN fills a vector register of 16 floats with the channels of one group, or, where each
    group is one channel, with those of 16 groups. It has no such way for narrow groups, and
    computes mostly zeros there. Contiguous images would cost us two conversions. In bfloat16 torch
    leaves oneDNN where there is no AVX-512, for loops that are many times slower than ours.
    """
    if problem.dtype == torch.bfloat16 and isa in _NO_FAST_BFLOAT16:
        reason = f"nothing like it measured on {isa}: torch has no fast bfloat16 there"
        return Comparison(False, reason)
    wide = max(problem.in_width, problem.out_width)
    ours = problem.channels_last and 2 <= wide < _ONEDNN_WIDTH
    layout = "channels_last" if problem.channels_last else "contiguous"
    reason = (
        f"nothing like it measured on {isa}: groups of 2 to {_ONEDNN_WIDTH - 1} channels in "
        f"channels_last go to {backend}, others to aten; these have {wide} in {layout}"
    )
    return Comparison(not ours, reason)


def _gpu_rule(backend: str, isa: str, problem: ConvProblem) -> Comparison:
    """Without a measurement nearby: half precision 3x3 groups of 2 to 64 channels are ours.

    Such a layer does at most 4.5 * 64 = 288 FLOP a byte (2 * 9 * width for each output element,
    which takes an element read and one written), fewer than GPUs with tensor cores need to be
    bound by arithmetic: one pass over the images beats whatever moves more. Wider groups are the
    dense convolutions that cuDNN is good at. Contiguous images would cost us two conversions.
    """
    wide = max(problem.in_width, problem.out_width)
    ours = (
        problem.channels_last
        and problem.kernel == (3, 3)
        and problem.dtype.itemsize == 2
        and 2 <= wide <= _BANDWIDTH_BOUND
    )
    height, width = problem.kernel
    layout = "channels_last" if problem.channels_last else "contiguous"
    reason = (
        f"nothing like it measured on {isa}: 3x3 groups of 2 to {_BANDWIDTH_BOUND} channels in "
        f"half precision and channels_last go to {backend}, others to aten; these are "
        f"{height}x{width} groups of {wide} in {problem.dtype} and {layout}"
    )
    return Comparison(not ours, reason)


def records(backend: str, hardware: str, device: str = "cpu") -> tuple[Measured, ...]:
    """The records of ``backend`` on ``hardware``: the user's own, then the shipped ones.

    Equally near ones are taken in that order. Not kept: the user's own come and go with the number
    of threads.
    """
    own = user_table.load(backend, device).runs.get(hardware, ())
    return own + _shipped(backend, hardware).records


class Run(NamedTuple):
    """The records of a shipped table for one hardware, and what they were measured on."""

    records: tuple[Measured, ...] = ()
    machine: str = ""


@functools.lru_cache(maxsize=64)
def _shipped(backend: str, hardware: str) -> Run:
    path = FOLDER / f"{backend}.json"
    try:
        return read(path).get(hardware, Run())
    except (OSError, *DAMAGE) as error:
        warnings.warn(f"{path} is ignored: {type(error).__name__}: {error}", stacklevel=2)
        return Run()


def read(path: Path) -> dict[str, Run]:
    """The runs of a shipped table by hardware; OSError or one of `DAMAGE` otherwise."""
    runs = json.loads(path.read_text())["runs"]
    records = runs_from_json(runs)
    machines = {run["hardware"]: f"{run['processor']}, {run['threads']} threads" for run in runs}
    return {name: Run(records[name], machine) for name, machine in machines.items()}
