"""What README and docs say of measurements, which is made from committed results."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from tiny_suite import model_result, two_layers

from resnext_kernels.bench import plot, report

CHECKOUT = Path(__file__).parents[1]


def script(name: str):
    path = CHECKOUT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_and_docs_agree_with_the_committed_results():
    module = script("update_readme")
    devices = module.load(module.RESULTS)
    readme = module.README.read_text()
    assert readme == module.with_results(readme, module.readme_block(devices))
    assert module.DOCS.read_text() == module.docs_page(devices)


def test_every_plot_is_of_the_committed_results():
    module = script("update_plots")
    sources = {module.plot_of(p, module.PLOTS): p for p in module.RESULTS.glob("*/*.json")}
    assert set(module.PLOTS.glob("*/*")) == set(sources)
    for path, source in sources.items():
        assert plot.digest(json.loads(source.read_text())) in path.read_text(), path


def test_docs_show_plots_that_are_there():
    module = script("update_readme")
    shown = [line for line in module.DOCS.read_text().splitlines() if line.startswith("![")]
    paths = [module.DOCS.parent / line.partition("](")[2].rstrip(")") for line in shown]
    assert set(paths) == set(script("update_plots").PLOTS.glob("*/*.svg"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Results of one device: two layers, and a whole model."""
    results = tmp_path / "results"
    (results / "device").mkdir(parents=True)
    (results / "device" / "tiny.json").write_text(json.dumps(two_layers()))
    (results / "device" / "model.json").write_text(json.dumps(model_result()))
    return results


def test_tables_are_made_from_the_results(folder):
    module = script("update_readme")
    devices = module.load(folder)
    block, page = module.readme_block(devices), module.docs_page(devices)
    machine = "a processor, 2 threads, avx2"
    assert machine in block and machine in page
    assert "| suite | dtype | fprop, batch 1 |\n| --- | --- | ---: |" in block
    assert "| tiny | float32 | 4.00x (2.00x) |" in block
    over = "40.0 (auto:optimized) | 1.25x (torch:channels_last)"
    assert f"| resnext50_32x4d | float32 | {over} |" in block
    (summary,) = report.summarise(two_layers())
    share = f"{summary.peak_fraction:.0%}"
    assert f"| tiny | fprop | float32 | 4.00x (2.00x) | {share} |" in page
    assert "| dtype | batch | auto | auto:optimized | torch:channels_last |" in page
    assert "| resnext50_32x4d | float32 | 2 | 62.5 | 40.0 | 50.0 |" in page, "none that is wrong"
    assert "![tiny on device](plots/device/tiny.svg)" in page


def test_readme_tells_what_cardinality_costs():
    """Of the fastest forms: of ours 40 ms over 20, of PyTorch's 50 over 40."""
    module = script("update_readme")
    result = model_result()
    assert "over that of ResNet-50" not in module.readme_block({"device": [result]})
    resnet = {"auto": 30.0, "auto:optimized": 20.0, "torch:channels_last": 40.0}
    for record in list(result["records"]):
        ms = resnet.get(record["implementation"])
        result["records"].append(record | {"problem": "resnet50", "ms_median": ms})
    assert "float32, batch 2: 2.00 (1.25). The paper" in module.readme_block({"device": [result]})


def test_a_gpu_is_bound_by_its_roofline():
    module = script("update_readme")
    result = two_layers()
    result["machine"] |= {"device": "cuda", "processor": "a GPU"}
    page = module.docs_page({"gpu": [result]})
    assert "a GPU, torch" in page and "of roofline" in page
    (summary,) = report.summarise(result)
    assert f"| 4.00x (2.00x) | {summary.roofline_fraction:.0%} |" in page


def test_models_without_a_peer_have_no_ratio(folder):
    module = script("update_readme")
    result = model_result()
    result["records"] = result["records"][:2]
    assert "| resnext50_32x4d | float32 | - | - |" in module.readme_block({"device": [result]})


def test_readme_is_written_between_its_markers():
    module = script("update_readme")
    block = module.readme_block({"device": [two_layers()]})
    readme = f"head\n{module.BEGIN}\nold\n{module.END}\ntail\n"
    written = module.with_results(readme, block)
    assert "old" not in written and block in written
    assert written.startswith("head\n") and written.endswith("\ntail\n")
    assert module.with_results(written, block) == written
    with pytest.raises(ValueError, match="markers"):
        module.with_results("head", block)
    assert "No results are committed yet" in module.readme_block({})
    assert "No results are committed yet" in module.docs_page({})


def test_plots_are_drawn_and_stale_ones_removed(folder, tmp_path):
    pytest.importorskip("matplotlib")
    module = script("update_plots")
    plots = tmp_path / "plots"
    (plots / "device").mkdir(parents=True)
    (plots / "device" / "gone.svg").write_text("")
    module.write(folder, plots)
    names = {path.relative_to(plots).as_posix() for path in plots.glob("*/*")}
    assert names == {"device/tiny.svg", "device/model.svg"}
    assert plot.digest(two_layers()) in (plots / "device" / "tiny.svg").read_text()
