"""Writes the tables of measured choices, resnext_kernels/tuned/, from files of `bench --json`.

Records replace those of the same problem on the same hardware, and the others stay: the table's run
of a hardware tells the commit of the newest. Several files of one hardware make one run. A table is
written for each backend that the files have records of, beside those of "aten" in the same layout:
`make tuned` and `make gpu` measure both.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnext_kernels import tuning
from resnext_kernels.backends import BACKENDS, aten
from resnext_kernels.bench.runner import Record, Result
from resnext_kernels.bench.suites import DTYPES, SUITES, Layer
from resnext_kernels.problem import DIRECTIONS


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="files of `bench --json`")
    results = [json.loads(path.read_text()) for path in parser.parse_args(arguments).results]
    for backend in BACKENDS:
        runs = runs_of(results, backend)
        if backend != aten.NAME and runs:
            write(backend, runs)


def write(backend: str, new: Sequence[dict[str, Any]]) -> None:
    """Put new runs into the table of a backend, in place of records of the same problems."""
    path = tuning.FOLDER / f"{backend}.json"
    old = json.loads(path.read_text())["runs"] if path.exists() else []
    runs: dict[str, dict[str, Any]] = {}
    for run in [*old, *new]:
        before = runs.get(run["hardware"], {"records": []})["records"]
        known = {tuning.Measured.from_json(r).problem: r for r in [*before, *run["records"]]}
        runs[run["hardware"]] = run | {"records": list(known.values())}
    path.parent.mkdir(exist_ok=True)
    path.write_text(as_text(list(runs.values())))
    print(f"{path}: " + ", ".join(f"{len(r['records'])} on {name}" for name, r in runs.items()))


def runs_of(results: Sequence[Result], backend: str) -> list[dict[str, Any]]:
    """One run for each hardware among the results, with the backend's records."""
    runs: dict[str, dict[str, Any]] = {}
    for result in results:
        machine = result["machine"]
        about = {
            "processor": machine["processor"],
            "threads": machine["threads"],
            "torch": result["torch"],
            "commit": result["commit"],
        }
        for found in measured(result["records"], backend):
            name = tuning.hardware(machine["kernel_isa"], found.dtype)
            run = runs.setdefault(name, {"hardware": name, **about, "records": []})
            run["records"].append(found.to_json())
    return list(runs.values())


def measured(records: Sequence[Record], backend: str) -> list[tuning.Measured]:
    """The problems for which both the backend's time and ATen's in the same layout are known."""
    times: dict[tuple[str, str, str, str, str, int], dict[str, float]] = {}
    for r in records:
        key = (r["suite"], r["problem"], r["direction"], r["dtype"], r["layout"], r["batch"])
        if r["ms_median"] is not None:
            times.setdefault(key, {})[r["implementation"]] = r["ms_median"]
    found = []
    for (suite, name, direction, dtype, layout, batch), ms in times.items():
        if {backend, aten.NAME} <= ms.keys():
            problem = known_layer(suite, name).problem(
                batch, DTYPES[dtype], layout == "channels_last"
            )
            (known,) = (d for d in DIRECTIONS if d == direction)
            found.append(tuning.Measured.of(problem, known, ms[backend], ms[aten.NAME]))
    return found


def known_layer(suite: str, name: str) -> Layer:
    """A layer of `SUITES` by its name in a record; ValueError where there is none."""
    for layer in SUITES.get(suite, ()):
        if str(layer) == name:
            return layer
    known = ", ".join(SUITES)
    raise ValueError(f"{name!r} of suite {suite!r}: expected a layer of {known}")


def as_text(runs: Sequence[dict[str, Any]]) -> str:
    """JSON with a line for each record, so that a new measurement makes a readable diff."""
    texts = []
    for run in runs:
        head = json.dumps({name: run[name] for name in run if name != "records"})
        lines = ",\n".join("  " + json.dumps(record) for record in run["records"])
        texts.append(f'{head[:-1]}, "records": [\n{lines}\n]}}')
    return '{"runs": [\n' + ",\n".join(texts) + "\n]}\n"


if __name__ == "__main__":
    main()
