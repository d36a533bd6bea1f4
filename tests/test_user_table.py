"""The user's own tables: damaged, foreign, unreadable, written by several at once."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from problems import problem
from user_tables import cache, forget, table

import resnext_kernels as rk
from resnext_kernels import tuning, user_table
from resnext_kernels.backends import cpu
from resnext_kernels.cli import main
from resnext_kernels.measured import Measured

__all__ = ["cache"]  # a fixture
pytestmark = pytest.mark.usefixtures("cache")
CASE = problem(8, groups=4, size=(14, 14))
RECORD = Measured.of(CASE, "fprop", ours=0.5, aten=0.25)


def write(*records: Measured, hardware: str = "avx512") -> str:
    """A table with these records, and its text."""
    return user_table.write("cpu", "cpu", {hardware: records}).read_text()


def test_own_records_come_before_shipped_ones(tmp_path, monkeypatch):
    slower = dataclasses.replace(RECORD, ours=0.1)
    other = dataclasses.replace(RECORD, size=(28, 28))
    made = {"processor": "a processor", "threads": 2}
    run = made | {"hardware": "avx512", "records": [slower.to_json(), other.to_json()]}
    (tmp_path / "cpu.json").write_text(json.dumps({"runs": [run]}))
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    assert not tuning.compare("cpu", "avx512", CASE, "fprop").aten_is_faster
    write(RECORD)
    forget()
    found = tuning.compare("cpu", "avx512", CASE, "fprop")
    assert found.aten_is_faster and "aten measured faster by tune: 0.25 ms" in found.reason
    larger = dataclasses.replace(CASE, in_size=(28, 28))
    assert "aten measured faster (" in tuning.compare("cpu", "avx512", larger, "fprop").reason


def test_a_new_run_replaces_the_same_problems_and_keeps_others():
    other = dataclasses.replace(RECORD, direction="wgrad")
    newer = dataclasses.replace(RECORD, ours=0.75)
    write(RECORD, other)
    write(newer)
    write(RECORD, hardware="avx2")
    runs = user_table.load("cpu", "cpu").runs
    assert runs == {"avx512": (newer, other), "avx2": (RECORD,)}


def test_others_may_read_a_table(cache):
    """As any other file of the folder that a site may share."""
    write(RECORD)
    (cache / "other").touch()
    assert table().stat().st_mode == (cache / "other").stat().st_mode
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_table_is_ignored_with_one_warning(capsys):
    text = write(RECORD)
    contents = [text[:length] for length in range(0, len(text) - 2, 120)]
    contents += ["[]", "null", "{}", "[" * 100_000, '{"made_on": 3, "runs": []}']
    for wrong in (
        {"batch": 0.5}, {"groups": 10**400}, {"width": [0.5, 4]}, {"size": [5e-324, 1]},
        {"kernel": [1 << 60, 3]}, {"stride": [True, "1"]}, {"ours": 10**400},
    ):  # fmt: skip
        run = {"hardware": "avx512", "records": [RECORD.to_json() | wrong]}
        contents.append(json.dumps(json.loads(text) | {"runs": [run]}))
    contents += [text.replace("0.25", "NaN"), text.replace('"runs": [', '"runs": [1, ')]
    for content in contents:
        forget()
        table().write_text(content)
        with pytest.warns(UserWarning, match="is ignored: ") as caught:
            assert tuning.records("cpu", "avx512") == tuning._shipped("cpu", "avx512").records
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tuning.records("cpu", "avx2")
            main(["info"])
        assert f"{table()} is not in use: " in capsys.readouterr().out
    write(RECORD)
    assert user_table.load("cpu", "cpu").runs == {"avx512": (RECORD,)}


@pytest.mark.parametrize("name", ["device", "driver", "torch", "resnext_kernels", "threads"])
def test_a_foreign_table_is_ignored_in_silence_and_told_when_asked(name, monkeypatch, capsys):
    write(RECORD)
    here, path = user_table.made_on("cpu"), table()
    monkeypatch.setattr(user_table, "made_on", lambda device: here | {name: "another"})
    path.rename(table())  # its name tells the device
    forget()
    reason = f"is not in use: made with {name} {here[name]}, this is another"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert user_table.load("cpu", "cpu").runs == {}
        explanation = str(rk.explain(torch.randn(1, 8, 5, 5), torch.randn(8, 4, 3, 3), groups=2))
        main(["info"])
    assert f"  {table()} {reason}" in explanation
    assert reason in capsys.readouterr().out
    newer = dataclasses.replace(RECORD, direction="wgrad")
    write(newer)
    assert user_table.load("cpu", "cpu").runs == {"avx512": (newer,)}


def test_a_table_holds_for_its_number_of_threads(monkeypatch):
    """Whatever was asked for before: a benchmark sets the number for a moment."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    write(RECORD)
    for threads, expected in ((3, ()), (5, (RECORD,))):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert (
            tuning.records("cpu", "avx512") == expected + tuning._shipped("cpu", "avx512").records
        )
        ignored = user_table.load("cpu", "cpu").ignored
        assert ignored == ("" if expected else "made with threads 5, this is 3")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert "threads" not in user_table.made_on("cuda")


def test_calls_go_on_whatever_the_folder_is(cache, monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    cache.mkdir(parents=True)
    table().mkdir()  # a folder in place of the table
    for folder in (str(file), "/proc/nowhere", str(cache), "\0"):
        if folder != "\0":
            monkeypatch.setenv(user_table.FOLDER, folder)
        else:
            monkeypatch.delenv(user_table.FOLDER)
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
            monkeypatch.setattr(Path, "home", lambda: Path("/proc/nowhere"))
        forget()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            out = rk.grouped_conv2d(torch.ones(1, 8, 5, 5), torch.ones(8, 4, 3, 3), groups=2)
        assert out[0, 0, 0, 0] == 36
        assert len(caught) == (folder == str(cache) and cpu.LIBRARY.loaded)


def unknown_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_an_unknown_home_is_told(monkeypatch, capsys):
    monkeypatch.delenv(user_table.FOLDER)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown_home)
    assert user_table.load("cpu", "cpu").ignored == "Could not determine home directory."
    assert main(["tune", "--device", "cpu"]) == 2
    assert "no table can be written: Could not determine home" in capsys.readouterr().err


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({user_table.FOLDER: "/a/b", "XDG_CACHE_HOME": "/c"}, "/a/b"),
        ({user_table.FOLDER: "", "XDG_CACHE_HOME": "/c"}, "/c/resnext_kernels"),
        ({user_table.FOLDER: "", "XDG_CACHE_HOME": ""}, "/home/me/.cache/resnext_kernels"),
        ({user_table.FOLDER: "", "XDG_CACHE_HOME": "c/d"}, "/home/me/.cache/resnext_kernels"),
    ],
)
def test_folder(variables, expected, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert user_table.folder() == Path(expected)


def test_readers_and_writers_at_once_never_see_a_part():
    records = [dataclasses.replace(RECORD, batch=n, size=(n, n)) for n in range(1, 200)]
    write(*records)
    here = user_table.made_on("cpu")

    def write_or_read(turn: int) -> bool:
        if turn % 4 == 0:
            write(*(dataclasses.replace(record, ours=float(turn + 1)) for record in records))
        runs, ignored = user_table._read(table(), here)
        times = {record.ours for record in runs["avx512"]}
        return not ignored and len(runs["avx512"]) == len(records) and len(times) == 1

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write_or_read, range(48)))
    assert list(table().parent.iterdir()) == [table()]


def test_processes_that_write_at_once(cache):
    code = f"""
import dataclasses, sys
from resnext_kernels import user_table
from resnext_kernels.measured import Measured
record = Measured.from_json({RECORD.to_json()!r})
for batch in range(int(sys.argv[1]) + 1, 91, 3):
    user_table.write("cpu", "cpu", {{"avx512": [dataclasses.replace(record, batch=batch)]}})
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n)]) for n in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    (path,) = cache.iterdir()
    runs, ignored = user_table._read(path, user_table.made_on("cpu"))
    assert not ignored and {r.batch for r in runs["avx512"]} == set(range(1, 91))
