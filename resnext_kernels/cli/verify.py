"""``verify``: every backend of this very machine against the float64 reference."""

from __future__ import annotations

import argparse
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..backends import aten
from ..bench import machine
from ..bench.report import aligned
from ..dispatch import DISABLE
from ..verification import checks, numerics
from ..verification.checks import Check, Tally, Target
from .console import ProgressLine, UserError

_HEADERS = (
    "backend", "direction", "dtype", "checks", "passed", "refused", "missed", "largest error",
    "tolerance",
)  # fmt: skip
_COMMAND = "python -m resnext_kernels verify"
_MISSES_SHOWN = 5
_STEPS_A_LINE = 250  # of progress where it is no terminal


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "verify",
        help="check every backend on this machine",
        description="Checks every backend that this machine can run: output, fused epilogue, "
        "input gradient and weight gradient of a few hundred problems in three precisions, against "
        "a float64 reference. Exits with 1 where a result was wrong.",
    )
    parser.add_argument(
        "--seed", type=int, help="of the operands, to repeat a run (default: a new one each time)"
    )
    parser.add_argument(
        "--only", default="", metavar="BACKEND[/DIRECTION[/DTYPE[/NUMBER]]]",
        help="a part of the checks, as cpu/dgrad or cpu/dgrad/bfloat16/131 (default: all)",
    )  # fmt: skip
    parser.set_defaults(run=run)


@dataclass
class _Findings:
    """What came of the checks: tallies of the rows of the table, and every miss by its name."""

    tallies: defaultdict[tuple[str, str, str], Tally] = field(
        default_factory=lambda: defaultdict(Tally)
    )
    misses: dict[str, str] = field(default_factory=dict)


def run(args: argparse.Namespace) -> int:
    backend, _, part = args.only.partition("/")
    known = checks.targets()
    targets = [t for t in known if backend in ("", t.name) and not t.reason_against]
    absent = {t.name: t.reason_against for t in known if t.reason_against}
    selected = [c for c in checks.all_checks() if not part or f"{c.name}/".startswith(f"{part}/")]
    if not targets or not selected:
        expected = f"expected a name such as {known[-1].name} or {known[-1].name}/dgrad/bfloat16/0"
        raise UserError(f"--only {args.only}: {absent.get(backend, expected)}")
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    names = ", ".join(target.name for target in targets)
    print(f"{machine.processor()}: {names}; --seed {seed} repeats this run\n", flush=True)
    findings = _check(selected, targets, seed)
    notes = [*_refusals(findings), *_absences(absent)]
    print("\n".join([_table(findings), "", *notes, "", *_misses(findings, targets, seed)]))
    return 1 if findings.misses else 0


def _check(selected: Sequence[Check], targets: Sequence[Target], seed: int) -> _Findings:
    """Run the checks on all targets; those on one device are given the same operands."""
    findings = _Findings()
    devices = {
        target.device: [t for t in targets if t.device == target.device] for target in targets
    }
    progress = ProgressLine(len(selected), _STEPS_A_LINE)
    with numerics.strict():
        for check in selected:
            progress.step(f"{check.name}: {check.problem}")
            for device, there in devices.items():
                outcomes = checks.run(check, device, [t.backend for t in there], seed)
                for target in there:
                    outcome = outcomes[target.backend]
                    findings.tallies[target.name, check.kind, check.dtype_name].add(outcome)
                    if outcome.missed:
                        findings.misses[f"{target.name}/{check.name}"] = outcome.missed
    return findings


def _table(findings: _Findings) -> str:
    tolerances = {str(d).removeprefix("torch."): v for d, v in numerics.TOLERANCES.items()}
    rows = [
        (
            *key,
            *map(str, (t.checks, t.passed, t.refused.total(), t.missed)),
            f"{t.worst:.1e}" if t.passed or t.missed else "-",
            f"{tolerances[key[-1]]:.0e}",
        )
        for key, t in sorted(findings.tallies.items(), key=lambda item: item[0][0])
    ]
    return aligned(_HEADERS, rows)


def _refusals(findings: _Findings) -> list[str]:
    """Why checks were refused, and how often."""
    reasons: Counter[tuple[str, str]] = Counter()
    for (name, _, _), tally in findings.tallies.items():
        reasons += Counter({(name, text): count for text, count in tally.refused.items()})
    return [f"refused by {name}, {n} times: {text}" for (name, text), n in reasons.most_common()]


def _absences(absent: dict[str, str]) -> list[str]:
    return [f"not checked: {name}: {reason}" for name, reason in absent.items()]


def _misses(findings: _Findings, targets: Sequence[Target], seed: int) -> list[str]:
    """The first misses, each with a line that repeats it; otherwise that there were none."""
    if not findings.misses:
        return ["No misses."]
    shown = list(findings.misses.items())[:_MISSES_SHOWN]
    lines = [f"{len(findings.misses)} MISSED, among them"]
    for name, text in shown:
        lines += [f"{name}: {text}", f"  to repeat: {_COMMAND} --seed {seed} --only {name}"]
    wrong = {name.split("/")[0] for name in findings.misses}
    able = [t.backend for t in targets if t.name in wrong and t.backend != aten.NAME]
    return lines + [f"To do without {name}: {DISABLE}={name}" for name in able]
