"""`demo`: its photographs and weights, what it prints and writes, and where it refuses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import fails_in_one_line, quick, without

from resnext_kernels import models
from resnext_kernels.cli import demo, main, photographs

__all__ = ["quick"]
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def small_demo(monkeypatch):
    """The demo on a small ResNeXt and random images."""
    pytest.importorskip("skimage")
    pytest.importorskip("matplotlib")
    small = partial(models.ResNeXt, (1, 1), cardinality=4, bottleneck_width=4)

    def build(weights=None):
        model = small()
        if weights is not None:
            models.load_weights(model, weights)
        return model

    monkeypatch.setattr(models, "resnext50_32x4d", build)
    monkeypatch.setattr(photographs, "load", lambda: torch.randn(4, 3, 32, 32))
    monkeypatch.setattr(demo, "_SECONDS_PER_MODEL_BATCH", 0)
    return small


def test_demo_shows_before_and_after(small_demo, tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr()
    assert "seeded random weights" in text.out
    assert "2 replaced" in text.out
    assert text.out.count(" yes ") == 4
    assert "largest logit difference" in text.out and "relative error" in text.out
    assert "speed-up over the faster" in text.out
    assert [f"{i}/4" in text.err for i in range(1, 5)] == [True] * 4
    result = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert {(r["direction"], r["batch"]) for r in result["records"]} == {
        ("fprop", 1), ("fprop", 8), ("dgrad", 1), ("wgrad", 1),
    }  # fmt: skip
    assert (tmp_path / "out" / "bench.png").stat().st_size > 10_000


def test_demo_takes_weights_from_a_file(small_demo, tmp_path, capsys):
    path = tmp_path / "weights.pth"
    state = small_demo().state_dict()
    torch.save(state, path)
    images = torch.randn(2, 3, 32, 32)
    model = demo.build(str(path), images)
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convs and all(type(m) is torch.nn.Conv2d for m in convs)
    assert not model.training
    assert main(["demo", "--weights", str(path), "--out", str(tmp_path)]) == 0
    assert f"weights from {path}" in capsys.readouterr().out


def test_demo_fails_where_logits_differ(small_demo, monkeypatch, tmp_path, capsys):
    swap = demo.replace_grouped_convs

    def wrong(model):
        torch.nn.init.zeros_(model.fc.weight)
        return swap(model)

    monkeypatch.setattr(demo, "replace_grouped_convs", wrong)
    assert main(["demo", "--out", str(tmp_path)]) == 1
    assert "logits differ: relative error" in capsys.readouterr().out


def test_demo_refuses_bad_weights_in_one_line(small_demo, tmp_path, capsys):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not a checkpoint")
    out = ["--out", str(tmp_path / "out")]
    fails_in_one_line(capsys, ["demo", "--weights", str(path), *out], str(path))
    fails_in_one_line(capsys, ["demo", "--weights", "nowhere.pth", *out], "nowhere.pth")
    torch.save({"stranger": torch.zeros(1)}, path)
    fails_in_one_line(capsys, ["demo", "--weights", str(path), *out], "stranger")


@pytest.mark.parametrize("module, package", [("skimage", "scikit-image"), ("matplotlib",) * 2])
def test_demo_says_what_to_install(small_demo, monkeypatch, capsys, module, package):
    without(monkeypatch, module)
    fails_in_one_line(capsys, ["demo"], package, "pip install")


def test_demo_refuses_a_file_as_its_folder(small_demo, capsys):
    fails_in_one_line(capsys, ["demo", "--out", __file__], "--out", Path(__file__).name)


def test_photographs_are_real_and_normalised():
    pytest.importorskip("skimage")
    images = photographs.load()
    assert images.shape == (4, 3, 224, 224) and images.dtype == torch.float32
    assert images.abs().max() < 3 and images.std(dim=(1, 2, 3)).min() > 0.3


def test_a_photograph_is_resized_and_cropped_about_its_centre():
    mean, std = (torch.tensor(v) for v in (photographs._MEAN, photographs._STD))
    grey = torch.full((300, 500, 3), 128, dtype=torch.uint8)
    expected = ((128 / 255 - mean) / std).view(3, 1, 1).expand(3, 224, 224)
    torch.testing.assert_close(photographs.prepare(grey), expected)
    ramp = torch.linspace(0, 255, 512).round().to(torch.uint8)[None, :, None].expand(256, 512, 3)
    row = photographs.prepare(ramp.contiguous())[0, 0] * std[0] + mean[0]
    assert row[[0, -1]].mean() == pytest.approx(0.5, abs=0.01)
    assert (row[-1] - row[0]).item() == pytest.approx(223 / 511, abs=0.01)
