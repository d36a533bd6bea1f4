"""``tune``: measure on this machine what "auto" chooses by, for a model's own layers."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from .. import tuning, user_table
from ..backends import BACKENDS, aten
from ..bench import recorded, runner
from ..bench.implementations import LAYOUTS, OURS, reasons_against
from ..bench.report import aligned
from ..bench.runner import Measurement
from ..bench.suites import SUITES, Case, cases_of_layers
from ..bench.timing import keep_freed_memory
from ..measured import Measured
from ..problem import DIRECTIONS, dtype_name
from ..verification.numerics import TOLERANCES
from .console import Progress, UserError, positive, show

_SUITE = "resnext50"
_DTYPES = {dtype_name(dtype): dtype for dtype in TOLERANCES}
# What is measured where nothing else is asked for.
_USUAL_DTYPES = {"cpu": ["float32", "bfloat16"], "cuda": ["float16", "bfloat16"]}
_USUAL_BATCHES = {"cpu": [1, 8], "cuda": [64, 256]}
Found = dict[str, dict[str, list[Measured]]]  # by backend and hardware


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "tune",
        help="measure on this machine which backend is the fastest",
        description='Measures a model\'s grouped layers, for "auto" to choose by on this machine. '
        f"The table is written to the folder {user_table.FOLDER}, by default "
        "~/.cache/resnext_kernels. Exits with 1 where a result was wrong, or after an interrupt, "
        "which keeps what is done.",
    )
    parser.add_argument(
        "--model", metavar="timm:NAME|torchvision:NAME|FILE.py:FUNCTION",
        help="whose layers; FUNCTION returns a module, or a module and an example of its input "
        "(default: ResNeXt-50)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=_USUAL_DTYPES, help="where to run (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--dtype", nargs="+", choices=_DTYPES,
        help="which precisions (default: float32 bfloat16 on cpu, float16 bfloat16 on cuda)",
    )  # fmt: skip
    parser.add_argument(
        "--batch", nargs="+", type=positive, metavar="N",
        help="images in a batch (default: 1 8 on cpu, 64 256 on cuda)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device")
    folder = _writable_folder()
    cases = _cases(args, device)
    able = [case for case in cases if _backends(case)]
    if not able:
        raise UserError(f"nothing to measure: {_reasons(cases)}")
    measurements, left = _measure(able)
    found = records_of(measurements)
    # First what was measured for, in case that nobody reads what is printed.
    written, failure = _write(found, device)
    show(_table(found))
    if left:
        show(f"{runner.INTERRUPTED}: the last {left} of {len(able)} cases are not measured")
    red = [m for m in measurements if m.timing is None]
    for m in red:
        why = m.failure or f"error {m.error:.1e}"
        show(f"WRONG, not recorded: {m.implementation.label}, {m.case}: {why}")
    for path in written:
        show(f"written: {path}")
    if failure:
        raise UserError(f"cannot write to {folder}: {failure}")
    return 1 if red or left else 0


def _writable_folder() -> Path:
    """The folder of the tables, made sure of before minutes of measurements."""
    try:
        return user_table.writable_folder()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"no table can be written: {error}; {user_table.FOLDER} names another folder"
        ) from error


def _write(found: Found, device: str) -> tuple[list[Path], OSError | None]:
    """The tables that were written, and what kept the next one from it."""
    written: list[Path] = []
    try:
        for backend, runs in found.items():
            written.append(user_table.write(backend, device, runs))
    except OSError as error:
        return written, error
    return written, None


def _cases(args: argparse.Namespace, device: str) -> list[Case]:
    layers: Sequence = SUITES[_SUITE]
    if args.model is not None:
        try:
            layers = recorded.layers_of(args.model)
        except recorded.ModelError as error:
            raise UserError(f"--model {error}") from error
        dilated = [layer for layer in layers if layer.single.dilation != (1, 1)]
        layers = [layer for layer in layers if layer not in dilated]
        if dilated:
            show(f"{len(dilated)} dilated layers are left out: no times are kept for those")
        if not layers:
            raise UserError(f"--model {args.model}: no grouped convolutions but those")
    dtypes = [_DTYPES[name] for name in args.dtype or _USUAL_DTYPES[device]]
    batches = args.batch or _USUAL_BATCHES[device]
    return cases_of_layers(args.model or _SUITE, layers, DIRECTIONS, dtypes, batches, device)


def _backends(case: Case) -> list[str]:
    """Which backends beside ATen "auto" could take."""
    return [
        name
        for name, module in BACKENDS.items()
        if name != aten.NAME
        and not getattr(module, "INTERPRETED", False)
        and not reasons_against(name, case.problem, case.direction)
    ]


def _reasons(cases: Sequence[Case]) -> str:
    case = cases[0]
    return "; ".join(
        f"{name}: {', '.join(reasons_against(name, case.problem, case.direction))}"
        for name in BACKENDS
        if name != aten.NAME
    )


def _measure(cases: Sequence[Case]) -> tuple[list[Measurement], int]:
    """Every backend and ATen on every case, on images in both layouts.

    A KeyboardInterrupt ends it with the cases that are done, if there are any; the number is that
    of those left.
    """
    keep_freed_memory()
    progress = Progress(len(cases))
    measurements: list[Measurement] = []
    left = len(cases)
    try:
        for case in cases:
            implementations = [
                OURS[name].in_layout(layout)
                for layout in LAYOUTS
                for name in (*_backends(case), aten.NAME)
            ]
            done = runner.measure(case, implementations, runner.SECONDS[case.device])
            measurements += done
            left -= 1
            progress(done)
    except KeyboardInterrupt:
        if not measurements:
            raise
    return measurements, left


def records_of(measurements: Sequence[Measurement]) -> Found:
    """Each backend's time beside ATen's for the same case and layout, where both were right."""
    times = {
        (m.case, m.implementation.layout, m.implementation.name): m.timing for m in measurements
    }
    found: Found = defaultdict(lambda: defaultdict(list))
    for (case, layout, name), timing in times.items():
        other = times[case, layout, aten.NAME]
        if name == aten.NAME or timing is None or other is None:
            continue
        problem = replace(case.problem, channels_last=layout == "channels_last")
        record = Measured.of(problem, case.direction, timing.median, other.median)
        found[name][tuning.hardware(BACKENDS[name].isa(), record.dtype)].append(record)
    return found


def _table(found: Found) -> str:
    rows = [
        (name, str(record), record.direction, f"{record.ours:.3f}", f"{record.aten:.3f}",
         f"{record.aten / record.ours:.2f}x")
        for name, runs in found.items()
        for records in runs.values()
        for record in records
    ]  # fmt: skip
    return aligned(("backend", "problem", "direction", "ms", "aten ms", "speed-up"), rows)
