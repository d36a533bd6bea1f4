"""A run beside an earlier one: which records differ, and which files are no earlier run."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import pytest
from tiny_suite import LAYERS, case, measured, model_result, result_of, two_layers

from resnext_kernels.bench import compare

LAYER = str(LAYERS[0])


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def scaled(result, factor: float):
    found = copy.deepcopy(result)
    for record in found["records"]:
        for name in ("ms_median", "ms_p20", "ms_p80"):
            record[name] *= factor
    return found


def test_times_and_ratios_stand_side_by_side():
    """The ranges of these records reach from half to twice the median."""
    old = result_of(measured(case(), {"auto": 8.0, "torch:contiguous": 2.0}))
    new = result_of(measured(case(), {"auto": 1.0, "torch:contiguous": 3.0}))
    text = compare.comparison(old, new)
    tail = LAYER.split()
    assert [*tail, "fprop", "auto", "8.000", "1.000", "8.00x", "faster"] in rows(text)
    assert [*tail, "fprop", "torch:contiguous", "2.000", "3.000", "0.67x"] in rows(text)
    assert "slower" in compare.comparison(new, old) and "Only in" not in text
    assert "  peak" not in text and "->" not in text, "both are of one machine"


def test_means_are_geometric_over_implementation_direction_and_dtype():
    old = two_layers()
    new = copy.deepcopy(old)
    for record, factor in zip(new["records"], (2.0, 1.0, 0.125, 1.0), strict=True):
        record["ms_median"] *= factor
    found = rows(compare.comparison(old, new))
    assert ["auto", "fprop", "float32", "2", "2.00x", "0.50x", "8.00x"] in found
    assert ["torch:contiguous", "fprop", "float32", "2", "1.00x", "1.00x", "1.00x"] in found


def test_what_differs_about_the_machines_is_told():
    old = two_layers()
    new = copy.deepcopy(old)
    new["machine"] |= {"processor": "another", "threads": 3}
    new["torch"] = "9.9"
    new["peaks"]["gflops"]["float32"] = 50.0
    text = compare.comparison(old, new)
    for line in (
        "processor: a processor -> another", "threads: 2 -> 3", f"torch: {old['torch']} -> 9.9",
        "peak of float32, GFLOP/s: 100 -> 50",
    ):  # fmt: skip
        assert f"  {line}\n" in text
    assert "bandwidth" not in text and "bfloat16" not in text


def test_records_of_one_run_alone_are_counted():
    old, new = two_layers(), two_layers()
    old["records"] += result_of(measured(case("wgrad", batch=7), {"cpu": 1.0}))["records"]
    del new["records"][1]
    text = compare.comparison(old, new)
    assert "Only in the earlier run: 2 of its records, of tiny, by cpu, torch:contiguous" in text
    text = compare.comparison(new, old)
    assert "Only in this run: 2 of its records, of tiny, by cpu, torch:contiguous" in text
    assert "Only in this run: 4 of its records" in compare.comparison(
        old | {"records": []}, two_layers()
    )


def test_red_records_have_no_ratio():
    green = result_of(measured(case(), {"auto": 1.0}))
    red = result_of(measured(case(), {"auto": None}))
    assert rows(compare.comparison(green, red))[-1][-4:] == ["1.000", "-", "-", "red"]
    assert rows(compare.comparison(red, green))[-1][-5:] == ["-", "1.000", "-", "was", "red"]


def test_layouts_and_whole_models():
    (auto,) = measured(case(), {"auto": 1.0})
    turned = dataclasses.replace(auto, implementation=auto.implementation.in_layout("contiguous"))
    result = result_of([auto, turned])
    old = scaled(result, 3)
    old["records"][1]["ms_median"] /= 6
    text = compare.comparison(old, result)
    assert "auto contiguous  " in text and text.count("tiny, float32, batch 1") == 1
    assert ["auto", "fprop", "float32", "1", "3.00x", "3.00x", "3.00x"] in rows(text)
    contiguous = ["auto", "contiguous", "fprop", "float32", "1", "0.50x", "0.50x", "0.50x"]
    assert contiguous in rows(text)
    models = model_result()
    assert ["resnext50_32x4d", "fprop", "auto:optimized", "40.000", "40.000", "1.00x"] in rows(
        compare.comparison(models, models)
    )


def damage(*path: str | int, value: object = None):
    """A result with one value replaced, or removed."""
    result = json.loads(json.dumps(two_layers()))
    place = result
    for name in path[:-1]:
        place = place[name]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return result


@pytest.mark.parametrize(
    "content, expected",
    [
        ("", "Expecting value"),
        ("\x00", "Expecting value"),
        ("[" * 100_000, "recursion"),
        ([], "the whole is list, expected dict"),
        ({"runs": []}, "no 'machine'"),
        (damage("peaks", "gbps"), "no 'gbps'"),
        (damage("peaks", "gflops", "float32", value="many"), "peaks is str, expected float or int"),
        (damage("torch", value=3), "torch is int, expected str"),
        (damage("records", value={}), "records is dict, expected list"),
        (damage("records", 0, value=3), "expected a file of bench --json"),
        (damage("records", 1, "problem"), "no 'problem'"),
        (damage("records", 1, "batch", value=True), "batch is bool, expected int"),
        (damage("records", 1, "ms_median", value="1"), "ms_median is str"),
        (damage("records", 1, "ms_p20", value=0), "expected three times or none"),
        (damage("records", 1, "ms_median", value=-1.0), "expected three times or none"),
        (damage("records", 1, "ms_median", value=math.nan), "expected three times or none"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 else "",
)
def test_a_file_that_is_no_run(tmp_path, content, expected):
    path = tmp_path / "old.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(compare.ComparisonError) as caught:
        compare.read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and text.endswith("; expected a file of bench --json")
    assert expected in text


def test_a_run_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "old.json"
    for result in (two_layers(), model_result()):
        path.write_text(json.dumps(result))
        assert compare.read(path) == result
    with pytest.raises(compare.ComparisonError, match="nowhere.json: No such file"):
        compare.read(tmp_path / "nowhere.json")
