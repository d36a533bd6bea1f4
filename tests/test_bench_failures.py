"""What a benchmark makes of implementations that raise: records, tables, exit status, readers."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tiny_suite import FIELDS, LAYERS, case

from resnext_kernels.bench import compare, failures, peaks, plot, report, runner, suites, timing
from resnext_kernels.bench.implementations import OURS, PEERS
from resnext_kernels.cli import main

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
KNOWN = {"torch:contiguous": PEERS, "auto": OURS}
FAILURE = "OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB."
CHOSEN = ["--direction", "fprop", "--dtype", "float32", "--batch", "2"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "_MAX_ROUNDS", 2)
    monkeypatch.setitem(peaks._SIZES, "cpu", peaks._Sizes(32, 1 << 16))
    monkeypatch.setitem(suites.SUITES, "resnext50", LAYERS)


def out_of_memory(*args):
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB.")


def fail(monkeypatch, name: str, calls_before: int | None = None, layer=LAYERS[0]) -> None:
    """Let an implementation raise on a layer: when it is bound, or after some calls."""
    known = KNOWN[name]
    real = known[name].bind

    def bind(problem, *args):
        if problem.in_channels != layer.channels:
            return real(problem, *args)
        if calls_before is None:
            out_of_memory()
        call, count = real(problem, *args), iter(range(calls_before))
        return lambda: out_of_memory() if next(count, None) is None else call()

    monkeypatch.setitem(known, name, dataclasses.replace(known[name], bind=bind))


def failed(result) -> set[tuple[str, str]]:
    assert all(set(r) == FIELDS for r in result["records"])
    json.dumps(result, allow_nan=False)
    found = [r for r in result["records"] if r["parity"] == "failed"]
    for r in found:
        numbers = ("ms_median", "ms_p80", "gflops", "speedup_vs_best_peer")
        assert [r[name] for name in numbers] == [None] * 4 and r["flops"] > 0
    return {(r["implementation"], r["problem"]) for r in found}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("calls_before", [None, 0], ids=["bound", "called"])
def test_one_that_raises_has_failed_alone(monkeypatch, name, calls_before):
    fail(monkeypatch, name, calls_before)
    cases = [case(layer=layer) for layer in LAYERS]
    result = runner.run(cases, ours=["aten", "auto"], seconds=0)
    assert failed(result) == {(name, str(LAYERS[0]))}
    others = [r for r in result["records"] if r["parity"] != "failed"]
    assert len(others) == 7 and all(r["parity"] == "green" and r["ms_median"] for r in others)
    assert result["skipped"] == {f"{name}, {cases[0]}": FAILURE}
    text = report.report(result)
    assert f"not measured: {name}, {cases[0]}: {FAILURE}" in text and "PARITY RED" not in text
    (row,) = (line.split() for line in text.splitlines() if line.startswith(f"{LAYERS[0]} "))
    if name == "auto":
        assert row[-1] == "-" and "failed" in row
    else:
        assert row[-1].endswith("x") and "channels_last" in row


def test_one_that_raises_while_it_is_timed_leaves_no_times_of_its_case(monkeypatch):
    fail(monkeypatch, "torch:contiguous", 1)
    result = runner.run([case(layer=layer) for layer in LAYERS], ours=["auto"], seconds=0)
    names = ("auto", "torch:channels_last", "torch:contiguous")
    assert failed(result) == {(name, str(LAYERS[0])) for name in names}
    assert set(result["skipped"].values()) == {FAILURE}


def test_a_machine_in_ruins_keeps_what_was_measured(monkeypatch):
    """After the first case nothing works any more, as after a kernel's illegal access."""
    cases = [case(layer=layer) for layer in LAYERS]

    def progress(measurements):
        monkeypatch.setattr(torch, "randn", out_of_memory)
        monkeypatch.setattr(peaks, "_copy_gbps", out_of_memory)

    result = runner.run(cases, ours=["auto"], seconds=0, progress=progress)
    assert {problem for _, problem in failed(result)} == {str(LAYERS[1])}
    assert [r["parity"] for r in result["records"]] == ["green"] * 3 + ["failed"] * 3
    assert result["skipped"]["peaks"] == FAILURE


@pytest.mark.parametrize("what", ["_fma_gflops", "_copy_gbps"])
def test_peaks_that_cannot_be_measured_end_nothing(monkeypatch, tmp_path, capsys, what):
    """As on a GPU whose memory the copy does not fit into."""
    monkeypatch.setattr(peaks, what, out_of_memory)
    if what == "_fma_gflops":
        monkeypatch.setattr(peaks, "_matmul_gflops", out_of_memory)  # without the library
    out, image = tmp_path / "out.json", tmp_path / "out.svg"
    drawn = ["--plot", str(image)] if importlib.util.find_spec("matplotlib") else []
    assert main(["bench", *CHOSEN, "--json", str(out), *drawn]) == 0
    text = capsys.readouterr().out
    assert f"not measured: peaks: {FAILURE}" in text and "- GB/s (" in text
    result = compare.read(out)
    assert all(r["ms_median"] and r["roofline_fraction"] is None for r in result["records"])
    assert not drawn or "float32: peaks not measured" in image.read_text()


def test_a_call_that_cannot_be_timed_ends_nothing(monkeypatch):
    monkeypatch.setattr(runner, "call_microseconds", out_of_memory)
    result = runner.run([case()], ours=["auto"], seconds=0)
    assert result["call_us"] == {} and result["skipped"] == {"call_us": FAILURE}
    assert not failed(result) and "beside its arithmetic" not in report.report(result)


def test_reasons_are_one_short_line():
    """Compilers put the source first and the fault last."""
    text = failures.reason_of(ValueError("at 12:3:\n" + "source\n" * 1000 + "no such type"))
    assert text.startswith("ValueError: at 12:3: source source") and text.endswith("no such type")
    assert "\n" not in text and len(text) < 400


@pytest.mark.parametrize("name", KNOWN)
def test_the_command_writes_what_it_has_and_exits_with_1(monkeypatch, tmp_path, capsys, name):
    out, before = tmp_path / "out.json", tmp_path / "before.json"
    assert main(["bench", *CHOSEN, "--json", str(before)]) == 0
    fail(monkeypatch, name)
    assert main(["bench", *CHOSEN, "--json", str(out), "--compare", str(before)]) == 1
    text = capsys.readouterr()
    assert f"{name} FAILED" in text.err and FAILURE in text.out
    verdicts = {line.split()[-1] for line in text.out.split("Comparison")[1].splitlines() if line}
    assert "failed" in verdicts
    result = compare.read(out)
    assert failed(result) == {(name, str(LAYERS[0]))}
    assert "was failed" in compare.comparison(result, compare.read(before))


def test_records_are_written_though_the_tables_cannot_be(monkeypatch, tmp_path):
    def broken(result):
        raise ZeroDivisionError

    monkeypatch.setattr("resnext_kernels.cli.bench.report", broken)
    with pytest.raises(ZeroDivisionError):
        main(["bench", *CHOSEN, "--json", str(tmp_path / "out.json")])
    assert len(compare.read(tmp_path / "out.json")["records"]) >= 6


@pytest.mark.parametrize("name", KNOWN)
def test_tables_plots_and_choices_do_without_what_failed(monkeypatch, tmp_path, name):
    fail(monkeypatch, name)
    cases = [case(layer=layer) for layer in LAYERS]
    result = runner.run(cases, ours=["aten", "cpu", "auto"], seconds=0)
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "tiny.json").write_text(json.dumps(result))
    readme, tuned = script("update_readme"), script("update_tuned")
    devices = readme.load(tmp_path)
    for text in (readme.readme_block(devices), readme.docs_page(devices)):
        assert "| tiny |" in text and "x (" in text and "None" not in text
    monkeypatch.setitem(suites.SUITES, "tiny", LAYERS)
    assert len(tuned.measured(result["records"], "cpu")) in (0, 2)  # without the library, none
    if importlib.util.find_spec("matplotlib"):
        plot.plot(result, tmp_path / "tiny.svg")
        assert (tmp_path / "tiny.svg").stat().st_size > 1000


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
