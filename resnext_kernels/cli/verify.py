"""``verify``: every backend of this very machine against the float64 reference."""

from __future__ import annotations

import argparse
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .. import machine
from ..backends import aten
from ..bench.report import aligned
from ..dispatch import DISABLE
from ..problem import dtype_name
from ..verification import checks, numerics, trials
from ..verification.checks import Check, Outcome, Tally, Target
from .console import ProgressLine, UserError, show

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
        description="Checks every backend that this machine can run: output, every fused epilogue, "
        "and the gradients by input, weight and bias of a few hundred problems in three "
        "precisions, against a float64 reference; of Triton, which compiles a kernel for nearly "
        "each, a few dozen of them. Exits with 1 where a result was wrong; an interrupt shows what "
        "is done.",
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
    left: int = 0  # checks that an interrupt kept from being done

    def add(self, target: Target, check: Check, outcome: Outcome) -> None:
        self.tallies[target.name, check.kind, dtype_name(check.dtype)].add(outcome)
        if outcome.missed:
            self.misses[f"{target.name}/{check.name}"] = outcome.missed


def run(args: argparse.Namespace) -> int:
    backend, _, part = args.only.removesuffix("/").partition("/")
    known = checks.targets()
    targets = [t for t in known if backend in ("", t.name) and not t.reason_against]
    absent = {t.name: t.reason_against for t in known if t.reason_against}
    selected = {
        t: [c for c in checks.checks_of(t.backend) if f"{c.name}/".startswith(part and f"{part}/")]
        for t in targets
    }
    if not any(selected.values()):
        expected = f"expected a name such as {known[-1].name} or {known[-1].name}/dgrad/bfloat16/0"
        raise UserError(f"--only {args.only}: {absent.get(backend, expected)}")
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    names = ", ".join(target.name for target in targets)
    show(f"{machine.processor()}: {names}; --seed {seed} repeats this run\n")
    findings = _check(selected, seed)
    notes = [*_refusals(findings), *_samples(targets), *_absences(absent)]
    if findings.left:
        notes.append(f"interrupted: the last {findings.left} checks did not run")
    show(_table(findings), "", *notes, "", *_misses(findings, targets, seed))
    if findings.left:
        return 130  # as shells have it
    return 1 if findings.misses else 0


def _check(selected: Mapping[Target, Sequence[Check]], seed: int) -> _Findings:
    """Run each target's checks; targets on one device are given the same operands.

    A KeyboardInterrupt ends it with the checks that are done, if there are any.
    """
    findings = _Findings()
    wanted: dict[Check, dict[str, list[Target]]] = {}  # by device
    for target, of_target in selected.items():
        for check in of_target:
            wanted.setdefault(check, {}).setdefault(target.device, []).append(target)
    progress = ProgressLine(len(wanted), _STEPS_A_LINE)
    findings.left = len(wanted)
    try:
        with numerics.strict():
            for check, devices in wanted.items():
                progress.step(f"{check.name}: {check.problem}")
                for device, there in devices.items():
                    outcomes = trials.run(check, device, [t.backend for t in there], seed)
                    for target in there:
                        findings.add(target, check, outcomes[target.backend])
                findings.left -= 1
    except KeyboardInterrupt:
        if not findings.tallies:
            raise
    return findings


def _table(findings: _Findings) -> str:
    tolerances = {dtype_name(d): v for d, v in numerics.TOLERANCES.items()}
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


def _samples(targets: Sequence[Target]) -> list[str]:
    """Of which targets there are fewer checks than of the others."""
    every = len(checks.all_checks())
    counts = {t.name: len(checks.checks_of(t.backend)) for t in targets}
    return [
        f"{name} has {count} of the {every} checks: it compiles a kernel for each"
        for name, count in counts.items()
        if count < every
    ]


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
