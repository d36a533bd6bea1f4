"""`bench` as users call it: suites of their own, their models, earlier runs, whole models."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path

import pytest
from commands import quick
from tiny_suite import model_result

from resnext_kernels.backends import cpu
from resnext_kernels.bench import plot, runner, whole_model
from resnext_kernels.cli import main
from resnext_kernels.cli.console import output_path

__all__ = ["quick"]
pytestmark = pytest.mark.usefixtures("quick")
QUICK = ["--direction", "fprop", "--dtype", "float32", "--batch", "2"]
MODEL = """
import torch
from torch import nn
def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 16, 3, groups=2),
    ), torch.randn(1, 3, 9, 9)
def dense(): return nn.Conv2d(3, 8, 3)
"""


def written(path):
    return json.loads(path.read_text())["records"]


def fails_in_one_line(capsys, arguments: list[str], *expected: str) -> None:
    assert main(["bench", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("resnext-kernels bench: ")
    assert all(text in line for text in expected)


def test_a_suite_of_the_users_own(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    suite, out, image = tmp_path / "mine.json", tmp_path / "out.json", tmp_path / "out.svg"
    suite.write_text('[{"in_channels": 16, "groups": 2, "size": [5, 6], "kernel": 5}]')
    chosen = ["--suite", str(suite), *QUICK, "--json", str(out), "--plot", str(image)]
    assert main(["bench", *chosen]) == 0
    assert "mine.json, float32, batch 2" in capsys.readouterr().out
    assert {(r["suite"], r["problem"]) for r in written(out)} == {("mine.json", "16x5x6 g2 k5")}
    assert "16x5x6 g2 k5" in image.read_text()


def test_the_layers_of_a_users_model(tmp_path):
    model, out = tmp_path / "net.py", tmp_path / "out.json"
    model.write_text(MODEL)
    assert main(["bench", "--model", f"{model}:net", *QUICK, "--json", str(out)]) == 0
    found = {(r["suite"], r["problem"], r["batch"]) for r in written(out)}
    names = ("8x9x9 g4 p0", "8x7x7->16 g2 p0")
    assert found == {(f"{model}:net", name, 2) for name in names}


def test_a_users_model_of_several_files(tmp_path, monkeypatch):
    """It finds those beside it, and is found itself, by dataclasses say, as if Python ran it."""
    monkeypatch.setattr("sys.path", [*sys.path])
    model, out = tmp_path / "net_of_two.py", tmp_path / "out.json"
    (tmp_path / "beside_net.py").write_text(MODEL)
    model.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from beside_net import net\n"
        "@dataclass\n"
        "class Options: width: int = 8\n"
    )
    assert main(["bench", "--model", f"{model}:net", *QUICK, "--json", str(out)]) == 0
    assert {r["problem"] for r in written(out)} == {"8x9x9 g4 p0", "8x7x7->16 g2 p0"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is where root cannot write")
@pytest.mark.parametrize("place", ["/proc/out.json", "/proc/version"], ids=["folder", "file"])
def test_a_file_that_cannot_be_written_is_refused_at_once(place, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--json", place])
    assert caught.value.code == 2
    assert f"{place}: cannot be written: " in capsys.readouterr().err


def test_asking_whether_a_file_can_be_written_changes_nothing(tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("kept")
    assert output_path(str(old)) == old and output_path(str(new)) == new
    assert old.read_text() == "kept" and list(tmp_path.iterdir()) == [old]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full")
def test_a_full_disk_leaves_the_tables(capsys):
    assert main(["bench", *QUICK, "--json", "/dev/full"]) == 1
    text = capsys.readouterr().out
    assert "Geometric means" in text and "\nno records: [Errno 28]" in text


@pytest.mark.parametrize("error", ["RuntimeError: no font", "OSError: disk full"])
def test_a_picture_that_cannot_be_drawn_leaves_the_tables(error, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    image, records = tmp_path / "out.svg", tmp_path / "out.json"

    def fails(result, path):
        kind, _, text = error.partition(": ")
        raise getattr(builtins, kind)(f"{text}\nand more")

    monkeypatch.setattr(plot, "plot", fails)
    assert main(["bench", *QUICK, "--plot", str(image), "--json", str(records)]) == 1
    text = capsys.readouterr().out
    assert "Geometric means" in text and text.endswith(f"\nno plot: {error} and more\n")
    assert written(records)


def test_a_layer_that_nothing_serves_ends_nothing(tmp_path, capsys):
    """The first has more weights than the CPU kernels take."""
    suite, out = tmp_path / "mine.json", tmp_path / "out.json"
    suite.write_text(
        '[{"in_channels": 2048, "groups": 1, "size": 1, "kernel": 1},'
        ' {"in_channels": 8, "groups": 2, "size": 5}]'
    )
    chosen = ["--suite", str(suite), *QUICK, "--backend", "cpu", "--peers"]
    assert main(["bench", *chosen, "--json", str(out)]) == 0
    text = capsys.readouterr()
    assert "[1/2, " in text.err and "nothing serves this case" in text.err
    assert {r["problem"] for r in written(out)} == ({"8x5x5 g2"} if cpu.LIBRARY.loaded else set())
    assert "not measured: cpu: " in text.out


def test_a_run_beside_an_earlier_one(tmp_path, capsys):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    assert main(["bench", *QUICK, "--json", str(old)]) == 0
    assert "Comparison" not in capsys.readouterr().out
    chosen = [*QUICK, "--peers", "torch:contiguous", "--compare", str(old), "--json", str(new)]
    assert main(["bench", *chosen]) == 0
    text = capsys.readouterr().out
    assert "Comparison with the earlier run" in text and "Geometric means of old/new" in text
    left_out = len(written(old)) - len(written(new))
    assert left_out == 2
    assert f"Only in the earlier run: {left_out} of its records, of resnext50, by " in text


def test_misuse_is_told_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "run", lambda *args, **options: pytest.fail("measured"))
    monkeypatch.setattr(whole_model, "run", lambda *args, **options: pytest.fail("measured"))
    damaged, model = tmp_path / "damaged.json", tmp_path / "net.py"
    damaged.write_text('[{"in_channels": 4}]')
    model.write_text(MODEL)
    for arguments, *expected in (
        (["--compare", str(damaged)], "--compare", str(damaged), "expected a file of bench"),
        (["--compare", "nowhere.json"], "nowhere.json: No such file"),
        (["--suite", str(damaged)], "--suite", f"{damaged}: entry 1: groups: missing"),
        (["--suite", "nowhere.json"], "nowhere.json: No such file"),
        (["--model", "nowhere.py:net"], "--model nowhere.py:net"),
        (["--model", f"{model}:dense"], "no grouped convolutions"),
        (["--model", f"{model}:net", "--suite", "widths"], "--model goes without --suite"),
        (["--peers", "nobody"], "--peers nobody", ", all"),
        (["--peers", "openvino"], "--peers openvino", ", all"),
        (["--suite", "model", "--peers", "nobody"], "--peers nobody", "openvino", ", all"),
        (["--suite", "model", "--direction", "wgrad"], "--direction is for layers"),
        (["--suite", "model", "--layout", "contiguous"], "--layout is for layers"),
        (["--backend", "cpu", "--plot", "out.svg"], "--plot draws 'auto'", "--backend"),
    ):
        fails_in_one_line(capsys, arguments, *expected)


def test_whole_models_are_measured_as_asked_for(monkeypatch, tmp_path, capsys):
    calls = []

    def run(models, dtypes, batches, peers, *, device, progress):
        calls.append((list(models), [str(t) for t in dtypes], batches, peers, device))
        for _ in range(whole_model.steps(models, dtypes, batches, peers)):
            progress("a step")
        return model_result()

    monkeypatch.setattr(whole_model, "run", run)
    out = tmp_path / "model.json"
    assert main(["bench", "--suite", "model", "--peers", "all", "--json", str(out)]) == 1
    text = capsys.readouterr()
    assert "model, float32, batch 2" in text.out and "PARITY RED: openvino" in text.out
    assert text.err.splitlines()[-1].endswith("0 s left] a step")
    dtypes = ["torch.float32", "torch.bfloat16"]
    assert calls == [(list(whole_model.MODELS), dtypes, [1, 8], list(whole_model.PEERS), "cpu")]
    chosen = ["--model", "resnext101_64x4d", "--dtype", "bfloat16", "--batch", "3"]
    main(["bench", "--suite", "model", *chosen, "--peers", "openvino", "--compare", str(out)])
    assert calls[1] == (["resnext101_64x4d"], dtypes[1:], [3], ["openvino"], "cpu")
    assert "Comparison with the earlier run" in capsys.readouterr().out


def test_an_unknown_whole_model_is_a_misuse(capsys):
    fails_in_one_line(capsys, ["--suite", "model", "--model", "alexnet"], "'alexnet'", "resnext50")


def test_whole_models_and_layers_are_told_apart(tmp_path, capsys):
    """A file of layers beside a run of layers has nothing of a file of whole models."""
    path = tmp_path / "model.json"
    path.write_text(json.dumps(model_result()))
    assert main(["bench", *QUICK, "--compare", str(path)]) == 0
    assert "Only in the earlier run: 4 of its records, of model" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_path_that_cannot_be_looked_at_is_a_misuse(option, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", option, "a" * 300 + ".json"])
    assert caught.value.code == 2
    assert "File name too long" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("one", "other"), [(["--json"], ["--plot"]), (["--suite"], ["--json"])], ids=str
)
def test_one_file_for_two_things(one, other, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    name = "same.png" if other == ["--plot"] else "same.json"
    Path(name).write_text("[]")
    assert main(["bench", *one, name, *other, str(tmp_path / name)]) == 2
    expected = f"{other[0]} {tmp_path / name}: expected another file than that of {one[0]}"
    assert expected in capsys.readouterr().err
    assert Path(name).read_text() == "[]"
