"""`benchmarks/update_tuned.py`: tables made from results of the benchmark."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tiny_suite import case, measured, result_of

from resnext_kernels import tuning
from resnext_kernels.bench import suites
from resnext_kernels.problem import DIRECTIONS
from resnext_kernels.tuning import Measured

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "update_tuned.py"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in place of the package's tables."""
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    return tmp_path


def update_tuned():
    spec = importlib.util.spec_from_file_location("update_tuned", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_is_made_from_results_of_the_benchmark(folder, monkeypatch):
    script = update_tuned()
    cases = {
        direction: dataclasses.replace(
            case(direction, layer=suites.SUITES["resnext50"][0]), suite="resnext50"
        )
        for direction in DIRECTIONS
    }
    paths = []
    for (direction, made), ms in zip(cases.items(), (1.0, 2.0, 3.0), strict=True):
        ours, aten = measured(made, {"cpu": ms, "aten": 4.0})
        turned = [
            dataclasses.replace(m, implementation=m.implementation.in_layout("contiguous"))
            for m in measured(made, {"cpu": 5.0, "aten": None if direction == "dgrad" else 6.0})
        ]
        result = result_of([ours, aten, *turned])
        result["machine"]["kernel_isa"] = "avx2" if direction == "wgrad" else "avx512_bf16"
        paths.append(folder / f"{direction}.txt")
        paths[-1].write_text(json.dumps(result))
    script.main([str(path) for path in paths])
    table = tuning.read(folder / "cpu.json")
    assert {name: len(found.records) for name, found in table.items()} == {"avx512": 3, "avx2": 2}
    times = {(r.direction, r.layout): (r.ours, r.aten) for r in table["avx512"].records}
    assert times == {
        ("fprop", "channels_last"): (1.0, 4.0),
        ("fprop", "contiguous"): (5.0, 6.0),
        ("dgrad", "channels_last"): (2.0, 4.0),
    }
    assert table["avx512"].records[0] == Measured.of(cases["fprop"].problem, "fprop", 1.0, 4.0)
    # Measured anew, one problem is replaced and the others stay.
    ours, aten = measured(cases["fprop"], {"cpu": 0.5, "aten": 4.5})
    result = result_of([ours, aten])
    result["machine"]["kernel_isa"] = "avx512_bf16"
    paths[0].write_text(json.dumps(result))
    script.main([str(paths[0])])
    table = tuning.read(folder / "cpu.json")
    assert {name: len(found.records) for name, found in table.items()} == {"avx512": 3, "avx2": 2}
    assert times | {("fprop", "channels_last"): (0.5, 4.5)} == {
        (r.direction, r.layout): (r.ours, r.aten) for r in table["avx512"].records
    }


def test_a_table_for_every_backend_that_was_measured(folder):
    made = dataclasses.replace(
        case("dgrad", torch.bfloat16, 64, suites.SUITES["resnext50"][0]),
        suite="resnext50", device="cuda",
    )  # fmt: skip
    result = result_of(measured(made, {"cuda": 1.0, "aten": 4.0, "auto": 1.0}))
    result["machine"]["kernel_isa"] = "sm_90 a GPU"
    path = folder / "result.txt"
    path.write_text(json.dumps(result))
    update_tuned().main([str(path)])
    assert [p.name for p in folder.glob("*.json")] == ["cuda.json"]
    (record,) = tuning.read(folder / "cuda.json")["sm_90 a GPU"].records
    assert record == Measured.of(made.problem, "dgrad", 1.0, 4.0)
