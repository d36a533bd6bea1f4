"""`tune`: whose layers it measures, what it writes and prints, and where it refuses."""

from __future__ import annotations

import os
import re
import sys

import pytest
import torch
from interop import import_timm, import_torchvision
from problems import problem
from small_models import tiny
from tiny_suite import case, measured
from torch import nn
from user_tables import cache, table

import resnext_kernels as rk
from resnext_kernels import dispatch, tuning, user_table
from resnext_kernels.backends import cpu
from resnext_kernels.bench import recorded, runner, suites, timing
from resnext_kernels.bench.suites import Layer
from resnext_kernels.cli import main
from resnext_kernels.cli.tune import records_of
from resnext_kernels.measured import Measured
from resnext_kernels.problem import DIRECTIONS

__all__ = ["cache"]  # a fixture
RECORD = Measured.of(problem(8, groups=4, size=(14, 14)), "fprop", ours=0.5, aten=0.25)
needs_cpu = pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message)
MODELS = """
import torch
from torch import nn
def convs():
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding="same", groups=4),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, padding_mode="reflect", groups=2),
        nn.Conv2d(16, 16, 3, dilation=2, groups=16),
    ), torch.randn(2, 3, 12, 10)
def number(): return 3
def pair(): return nn.Conv2d(4, 4, 1, groups=2), 1, 2
def dense(): return nn.Conv2d(3, 8, 3)
def tuple_of_images(): return convs()[0], (torch.randn(2, 3, 12, 10),)
def no_images(): return convs()[0], torch.randn(0, 3, 12, 10)
def fails(): return nn.Conv2d(4, 4, 3, groups=2)
def number_of_images(): return convs()[0], torch.tensor(1.0)
def ends(): raise SystemExit(0)
class Ends(nn.Module):
    def forward(self, x): raise SystemExit(0)
def ends_in_a_call(): return Ends()
"""


@pytest.fixture(autouse=True)
def quick(cache, monkeypatch):
    """Tiny layers under the name of the real ones, few repeats."""
    monkeypatch.setattr(timing, "_MAX_ROUNDS", 2)
    monkeypatch.setitem(suites.SUITES, "resnext50", (Layer(16, 6, 1, 4, 2), Layer(32, 7, 2, 4, 1)))


@needs_cpu
def test_tune_measures_and_auto_follows(cache, capsys):
    assert main(["tune", "--device", "cpu", "--batch", "2"]) == 0
    assert [path.name for path in cache.iterdir()] == [table().name]
    text = capsys.readouterr()
    assert f"written: {table()}" in text.out
    assert text.err.count("\n") == 2 * 3 * 2
    found = user_table.load("cpu", "cpu")
    records = sum(found.runs.values(), ())
    assert len(records) == 2 * 3 * 2 * 2
    for made in suites.cases_of("resnext50", DIRECTIONS, suites.DTYPES.values(), [2]):
        wanted = Measured.of(made.problem, made.direction)
        (record,) = (r for r in records if r.problem == wanted)
        chosen = dispatch.choose(made.problem, made.direction).NAME
        assert chosen == ("aten" if record.aten < record.ours else "cpu")
        found = tuning.compare("cpu", cpu.isa(), made.problem, made.direction)
        assert f"{chosen} measured faster by tune: " in found.reason
    main(["info"])
    assert f"{table()}, {len(records)} records in use" in capsys.readouterr().out


def test_info_tells_where_the_table_would_be(capsys):
    main(["info"])
    assert f"none ({table()})" in capsys.readouterr().out


@pytest.fixture
def models(tmp_path) -> str:
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return str(path)


@needs_cpu
def test_tune_takes_a_model_of_the_users(models, capsys):
    chosen = ["--device", "cpu", "--dtype", "float32", "--batch", "3"]
    assert main(["tune", "--model", f"{models}:convs", *chosen]) == 0
    assert "1 dilated layers are left out" in capsys.readouterr().out
    (records,) = user_table.load("cpu", "cpu").runs.values()
    assert len(records) == 2 * 3 * 2
    found = {(r.batch, r.groups, r.width, r.size, r.stride, r.dtype) for r in records}
    assert found == {
        (3, 4, (2, 2), (12, 10), (1, 1), "float32"),
        (3, 2, (4, 8), (14, 12), (2, 2), "float32"),
    }


@pytest.mark.parametrize(
    "name, expected",
    [
        ("", "expected timm:NAME, torchvision:NAME or path.py:function"),
        ("models.py", "expected timm:NAME, torchvision:NAME or path.py:function"),
        ("nowhere.py:convs", "nowhere.py"),
        ("{}:missing", "missing"),
        ("{}:number", "returned int, expected a torch.nn.Module"),
        ("models:convs", "models is no Python file; expected timm:NAME, torchvision:NAME or"),
        ("{}:pair", "returned 3 objects, expected a module, or a module and an example of its"),
        ("{}:dense", "no grouped convolutions"),
        ("{}:tuple_of_images", "tuple, expected a Tensor"),
        ("{}:no_images", "expected at least one image"),
        ("{}:number_of_images", "an example of shape (), expected at least one image"),
        ("{}:ends", "SystemExit: 0"),
        ("{}:ends_in_a_call", "Ends fails on input (1, 3, 224, 224): SystemExit: 0"),
        ("{}:fails", "Conv2d fails on input (1, 3, 224, 224): RuntimeError"),
    ],
)
def test_a_model_that_cannot_be_had_is_a_misuse(models, name, expected, capsys, cache):
    assert main(["tune", "--model", name.format(models)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("resnext-kernels tune: --model ") and expected in line
    assert not list(cache.iterdir())


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_that_is_not_installed(library, monkeypatch):
    monkeypatch.setattr(recorded.importlib.util, "find_spec", lambda name: None)
    expected = f"{library} is not installed (pip install {library})"
    with pytest.raises(recorded.ModelError, match=re.escape(expected)):
        recorded.load(f"{library}:resnet18")


@pytest.mark.parametrize(
    "library, name", [(import_timm, "timm:resnext50_32x4d"), (import_torchvision, None)]
)
def test_models_of_libraries_have_the_layers_of_the_suite(library, name, monkeypatch):
    library()
    monkeypatch.undo()  # of the tiny suite
    found = recorded.grouped_layers(*recorded.load(name or "torchvision:resnext50_32x4d"))
    counts = {layer.problem(2, torch.float32): layer.count for layer in found}
    known = {layer.problem(2, torch.float32): layer.count for layer in suites.SUITES["resnext50"]}
    assert counts == known


def test_recording_leaves_the_model_as_it_was():
    model = tiny().train()
    layers = recorded.grouped_layers(model, torch.randn(2, 3, 32, 32))
    assert sum(layer.count for layer in layers) == 6
    assert all(m.training and not m._forward_pre_hooks for m in model.modules())
    rk.replace_grouped_convs(model)
    assert recorded.grouped_layers(model, torch.randn(1, 3, 32, 32)) == layers


def test_convolutions_of_other_classes_are_not_recorded():
    class Own(nn.Conv2d):
        pass

    model = nn.Sequential(Own(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1, groups=4))
    (layer,) = recorded.grouped_layers(model, torch.randn(3, 4, 5, 5))
    assert layer.single.groups == 4 and layer.problem(7, torch.bfloat16).batch == 7


def test_a_model_whose_default_cfg_is_nothing(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    model = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3))\n"
        "    model.default_cfg = None\n"
        "    return model\n"
    )
    _, images = recorded.load(f"{file}:make")
    assert images.shape == (1, 3, 224, 224)


def test_what_is_wrong_is_not_recorded():
    made = case("fprop")
    found = records_of([*measured(made, {"cpu": None, "aten": 1.0}), *measured(
        case("dgrad"), {"cpu": 1.0, "aten": None}
    )])  # fmt: skip
    assert found == {}


@needs_cpu
def test_tune_fails_where_a_result_is_wrong(monkeypatch, capsys):
    real = cpu.dgrad
    monkeypatch.setattr(cpu, "dgrad", lambda *args: real(*args) * 1.1)
    chosen = ["--device", "cpu", "--dtype", "float32", "--batch", "1"]
    assert main(["tune", *chosen]) == 1
    assert "WRONG, not recorded: cpu, 16x6x6 g4 dgrad float32" in capsys.readouterr().out
    (records,) = user_table.load("cpu", "cpu").runs.values()
    assert {record.direction for record in records} == {"fprop", "wgrad"}


@needs_cpu
@pytest.mark.parametrize("done", [0, 2])
def test_an_interrupted_run_keeps_whole_cases(monkeypatch, capsys, cache, done):
    real, called = runner.interleaved, []

    def interrupted(calls, *args):
        if len(called) == done:
            next(iter(calls.values()))[0]()
            raise KeyboardInterrupt
        called.append(calls)
        return real(calls, *args)

    monkeypatch.setattr(runner, "interleaved", interrupted)
    code = main(["tune", "--device", "cpu", "--dtype", "float32", "--batch", "2"])
    out = capsys.readouterr().out
    assert code == (1 if done else 130)
    assert (f"interrupted: the last {6 - done} of 6 cases are not measured" in out) == (done > 0)
    assert (f"written: {table()}" in out) == table().exists() == (done > 0)
    records = sum(user_table.load("cpu", "cpu").runs.values(), ())
    cases = suites.cases_of("resnext50", DIRECTIONS, [torch.float32], [2])
    wanted = {(c.direction, c.layer.problem(2, torch.float32).in_size) for c in cases[:done]}
    assert {(r.direction, r.size) for r in records} == wanted
    assert len(records) == 2 * done


def test_nothing_to_measure_is_a_misuse(monkeypatch, capsys):
    monkeypatch.setattr(dispatch, "DISABLED", frozenset({"cpu", "cuda", "triton"}))
    assert main(["tune", "--device", "cpu"]) == 2
    assert "nothing to measure: cuda: disabled by" in capsys.readouterr().err


def test_tune_says_at_once_that_it_cannot_write(monkeypatch, capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setattr(runner, "measure", lambda *args: pytest.fail("measured first"))
    folders = [str(file), "/proc/nowhere"]
    if os.geteuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        folders.append(str(tmp_path / "locked"))
    for folder in folders:
        monkeypatch.setenv(user_table.FOLDER, folder)
        assert main(["tune", "--device", "cpu"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "no table can be written: " in line and user_table.FOLDER in line


@needs_cpu
def test_the_table_is_written_though_nothing_can_be_printed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["tune", "--device", "cpu", "--dtype", "float32", "--batch", "1"]) == 1
    assert "cannot print: stdout is closed" in capsys.readouterr().err
    assert user_table.load("cpu", "cpu").runs


@needs_cpu
def test_a_write_that_fails_leaves_the_old_table(monkeypatch, capsys, cache):
    text = user_table.write("cpu", "cpu", {"avx512": [RECORD]}).read_text()

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    chosen = ["--device", "cpu", "--dtype", "float32", "--batch", "1"]
    assert main(["tune", *chosen]) == 2
    printed = capsys.readouterr()
    assert "No space left on device" in printed.err and "16x6x6 g4" in printed.out
    assert [path.read_text() for path in cache.iterdir()] == [text]


def test_layers_of_several_precisions_are_measured_once():
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=4)

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = conv, nn.Conv2d(8, 8, 3, padding=1, groups=4).bfloat16()

        def forward(self, x):
            return self.second(self.first(x).bfloat16())

    (layer,) = recorded.grouped_layers(Mixed(), torch.randn(1, 8, 6, 6))
    assert layer.count == 2
