"""Suites of the user's own: a JSON file with a list of convolutions."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from ..problem import ConvProblem, Pair, ProblemError, as_int, as_pair
from .suites import ModelLayer

_REQUIRED = ("in_channels", "groups", "size")
_OPTIONAL = ("out_channels", "kernel", "stride", "padding", "dilation", "count")


class SuiteError(ValueError):
    """A file that is no suite; the text names it, the entry, the field, its value and why."""


def read_suite(path: Path) -> list[ModelLayer]:
    """The distinct convolutions that a file lists.

    The file holds a JSON list of objects with ``in_channels``, ``groups`` and ``size`` (of the
    input, in pixels), and where they are not the usual ones: ``out_channels`` (as many as in),
    ``kernel`` (3), ``stride`` (1), ``dilation`` (1), ``padding`` (what keeps the image's size at
    stride 1 under an odd kernel) and ``count`` (1), how often the model has it. All but channels,
    groups and count are an int or a pair ``[height, width]``.

    Raises:
        SuiteError: the file cannot be read, or holds anything else.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SuiteError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SuiteError(f"{path}: {error}; expected JSON") from error
    if not isinstance(entries, list) or not entries:
        found = "an empty list" if entries == [] else type(entries).__name__
        raise SuiteError(f"{path}: {found}, expected a list of objects")
    layers: Counter[ConvProblem] = Counter()
    for number, entry in enumerate(entries, 1):
        try:
            problem, count = _layer(entry)
        except ProblemError as error:
            raise SuiteError(f"{path}: entry {number}: {error}") from error
        layers[problem] += count
    return [ModelLayer(problem, count) for problem, count in layers.items()]


def _layer(entry: Any) -> tuple[ConvProblem, int]:
    """One entry; `ProblemError` naming the field, its value and what was expected."""
    if not isinstance(entry, dict):
        raise ProblemError(f"{entry!r}: expected an object")
    for name in entry.keys() - {*_REQUIRED, *_OPTIONAL}:
        known = ", ".join((*_REQUIRED, *_OPTIONAL))
        raise ProblemError(f"{name}={entry[name]!r}: unknown field, expected one of {known}")
    for name in _REQUIRED:
        if name not in entry:
            raise ProblemError(f"{name}: missing, expected in every entry")
    channels = _count("in_channels", entry["in_channels"])
    out_channels = _count("out_channels", entry.get("out_channels", channels))
    groups = _count("groups", entry["groups"])
    for name, value in (("in_channels", channels), ("out_channels", out_channels)):
        if value % groups:
            raise ProblemError(f"groups={groups}: expected a divisor of {name} ({value})")
    size = _pair("size", entry["size"], 1)
    kernel = _pair("kernel", entry.get("kernel", 3), 1)
    stride = _pair("stride", entry.get("stride", 1), 1)
    dilation = _pair("dilation", entry.get("dilation", 1), 1)
    same = [d * (k // 2) for d, k in zip(dilation, kernel, strict=True)]
    padding = _pair("padding", entry.get("padding", same), 0)
    problem = ConvProblem(
        1, channels, size, out_channels, kernel, stride, padding, dilation, groups,
        torch.float32, "cpu", False,
    )  # fmt: skip
    _fits(problem)
    return problem, _count("count", entry.get("count", 1))


def _count(name: str, value: Any) -> int:
    if as_int(name, value) < 1:
        raise ProblemError(f"{name}={value!r}: expected an int >= 1")
    return value


def _pair(name: str, value: Any, least: int) -> Pair:
    if isinstance(value, str):  # a sequence too
        raise ProblemError(f"{name}={value!r}: expected an int or a pair of ints")
    return as_pair(name, value, least)


def _fits(problem: ConvProblem) -> None:
    """Raise `ProblemError` where the kernel is larger than the padded image."""
    padded = tuple(s + 2 * p for s, p in zip(problem.in_size, problem.padding, strict=True))
    if min(problem.out_size) < 1:
        raise ProblemError(
            f"kernel={problem.kernel}: expected at most the padded input {padded} "
            f"at dilation {problem.dilation}"
        )
