"""``bench``: the microbenchmarks of the kernels, and of whole models."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from ..bench import compare, custom, plot, recorded, runner, whole_model
from ..bench.failures import reason_of
from ..bench.implementations import DEFAULT_OURS, DEFAULT_PEERS, LAYOUTS, OURS, PEERS
from ..bench.report import report
from ..bench.suites import DTYPES, SUITES, WHOLE_MODELS, Case, cases_of, cases_of_layers
from ..dispatch import AUTO
from ..problem import DIRECTIONS
from .console import Progress, ProgressLine, UserError, output_path, positive, require, show

_SUITE = "resnext50"
# What is measured where nothing else is asked for.
_DTYPES = {"cpu": list(DTYPES), "cuda": ["bfloat16"]}
_BATCHES = {"cpu": [1, 8], "cuda": [64, 256]}
_OF_LAYERS: dict[str, list[str]] = {
    "direction": list(DIRECTIONS),
    "layout": ["channels_last"],
    "backend": list(DEFAULT_OURS),
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure the kernels against their peers",
        description="Measures every layer of a suite, parity first, interleaved with its peers; "
        f"with --suite {WHOLE_MODELS} whole models. "
        "Exits with 1 where a result was wrong or something failed, or after an interrupt, which "
        "keeps what is done.",
    )
    parser.add_argument(
        "--suite", type=_suite,
        help=f"whose layers: {', '.join(SUITES)}, {WHOLE_MODELS} (whole models) or a JSON file "
        f"that lists layers (default: {_SUITE})",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="timm:NAME|torchvision:NAME|FILE.py:FUNCTION",
        help="the layers of this model instead; FUNCTION returns a module, or a module and an "
        "example of its input. With --suite model: NAME of resnext_kernels.models",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=_BATCHES, default="cpu", help="where to run (default: cpu)"
    )
    _add_choice(parser, "direction", DIRECTIONS, "which passes")
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES,
        help=f"which precisions (default: {_by_device(_DTYPES)})",
    )  # fmt: skip
    parser.add_argument(
        "--batch", nargs="+", type=positive, metavar="N",
        help=f"images in a batch (default: {_by_device(_BATCHES)})",
    )  # fmt: skip
    _add_choice(parser, "layout", LAYOUTS, "memory formats of the images that the kernels get")
    _add_choice(parser, "backend", OURS, "what to measure of this package")
    parser.add_argument(
        "--peers", nargs="*", metavar="PEER",
        help=f"what to compare with: some of {', '.join(PEERS)} (default: {_join(DEFAULT_PEERS)}); "
        f"with --suite {WHOLE_MODELS} of {', '.join(whole_model.PEERS)} "
        "(default: all); or all",
    )  # fmt: skip
    parser.add_argument("--json", type=output_path, metavar="FILE", help="write the records there")
    parser.add_argument(
        "--plot", type=_picture, metavar="FILE",
        help=f"draw a picture there, as its suffix says: {', '.join(plot.SUFFIXES)}",
    )  # fmt: skip
    parser.add_argument(
        "--compare", type=Path, metavar="OLD.json",
        help="show this run beside an earlier one, written by --json",
    )  # fmt: skip
    parser.set_defaults(run=run)


def _add_choice(
    parser: argparse.ArgumentParser, name: str, choices: Iterable[str], meaning: str
) -> None:
    default = _OF_LAYERS[name]
    parser.add_argument(
        f"--{name}", nargs="+", choices=list(choices), default=default,
        help=f"{meaning} (default: {_join(default)})",
    )  # fmt: skip


def _suite(text: str) -> str:
    """An argument type: the name of a suite or of a JSON file."""
    if text not in SUITES and text != WHOLE_MODELS and not text.endswith(".json"):
        known = ", ".join((*SUITES, WHOLE_MODELS))
        raise argparse.ArgumentTypeError(f"{text!r}: expected one of {known}, or a file NAME.json")
    return text


def _picture(text: str) -> Path:
    """An argument type: a file to be drawn."""
    path = output_path(text)
    if path.suffix not in plot.SUFFIXES:
        expected = ", ".join(plot.SUFFIXES)
        raise argparse.ArgumentTypeError(f"{text}: expected a name that ends in one of {expected}")
    return path


def _join(values: Iterable[object]) -> str:
    return " ".join(map(str, values))


def _by_device(values: dict[str, list[str]] | dict[str, list[int]]) -> str:
    return ", ".join(f"{_join(v)} on {device}" for device, v in values.items())


def run(args: argparse.Namespace) -> int:
    if args.plot:
        require_matplotlib("--plot")
        if AUTO not in args.backend:
            raise UserError(f"--plot draws {AUTO!r}, expected among --backend")
    _check_files(args)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device")
    earlier = _read_earlier(args.compare)
    args.dtype = [DTYPES[name] for name in dict.fromkeys(args.dtype or _DTYPES[args.device])]
    args.batch = list(dict.fromkeys(args.batch or _BATCHES[args.device]))
    measure = _run_models if args.suite == WHOLE_MODELS else _run_layers
    return deliver(measure(args), args.json, args.plot, earlier)


def _check_files(args: argparse.Namespace) -> None:
    """Raise `UserError` where one file would be written over another."""
    suite = args.suite if args.suite and args.suite.endswith(".json") else None
    options: dict[Path, str] = {}
    for option, path in (("--suite", suite), ("--json", args.json), ("--plot", args.plot)):
        if path is not None:
            other = options.setdefault(Path(path).resolve(), option)
            if other != option:
                raise UserError(f"{option} {path}: expected another file than that of {other}")


def _read_earlier(path: Path | None) -> runner.Result | None:
    try:
        return compare.read(path) if path else None
    except compare.ComparisonError as error:
        raise UserError(f"--compare {error}") from error


def _run_layers(args: argparse.Namespace) -> runner.Result:
    peers = _peers(args.peers, PEERS, DEFAULT_PEERS)
    cases = _cases(args)
    return runner.run(
        cases,
        peers,
        ours=args.backend,
        layouts=list(dict.fromkeys(args.layout)),
        progress=Progress(len(cases)),
    )


def _cases(args: argparse.Namespace) -> list[Case]:
    """Of a suite of the registry, of a file, or of a model."""
    if args.model is not None and args.suite:
        raise UserError(f"--model goes without --suite, or with --suite {WHOLE_MODELS}")
    combined = (args.direction, args.dtype, args.batch, args.device)
    suite = args.suite or _SUITE
    try:
        if args.model is not None:
            return cases_of_layers(args.model, recorded.layers_of(args.model), *combined)
        if suite not in SUITES:
            layers = custom.read_suite(Path(suite))
            return cases_of_layers(Path(suite).name, layers, *combined)
    except recorded.ModelError as error:
        raise UserError(f"--model {error}") from error
    except custom.SuiteError as error:
        raise UserError(f"--suite {error}") from error
    return cases_of(suite, *combined)


def _run_models(args: argparse.Namespace) -> runner.Result:
    for name, usual in _OF_LAYERS.items():
        if getattr(args, name) != usual:
            raise UserError(f"--{name} is for layers: --suite {WHOLE_MODELS} measures inference")
    peers = _peers(args.peers, whole_model.PEERS, list(whole_model.PEERS))
    models = whole_model.MODELS if args.model is None else [args.model]
    chosen = (models, args.dtype, args.batch, peers)
    progress = ProgressLine(whole_model.steps(*chosen)).step
    try:
        return whole_model.run(*chosen, device=args.device, progress=progress)
    except ValueError as error:
        option = f"--suite {WHOLE_MODELS}" if args.model is None else f"--model {args.model}"
        raise UserError(f"{option}: {error}") from error


def _peers(named: Sequence[str] | None, known: Iterable[str], usual: Sequence[str]) -> list[str]:
    """Those named, without repetition; all or the usual ones where that is asked for."""
    for name in named or ():
        if name not in (*known, "all"):
            expected = ", ".join((*known, "all"))
            raise UserError(f"--peers {name}: this suite knows {expected}")
    if named is None:
        return list(usual)
    return list(known) if "all" in named else list(dict.fromkeys(named))


def require_matplotlib(purpose: str) -> None:
    """Raise `UserError` before any work is done where the plot could not be drawn."""
    require("matplotlib", "matplotlib", "bench", purpose)


def deliver(
    result: runner.Result,
    json_path: Path | None,
    plot_path: Path | None,
    earlier: runner.Result | None = None,
) -> int:
    """Write the records, print the tables, draw the plot, as asked for; return the exit code."""
    # First what was measured for, in case that nobody reads what is printed to its end.
    unwritten = _written(json_path, result) if json_path else ""
    files = [unwritten or f"records: {json_path}"] if json_path else []
    if plot_path:
        try:
            plot.plot(result, plot_path)
            files.append(f"plot: {plot_path}")
        except Exception as error:  # matplotlib may raise anything
            unwritten = f"no plot: {reason_of(error)}"
            files.append(unwritten)
    show(report(result))
    if earlier:
        show("", compare.comparison(earlier, result))
    if files:
        show("", *files)
    missing = any(record["parity"] != "green" for record in result["records"])
    return 1 if unwritten or missing or runner.INTERRUPTED in result["skipped"] else 0


def _written(path: Path, result: runner.Result) -> str:
    """Write the records; what kept them from being written, a full disk say, is returned."""
    try:
        path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        return f"no records: {error}"
    return ""
