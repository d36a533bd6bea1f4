"""Loading weights from every source, and the stand-in where there are none."""

import hashlib
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
from interop import import_torchvision
from small_models import randomise, relative_error, tiny
from torch import nn

from resnext_kernels import models
from resnext_kernels.models import calibrated, load_weights

PUBLISHED = ("resnet50", "resnet101", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")


def save(state, path):
    if path.suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(state, path)
    else:
        torch.save(state, path)


@pytest.mark.parametrize("as_text", [False, True], ids=["Path", "str"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_files_load_exactly(suffix, as_text, tmp_path):
    source = randomise(tiny(layers=(1, 2))).eval()
    file = tmp_path / f"weights{suffix}"
    save(source.state_dict(), file)
    model = tiny(layers=(1, 2)).eval()
    load_weights(model, str(file) if as_text else file)
    images = torch.randn(2, 3, 33, 33)
    assert torch.equal(model(images), source(images))


@pytest.mark.parametrize("name", models.__all__)
def test_factories_take_weights(name, tmp_path, monkeypatch):
    """Every factory hands its own name and model on, so names resolve for that architecture."""
    seen = {}
    monkeypatch.setattr(
        models.family,
        "load_weights",
        lambda model, weights, **options: seen.update(options, model=model, weights=weights),
    )
    with torch.device("meta"):
        model = getattr(models, name)(weights="DEFAULT", progress=False)
    assert seen == {
        "model": model,
        "weights": "DEFAULT",
        "architecture": name,
        "progress": False,
    }


def test_loading_through_a_factory(tmp_path):
    source = randomise(models.resnext29_8x64d(num_classes=5)).eval()
    torch.save(source.state_dict(), tmp_path / "cifar.pt")
    model = models.resnext29_8x64d(weights=tmp_path / "cifar.pt", num_classes=5).eval()
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(model(images), source(images))


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_names_are_torchvisions_files(architecture, monkeypatch):
    enumeration = import_torchvision().models.get_model_weights(architecture)
    state = tiny().state_dict()
    asked = []
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda url, **_: asked.append(url) or state
    )
    for name, member in {**enumeration.__members__, "DEFAULT": enumeration.DEFAULT}.items():
        load_weights(tiny(), name, architecture=architecture)
        load_weights(tiny(), member)
        assert asked[-2:] == [member.url] * 2


def test_download_is_cached_by_torch_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    source = randomise(tiny()).eval()
    torch.save(source.state_dict(), tmp_path / "plain.pth")
    digest = hashlib.sha256((tmp_path / "plain.pth").read_bytes()).hexdigest()[:8]
    file = (tmp_path / "plain.pth").rename(tmp_path / f"tiny-{digest}.pth")
    weights = SimpleNamespace(url=file.as_uri())
    images = torch.randn(2, 3, 33, 33)
    for _ in range(2):
        model = tiny().eval()
        load_weights(model, weights, progress=False)
        assert torch.equal(model(images), source(images))
        file.unlink(missing_ok=True)


def test_failed_download_says_what_was_tried(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = "http://127.0.0.1:9/resnext50_32x4d-1a0047aa.pth"
    with pytest.raises(ConnectionError, match=f"{url} .*pass its path as weights="):
        load_weights(tiny(), SimpleNamespace(url=url), progress=False)


def test_damaged_downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "tiny-deadbeef.pth"
    torch.save(tiny().state_dict(), file)
    with pytest.raises(ConnectionError, match=f"{file.as_uri()} .*invalid hash value"):
        load_weights(tiny(), SimpleNamespace(url=file.as_uri()), progress=False)
    kept = tmp_path / "hub" / "checkpoints" / file.name
    kept.write_bytes(b"PK")
    with pytest.raises(ValueError, match=f"{file.as_uri()} in {kept} is damaged .*; remove it"):
        load_weights(tiny(), SimpleNamespace(url=file.as_uri()), progress=False)


def without(key):
    return lambda state: {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("layer2.1.bn2.bias"), "missing: layer2.1.bn2.bias$"),
        (lambda s: s | {"extra": torch.ones(1)}, "unexpected: extra$"),
        (
            lambda s: s | {"layer1.0.conv2.weight": torch.ones(32, 4, 3, 3)},
            r"layer1.0.conv2.weight is \(32, 4, 3, 3\), expected \(32, 8, 3, 3\)",
        ),
        (
            lambda s: s | {"fc.weight": torch.ones(3, 2048), "fc.bias": torch.ones(3)},
            "num_classes=7 does not fit the weights: expected 3",
        ),
        (lambda s: s | {"epoch": 3}, "not tensors by name: epoch"),
        (lambda s: {}, "an empty mapping"),
        (lambda s: {1: torch.ones(1), **s}, "not tensors by name: 1; expected a state_dict"),
        (lambda s: {f"{i}.weight": torch.ones(1) for i in range(5)}, "5 numbered modules"),
        (
            lambda s: {f"4.0.0.0.{i}.weight": torch.ones(1) for i in range(4)},
            "branch 0 of block 4.0 has 4 modules with parameters; expected 6",
        ),
        (
            lambda s: {f"backbone.{key}": value for key, value in s.items()},
            r"missing: bn1.bias, .* and \d+ more; unexpected: backbone.bn1.bias, .* and \d+ more$",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(damage, message):
    model = tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights(model, damage(randomise(tiny()).state_dict()))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def truncated(path):
    torch.save(tiny().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])


def short(path):
    torch.save(tiny().state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("short.pth", short, "short.pth.: not a file that torch"),
        ("text.pth", lambda path: path.write_text("weights"), "text.pth.: not a file that torch"),
        ("empty.pt", lambda path: path.write_bytes(b""), "empty.pt.: not a file that torch"),
        ("cut.pth", truncated, "cut.pth.: not a file that torch"),
        (
            "code.pth",
            lambda path: path.write_bytes(pickle.dumps(print, 2)),
            "code.pth.: not a file",
        ),
        ("list.pth", lambda path: torch.save([1], path), "list.pth. holds a list; expected"),
        ("w.safetensors", lambda path: path.write_text("weights"), "not a safetensors file"),
    ],
)
def test_unreadable_files_are_named(name, write, message, tmp_path):
    if name.endswith(".safetensors"):
        pytest.importorskip("safetensors")
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        load_weights(tiny(), tmp_path / name)


@pytest.mark.parametrize(
    ("weights", "architecture", "message"),
    [
        ("absent.pth", "", "weights='absent.pth': no such file; expected the path"),
        (
            "IMAGENET1K_V2",
            "resnext101_64x4d",
            "'IMAGENET1K_V2': no such file; expected IMAGENET1K_V1, DEFAULT or the path",
        ),
        ("DEFAULT", "resnext152_32x4d", "'DEFAULT': no such file; expected the path"),
        (3, "resnet50", "weights=3: expected a path, a name, a state_dict"),
    ],
)
def test_unknown_sources_are_named(weights, architecture, message):
    with pytest.raises(ValueError, match=message):
        load_weights(tiny(), weights, architecture=architecture)


def test_safetensors_file_without_the_package(tmp_path, monkeypatch):
    (tmp_path / "w.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        load_weights(tiny(), tmp_path / "w.safetensors")


def test_weights_keep_the_models_dtype():
    source = randomise(tiny())
    model = tiny().bfloat16()
    load_weights(model, source.state_dict())
    assert torch.equal(model.fc.weight, source.fc.weight.bfloat16())


def test_calibrated_statistics_are_those_of_the_images():
    images = torch.randn(6, 3, 64, 64).cumsum(2) / 8
    seen = {}

    def observe(norm, args):
        if norm.training:
            seen[norm] = torch.var_mean(args[0].double(), (0, 2, 3))

    def build():
        model = tiny()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(observe)
        return model

    model = calibrated(build, images)
    assert len(seen) == 1 + 6 * 3 + 4
    for norm, (variance, mean) in seen.items():
        assert relative_error(norm.running_var, variance) < 1e-5
        assert (norm.running_mean - mean).norm() / variance.sqrt().norm() < 1e-5
        assert norm.momentum == 0.1
    assert not model.training


def test_calibrated_logits_are_finite_and_vary():
    images = torch.randn(6, 3, 64, 64).cumsum(2) / 8
    model = calibrated(models.resnext50_32x4d, images)
    with torch.no_grad():
        logits = model(images)
    assert logits.isfinite().all()
    assert (logits.std(0).mean() / logits.std()) > 0.05


def test_calibrated_depends_on_the_seed_alone():
    images = torch.randn(2, 3, 64, 64)
    state = torch.get_rng_state()
    first, second, other = (calibrated(tiny, images, seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize(
    "images", [torch.ones(3, 8, 8), torch.ones(0, 3, 8, 8), torch.ones(1, 3, 8, 8).byte()]
)
def test_calibrated_names_bad_images(images):
    with pytest.raises(ValueError, match="images of shape .* expected floating-point"):
        calibrated(tiny, images)
