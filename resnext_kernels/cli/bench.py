"""``bench``: the kernel microbenchmarks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ..bench import plot, runner
from ..bench.implementations import DEFAULT_OURS, DEFAULT_PEERS, LAYOUTS, OURS, PEERS
from ..bench.report import red, report
from ..bench.suites import DTYPES, SUITES, cases_of
from ..problem import DIRECTIONS
from .console import Progress, UserError, output_path, positive, require

# What is measured where nothing else is asked for.
_DTYPES = {"cpu": list(DTYPES), "cuda": ["bfloat16"]}
_BATCHES = {"cpu": [1, 8], "cuda": [64, 256]}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure the kernels against their peers",
        description="Measures every layer of a suite, parity first, interleaved with its peers. "
        "Exits with 1 where a result was wrong, or after an interrupt, which keeps what is done.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--suite", choices=SUITES, default="resnext50", help="whose layers")
    parser.add_argument("--device", choices=_BATCHES, default="cpu", help="where to run")
    parser.add_argument(
        "--direction", nargs="+", choices=DIRECTIONS, default=list(DIRECTIONS), help="which passes"
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        default=argparse.SUPPRESS,
        help=f"which precisions (default: {_by_device(_DTYPES)})",
    )
    parser.add_argument(
        "--batch",
        nargs="+",
        type=positive,
        metavar="N",
        default=argparse.SUPPRESS,
        help=f"images in a batch (default: {_by_device(_BATCHES)})",
    )
    parser.add_argument(
        "--layout", nargs="+", choices=LAYOUTS, default=["channels_last"],
        help="memory formats of the images that the kernels get",
    )  # fmt: skip
    parser.add_argument(
        "--backend", nargs="+", choices=OURS, default=list(DEFAULT_OURS),
        help="what to measure of this package",
    )  # fmt: skip
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=(*PEERS, "all"),
        default=list(DEFAULT_PEERS),
        help="what to compare with",
    )
    parser.add_argument("--json", type=output_path, metavar="FILE", help="write the records there")
    parser.add_argument("--plot", type=output_path, metavar="FILE", help="write a PNG there")
    parser.set_defaults(run=run)


def _by_device(values: dict[str, list[str]] | dict[str, list[int]]) -> str:
    return ", ".join(f"{' '.join(map(str, v))} on {device}" for device, v in values.items())


def run(args: argparse.Namespace) -> int:
    if args.plot:
        require_matplotlib("--plot")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device")
    dtypes = [DTYPES[name] for name in vars(args).get("dtype", _DTYPES[args.device])]
    batches = vars(args).get("batch", _BATCHES[args.device])
    cases = cases_of(args.suite, args.direction, dtypes, batches, args.device)
    peers = list(PEERS) if "all" in args.peers else args.peers
    result = runner.run(
        cases, peers, ours=args.backend, layouts=args.layout, progress=Progress(len(cases))
    )
    return deliver(result, args.json, args.plot)


def require_matplotlib(purpose: str) -> None:
    """Raise `UserError` before any work is done where the plot could not be drawn."""
    require("matplotlib", "matplotlib", "bench", purpose)


def deliver(result: runner.Result, json_path: Path | None, plot_path: Path | None) -> int:
    """Print the tables, write the files asked for, and return the exit code."""
    print(report(result))
    if json_path:
        json_path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        print(f"\nrecords: {json_path}")
    if plot_path:
        try:
            plot.plot(result, plot_path)
            print(f"plot: {plot_path}")
        except ValueError as error:
            print(f"no plot: {error}")
    return 1 if red(result["records"]) or runner.INTERRUPTED in result["skipped"] else 0
