"""Recorded measurements: their table, what is near enough, the rule elsewhere, damaged files."""

from __future__ import annotations

import dataclasses
import json
import random
import warnings
from pathlib import Path

import pytest
import torch
from problems import problem

import resnext_kernels as rk
from resnext_kernels import dispatch, tuning
from resnext_kernels.backends import BACKENDS, cpu
from resnext_kernels.bench import suites
from resnext_kernels.problem import DIRECTIONS, dtype_name
from resnext_kernels.tuning import Measured

CHECKOUT = Path(__file__).parents[1]
MADE = {"processor": "a processor", "threads": 2}
RECORD = Measured.of(problem(8, groups=4, size=(14, 14)), "fprop", ours=0.5, aten=0.25)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in place of the package's tables."""
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    tuning._shipped.cache_clear()
    dispatch.choose.cache_clear()


def write(folder: Path, *records: Measured, hardware: str = "avx512") -> None:
    run = MADE | {"hardware": hardware, "records": [record.to_json() for record in records]}
    (folder / "cpu.json").write_text(json.dumps({"runs": [run]}))


def test_a_record_survives_json():
    assert Measured.from_json(json.loads(json.dumps(RECORD.to_json()))) == RECORD


def test_the_faster_one_is_taken_and_told(folder):
    faster = dataclasses.replace(RECORD, direction="dgrad", ours=0.123456)
    write(folder, RECORD, faster)
    case = problem(8, groups=4, size=(14, 14))
    found = tuning.compare("cpu", "avx512", case, "fprop")
    assert found.aten_is_faster
    made, where = "(a processor, 2 threads)", "2x32x14x14 g4 float32 contiguous"
    assert found.reason == f"aten measured faster {made}: 0.25 ms against 0.5 ms for {where}"
    found = tuning.compare("cpu", "avx512", case, "dgrad")
    assert not found.aten_is_faster
    assert found.reason == f"cpu measured faster {made}: 0.123 ms against 0.25 ms for {where}"


@pytest.mark.parametrize(
    "other",
    [
        {"direction": "wgrad"}, {"dtype": "bfloat16"}, {"layout": "channels_last"},
        {"stride": (2, 2)}, {"width": (64, 64)}, {"batch": 4096}, {"size": (224, 224)},
        {"kernel": (1, 1)},
    ],
    ids=str,
)  # fmt: skip
def test_records_of_another_kind_and_far_ones_do_not_count(other):
    assert tuning.nearest(dataclasses.replace(RECORD, **other), [RECORD]) is None


@pytest.mark.parametrize(
    "other", [{"batch": 8}, {"size": (28, 20)}, {"groups": 8}, {"width": (8, 16)}], ids=str
)
def test_neighbours_count(other):
    assert tuning.nearest(dataclasses.replace(RECORD, **other), [RECORD]) is RECORD


def test_nearest_is_the_nearest():
    sizes = [(n, n) for n in (4, 7, 10, 14, 20, 28, 40)]
    known = [dataclasses.replace(RECORD, size=size) for size in sizes]
    random.shuffle(known)
    for record in known:
        assert tuning.nearest(record, known) is record
        assert record.distance(record) == 0
    found = tuning.nearest(dataclasses.replace(RECORD, size=(13, 14)), known)
    assert found and found.size == (14, 14)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize(
    "width, narrow", [(1, False), (2, True), (8, True), (15, True), (16, False)]
)
def test_rule_where_nothing_was_measured(folder, width, narrow, layout):
    write(folder, RECORD)
    last = layout == "channels_last"
    for out_width in {1, width}:
        case = dataclasses.replace(problem(width, out_width), channels_last=last)
        found = tuning.compare("cpu", "portable", case, "fprop")
        assert found.aten_is_faster == (not (narrow and last))
        assert found.reason.startswith("nothing like it measured on portable: groups of 2 to 15")
        assert found.reason.endswith(f"these have {width} in {layout}")
    dilated = problem(8, groups=4, size=(14, 14), dilation=(2, 2))
    assert "nothing like it" in tuning.compare("cpu", "avx512", dilated, "fprop").reason


@pytest.mark.parametrize("width", [1, 8, 64])
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_rule_of_bfloat16(folder, width, layout, isa):
    last = layout == "channels_last"
    case = dataclasses.replace(problem(width), dtype=torch.bfloat16, channels_last=last)
    found = tuning.compare("cpu", isa, case, "wgrad")
    assert found.reason.startswith(f"nothing like it measured on {isa}: ")
    assert found.aten_is_faster == (isa == "avx512" and not (last and width == 8))


@pytest.mark.parametrize(
    "changed, ours",
    [
        ({}, True), ({"dtype": torch.float16}, True), ({"dtype": torch.float32}, False),
        ({"channels_last": False}, False), ({"kernel": (5, 5)}, False),
        ({"in_channels": 2}, True), ({"groups": 16}, False), ({"groups": 1}, True),
        ({"in_channels": 128, "out_channels": 128}, True),
        ({"in_channels": 130, "out_channels": 130}, False),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("backend, device", [("cuda", "cuda"), ("triton", "xpu")])
def test_rule_of_gpus_where_nothing_was_measured(folder, backend, device, changed, ours):
    """Groups of 2 to 64 channels in the kernels' own layout and precision; the rest is ATen's."""
    (folder / f"{backend}.json").write_text('{"runs": []}')
    plain = dataclasses.replace(
        problem(8, groups=2), device=device, dtype=torch.bfloat16, channels_last=True
    )
    case = dataclasses.replace(plain, **changed)
    found = tuning.compare(backend, "sm_90 a GPU", case, "dgrad")
    assert found.aten_is_faster == (not ours)
    assert found.reason.startswith("nothing like it measured on sm_90 a GPU: 3x3 groups of 2 to 64")
    assert f"go to {backend}, others to aten; these are" in found.reason


def test_a_measurement_comes_before_the_rule(folder):
    case = dataclasses.replace(
        problem(8, groups=4, size=(14, 14)), device="cuda", dtype=torch.bfloat16, channels_last=True
    )
    record = Measured.of(case, "fprop", ours=2.0, aten=1.0)
    run = MADE | {"hardware": "sm_90 a GPU", "records": [record.to_json()]}
    (folder / "cuda.json").write_text(json.dumps({"runs": [run]}))
    assert tuning.compare("cuda", "sm_90 a GPU", case, "fprop").aten_is_faster
    assert not tuning.compare("cuda", "sm_90 another GPU", case, "fprop").aten_is_faster


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "aten"])
def test_every_backend_has_a_table(backend):
    tuning.read(CHECKOUT / "resnext_kernels" / "tuned" / f"{backend}.json")


def test_bfloat16_instructions_do_not_matter_to_float32(folder):
    low = dataclasses.replace(RECORD, dtype="bfloat16")
    write(folder, RECORD, low)
    case = problem(8, groups=4, size=(14, 14))
    assert "measured faster" in tuning.compare("cpu", "avx512_bf16", case, "fprop").reason
    case = dataclasses.replace(case, dtype=torch.bfloat16)
    assert "nothing like it" in tuning.compare("cpu", "avx512_bf16", case, "fprop").reason
    assert "measured faster" in tuning.compare("cpu", "avx512", case, "fprop").reason


GOOD = json.dumps({"runs": [MADE | {"hardware": "avx512", "records": [RECORD.to_json()]}]})
DAMAGED = {
    "empty": "",
    "truncated": GOOD[: len(GOOD) // 2],
    "no object": "[]",
    "null": "null",
    "no runs": "{}",
    "runs of another form": '{"runs": {"avx512": 1}}',
    "no records": '{"runs": [{"hardware": "avx512"}]}',
    "no machine": GOOD.replace("processor", "process"),
    "record of another form": '{"runs": [{"hardware": "avx512", "records": [1]}]}',
    "text for a time": GOOD.replace("0.25", '"fast"'),
    "not a number": GOOD.replace("0.25", "NaN"),
    "zero": GOOD.replace("0.25", "0"),
    "a list for a count": GOOD.replace('"batch": 2', '"batch": [2]'),
    "three numbers for two": GOOD.replace('"width": [8, 8]', '"width": [8, 8, 8]'),
    "a list for hardware": GOOD.replace('"avx512"', "[]"),
    "no text": b"\xff\xfe\x00",
    "nested too deep": "[" * 100_000,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_table_is_ignored_with_one_warning(folder, content):
    data = content if isinstance(content, bytes) else content.encode()
    assert data != GOOD.encode()
    (folder / "cpu.json").write_bytes(data)
    with pytest.warns(UserWarning, match="cpu.json is ignored: "):
        found = tuning.compare("cpu", "avx512", problem(8), "fprop")
    assert "nothing like it measured" in found.reason
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuning.compare("cpu", "avx512", problem(8), "fprop") == found


def test_a_missing_table_is_told_once_and_calls_go_on(folder):
    input, weight = torch.randn(1, 16, 5, 5), torch.randn(16, 8, 3, 3)
    if cpu.LIBRARY.loaded:
        with pytest.warns(UserWarning, match="cpu.json is ignored: FileNotFoundError"):
            out = rk.grouped_conv2d(input, weight, groups=2)
    else:
        out = rk.grouped_conv2d(input, weight, groups=2)
    torch.testing.assert_close(out, torch.nn.functional.conv2d(input, weight, groups=2))


@pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message)
@pytest.mark.parametrize("winner", ["cpu", "aten"])
def test_auto_and_explain_follow_the_table(folder, winner):
    case = problem(8, groups=4, size=(14, 14))
    ms = {"cpu": 2.0, "aten": 2.0, winner: 1.5}
    records = [Measured.of(case, d, ours=ms["cpu"], aten=ms["aten"]) for d in DIRECTIONS]
    write(folder, *records, hardware=tuning.hardware(cpu.isa(), "float32"))
    input, weight = torch.randn(case.input_shape), torch.randn(case.weight_shape)
    explanation = rk.explain(input, weight, padding=1, groups=4)
    (loser,) = {"cpu", "aten"} - {winner}
    for direction in DIRECTIONS:
        assert explanation.chosen[direction] == winner
        names = [dispatch.choose(case, direction, b).NAME for b in ("auto", loser)]
        assert names == [winner, loser]
    where = "measured faster (a processor, 2 threads)"
    line = f"    not {loser}: {winner} {where}: 1.5 ms against 2 ms for {records[0]}"
    assert str(explanation).splitlines().count(line) == 3


@pytest.mark.parametrize("suite", suites.SUITES)
def test_shipped_table_holds_every_layer_of_the_suites(suite):
    table = tuning.read(CHECKOUT / "resnext_kernels" / "tuned" / "cpu.json")
    for made in suites.cases_of(suite, DIRECTIONS, suites.DTYPES.values(), (1, 8)):
        known = table[tuning.hardware("avx512_bf16", dtype_name(made.dtype))].records
        for last in (True, False):
            wanted = made.layer.problem(made.batch, made.dtype, channels_last=last)
            record = Measured.of(wanted, made.direction)
            found = tuning.nearest(record, known)
            assert found and record.distance(found) == 0


def test_records_are_told_apart():
    window = {"kernel": (1, 5), "stride": (1, 2), "padding": (0, 2)}
    one = Measured.of(problem(8, 4, groups=3, size=(14, 9), **window), "fprop")
    assert str(one) == "2x24x14x9->12 g3 k1x5 s1x2 float32 contiguous"
    plain = Measured.of(problem(8, groups=3, size=(14, 9), stride=(2, 2)), "fprop")
    assert str(plain) == "2x24x14x9 g3 s2 float32 contiguous"
