"""A run beside an earlier one: which records became faster or slower."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from .implementations import label
from .report import aligned, number, title
from .runner import Record, Result
from .suites import WHOLE_MODELS

Key = tuple[str | int, ...]
_KEY = ("suite", "problem", "direction", "dtype", "layout", "batch", "implementation")
_TIMES = ("ms_median", "ms_p20", "ms_p80")
_PART_OF_RESULT = {"machine": dict, "torch": str, "peaks": dict, "records": list}
_HEADERS = ("problem", "direction", "implementation", "old ms", "new ms", "old/new", "")
_MEAN_HEADERS = ("implementation", "direction", "dtype", "records", "old/new", "lowest", "highest")


class ComparisonError(ValueError):
    """A file that is no result of ``bench --json``; the text names it and says why."""


def read(path: Path) -> Result:
    """An earlier run's result.

    Raises:
        ComparisonError: the file cannot be read, or what `comparison` reads of it is damaged.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        _expect("the whole", result, dict)
        for name, kind in _PART_OF_RESULT.items():
            _expect(name, result[name], kind)
        gflops = result["peaks"]["gflops"]
        _expect("gflops", gflops, dict)
        for value in (*gflops.values(), result["peaks"]["gbps"]):
            _expect("peaks", value, float, int)
        for record in result["records"]:
            _check_record(record)
    except KeyError as error:
        raise ComparisonError(f"{path}: no {error}; expected a file of bench --json") from error
    except OSError as error:
        raise ComparisonError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ComparisonError(f"{path}: {error}; expected a file of bench --json") from error
    return result


def _check_record(record: dict[str, Any]) -> None:
    hints = get_type_hints(Record)
    for name in _KEY:
        _expect(name, record[name], hints[name])
    _expect("parity", record["parity"], str)
    times = [record[name] for name in _TIMES]
    for name, value in zip(_TIMES, times, strict=True):
        _expect(name, value, float, int, type(None))
    if times != [None] * 3 and not all(value and 0 < value < math.inf for value in times):
        raise ValueError(f"{', '.join(_TIMES)} are {times}, expected three times or none")


def _expect(name: str, value: object, *kinds: type) -> None:
    if not isinstance(value, kinds) or isinstance(value, bool):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name} is {type(value).__name__}, expected {expected}")


def comparison(old: Result, new: Result) -> str:
    """What differs about the machine, a table for each precision and batch, and the means.

    "faster" and "slower" mark records whose ranges from the 20% to the 80% quantile do not overlap.
    """
    before = {_key(r): r for r in old["records"]}
    after = {_key(r): r for r in new["records"]}
    shared = [(before[key], record) for key, record in after.items() if key in before]
    parts = ["Comparison with the earlier run (old/new: above 1 is faster now)"]
    if differences := list(_differences(old, new)):
        parts[0] += "\n" + "\n".join(differences)
    for heading in dict.fromkeys(title(record) for _, record in shared):
        rows = [_row(a, b) for a, b in shared if title(b) == heading]
        parts.append(f"{heading}\n{aligned(_HEADERS, rows)}")
    if any(_ratio(*pair) for pair in shared):
        parts.append(f"Geometric means of old/new\n{_means(shared)}")
    notes = [_only("the earlier run", before.keys() - after.keys())]
    notes.append(_only("this run", after.keys() - before.keys()))
    return "\n\n".join([*parts, *filter(None, notes)])


def _key(record: Record) -> Key:
    values: Mapping[str, object] = record
    return tuple(values[name] for name in _KEY)  # type: ignore[misc]


def _differences(old: Result, new: Result) -> Iterable[str]:
    """A line for each fact about machine, torch, commit and peaks in which the runs differ."""
    for name, then, now in _facts(old, new):
        if then != now:
            yield f"  {name}: {then} -> {now}"


def _facts(old: Result, new: Result) -> Iterable[tuple[str, object, object]]:
    for name in dict.fromkeys((*old["machine"], *new["machine"])):
        yield name, old["machine"].get(name), new["machine"].get(name)
    yield "torch", old["torch"], new["torch"]
    yield "commit", old.get("commit"), new["commit"]
    then, now = old["peaks"], new["peaks"]
    for dtype, peak in now["gflops"].items():
        if dtype in then["gflops"]:
            yield f"peak of {dtype}, GFLOP/s", f"{then['gflops'][dtype]:.0f}", f"{peak:.0f}"
    yield "peak bandwidth, GB/s", f"{then['gbps']:.0f}", f"{now['gbps']:.0f}"


def _row(old: Record, new: Record) -> tuple[str, ...]:
    return (
        new["problem"],
        new["direction"],
        _name(new),
        number(old["ms_median"], ".3f"),
        number(new["ms_median"], ".3f"),
        number(_ratio(old, new), ".2f", "x"),
        _verdict(old, new),
    )


def _name(record: Record) -> str:
    """The implementation, with the layout where that is not the usual one."""
    name = record["implementation"]
    return name if record["suite"] == WHOLE_MODELS else label(name, record["layout"])


def _ratio(old: Record, new: Record) -> float | None:
    then, now = old["ms_median"], new["ms_median"]
    return then / now if then and now else None


def _verdict(old: Record, new: Record) -> str:
    """Whether the ranges of the times lie apart; which run has no time."""
    low, high = (old["ms_p20"], new["ms_p20"]), (old["ms_p80"], new["ms_p80"])
    if low[0] is None or high[0] is None or low[1] is None or high[1] is None:
        return new["parity"] if low[1] is None else f"was {old['parity']}"
    if high[1] < low[0]:
        return "faster"
    return "slower" if high[0] < low[1] else ""


def _means(shared: list[tuple[Record, Record]]) -> str:
    groups: dict[tuple[str, str, str], list[float]] = {}
    for old, new in shared:
        if ratio := _ratio(old, new):
            key = (_name(new), new["direction"], new["dtype"])
            groups.setdefault(key, []).append(ratio)
    rows = [
        (
            *key,
            str(len(ratios)),
            f"{math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}x",
            f"{min(ratios):.2f}x",
            f"{max(ratios):.2f}x",
        )
        for key, ratios in groups.items()
    ]
    return aligned(_MEAN_HEADERS, rows)


def _only(run: str, keys: Iterable[Key]) -> str:
    """How many records one run alone has, and of which suites and implementations."""
    found = list(keys)
    if not found:
        return ""
    suites = ", ".join(sorted({str(key[0]) for key in found}))
    names = ", ".join(sorted({str(key[-1]) for key in found}))
    return f"Only in {run}: {len(found)} of its records, of {suites}, by {names}"
