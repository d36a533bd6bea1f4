"""The plots: of layers and of whole models, as pictures and as text that is the same each time."""

from __future__ import annotations

import json

import pytest
from tiny_suite import LAYERS, case, measured, model_result, result_of, two_layers

from resnext_kernels.bench import plot, suites
from resnext_kernels.problem import DIRECTIONS

image = pytest.importorskip("matplotlib.image")


def every_case():
    return [
        case(d, t, b, x) for d in DIRECTIONS for t in suites.DTYPES.values() for b in (1, 8)
        for x in LAYERS
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["layers", "models"])
def test_plot_writes_a_figure(kind, tmp_path):
    times = {"auto": 1.0, "torch:contiguous": 2.0}
    layers = result_of([m for c in every_case() for m in measured(c, times)])
    path = tmp_path / "plot.png"
    plot.plot(layers if kind == "layers" else model_result(), path)
    pixels = image.imread(path)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 800
    assert pixels[..., :3].std() > 0.05


@pytest.mark.parametrize("result", [two_layers(), model_result()], ids=["layers", "models"])
def test_svg_is_text_and_the_same_each_time(result, tmp_path):
    paths = [tmp_path / name for name in ("first.svg", "second.svg")]
    for path in paths:
        plot.plot(result, path)
    text = paths[0].read_text()
    assert text == paths[1].read_text()
    for record in result["records"]:
        assert f">{record['problem']}</text>" in text
    assert plot.digest(result) in text and "<dc:date>" not in text
    changed = json.loads(json.dumps(result))
    changed["records"][0]["ms_median"] *= 1.01
    assert plot.digest(changed) != plot.digest(result)


def test_svg_of_the_largest_suite_is_small(tmp_path):
    made = suites.cases_of("regnet", DIRECTIONS, suites.DTYPES.values(), (1, 8))
    times = {"auto": 1.2345, "torch:contiguous": 2.3456}
    path = tmp_path / "plot.svg"
    plot.plot(result_of([m for c in made for m in measured(c, times)]), path)
    assert path.stat().st_size < 160_000


@pytest.mark.parametrize("suffix", plot.SUFFIXES)
def test_one_direction_and_each_type_of_file(suffix, tmp_path):
    result = result_of(measured(case("wgrad"), {"auto": 1.0, "torch:contiguous": 2.0}))
    path = tmp_path / f"plot{suffix}"
    plot.plot(result, path)
    head = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(head)


@pytest.mark.parametrize("suffix", plot.SUFFIXES)
def test_a_suite_with_a_name_that_is_no_plain_text(suffix, tmp_path):
    result = result_of(measured(case(), {"auto": 1.0, "torch:contiguous": 2.0}))
    for record in result["records"]:
        record["suite"] = "a$\\b$ \udcff \xe9.py:net"
    path = tmp_path / f"plot{suffix}"
    plot.plot(result, path)
    assert suffix != ".svg" or ">a$\\b$ \\udcff \xe9.py:net on " in path.read_text("utf-8")


def test_plot_of_red_records_says_that_there_is_nothing(tmp_path):
    result = result_of(measured(case(), {"auto": None, "torch:contiguous": 2.0}))
    with pytest.raises(ValueError, match="'auto'.*red"):
        plot.plot(result, tmp_path / "plot.png")
