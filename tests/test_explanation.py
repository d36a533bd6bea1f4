"""What is told of a call, and of all calls of a model: backends, reasons, predicted times."""

import dataclasses
import re

import numpy
import pytest
import torch
from problems import problem
from small_models import tiny
from torch import nn
from user_tables import cache, table  # noqa: F401

import resnext_kernels as rk
from resnext_kernels import dispatch, tuning, user_table
from resnext_kernels.backends import BACKENDS, cpu
from resnext_kernels.calls import ModelError, grouped_calls
from resnext_kernels.measured import Measured
from resnext_kernels.problem import DIRECTIONS


def operands(case=None):
    case = case or problem(8)
    return torch.randn(case.input_shape), torch.randn(case.weight_shape)


def test_a_call():
    case = problem(8)
    explanation = rk.explain(*operands(case), padding=1, groups=2)
    assert explanation.problem == case
    for direction in DIRECTIONS:
        chosen = dispatch.choose(case, direction).NAME
        assert explanation.chosen[direction] == chosen
        assert set(explanation.reasons[direction]) == set(BACKENDS) - {chosen}
        assert re.search(
            rf"^  {direction}: {chosen}(, [\d.]+ ms predicted)?$", str(explanation), re.M
        )
    for name, reasons in explanation.reasons["fprop"].items():
        assert reasons
        assert f"    not {name}: {'; '.join(reasons)}" in str(explanation)


def test_raises_as_the_call_would():
    with pytest.raises(rk.ProblemError, match="groups=3: expected a positive divisor"):
        rk.explain(*operands(), groups=3)
    with pytest.raises(rk.ProblemError, match="stride=0: expected"):
        rk.explain(*operands(), stride=0, groups=2)


@pytest.mark.parametrize(
    "arguments",
    [{"padding": "same"}, {"padding": "valid"}, {"stride": (2, 1), "padding": [1], "dilation": 2}],
    ids=str,
)
def test_takes_what_the_call_takes(arguments):
    assert rk.explain(*operands(), groups=2, **arguments).chosen["fprop"] in BACKENDS
    assert rk.explain(operands()[0][0], operands()[1], groups=2, **arguments)


def test_a_call_under_autocast():
    input, weight = operands()
    with torch.autocast("cpu", torch.bfloat16):
        found = rk.explain(input.bfloat16(), weight, padding=1, groups=2)
    assert found.problem == dataclasses.replace(problem(8), dtype=torch.bfloat16)


@pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message)
@pytest.mark.parametrize("winner", ["cpu", "aten"])
def test_predicted_times_follow_the_nearest_measurement(cache, winner):  # noqa: F811
    """Twice the images take twice as long; without a measurement nothing is predicted."""
    case = problem(8, batch=2, groups=4, size=(14, 14))
    ms = {"cpu": 2.0, "aten": 2.0, winner: 1.5}
    records = [Measured.of(case, d, ours=ms["cpu"], aten=ms["aten"]) for d in DIRECTIONS]
    user_table.write("cpu", "cpu", {tuning.hardware(cpu.isa(), "float32"): records})
    dispatch.choose.cache_clear()
    tuning._shipped.cache_clear()
    input, weight = torch.randn(4, 32, 14, 14), torch.randn(case.weight_shape)
    explanation = rk.explain(input, weight, padding=1, groups=4)
    assert explanation.predicted == dict.fromkeys(DIRECTIONS, 3.0)
    assert f"  dgrad: {winner}, 3 ms predicted\n" in str(explanation)
    unknown = rk.explain(input, weight, padding=1, groups=4, dilation=2)
    assert unknown.predicted == dict.fromkeys(DIRECTIONS)
    assert "predicted" not in str(unknown)


def test_a_model():
    model = tiny(layers=(2, 1, 1, 2))
    images = torch.randn(2, 3, 64, 64)
    explanation = rk.explain(model, images)
    calls = grouped_calls(model, images)
    assert [name for layer in explanation.layers for name in layer.names] == [c.name for c in calls]
    assert len(calls) == 6 > len(explanation.layers)  # equal layers are told of together
    for layer in explanation.layers:
        for direction in DIRECTIONS:
            chosen = dispatch.choose(layer.call.problem, direction).NAME
            assert layer.replaced and layer.call.chosen[direction] == chosen
            assert layer.call.decisive_reason(direction) in str(explanation)
    assert str(explanation).startswith("ResNeXt: 6 calls of grouped convolutions\n")
    assert "all dgrad: " in str(explanation) and "replace_grouped_convs" not in str(explanation)


def test_the_total_counts_every_call():
    explanation = rk.explain(tiny(), torch.randn(1, 3, 64, 64))
    times = [layer.call.predicted["fprop"] for layer in explanation.layers for _ in layer.names]
    known = [time for time in times if time is not None]
    line = f"all fprop: {sum(known):.3g} ms predicted for {len(known)} of {len(times)} calls"
    assert line in str(explanation)


def test_layers_that_name_a_backend_and_layers_not_replaced():
    model = nn.Sequential(
        rk.GroupedConv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 8, 1)
    )
    model[0].backend = "aten"
    explanation = rk.explain(model, torch.randn(1, 8, 9, 9))
    first, second = explanation.layers
    assert set(first.call.chosen.values()) == {"aten"} and first.replaced
    assert first.call.reasons["fprop"]["cpu"] == ["the layer names 'aten'"]
    assert second.names == ("1",) and not second.replaced
    assert "1 of them run PyTorch's own until replace_grouped_convs is called" in str(explanation)


def test_convolutions_of_other_classes_are_counted():
    class Own(nn.Conv2d):
        pass

    model = nn.Sequential(Own(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=4), Own(8, 8, 1))
    explanation = rk.explain(model, torch.randn(1, 8, 9, 9))
    assert explanation.others == {"Own": 1} and len(explanation.layers) == 1
    assert "1 grouped convolutions of the class Own are left as they are" in str(explanation)


def test_a_convolution_is_a_model():
    explanation = rk.explain(nn.Conv2d(8, 8, 3, groups=2), torch.randn(1, 8, 9, 9))
    assert explanation.layers[0].names == ("",)
    assert "contiguous: (the model itself)\n" in str(explanation)


def test_a_model_without_grouped_convolutions():
    explanation = rk.explain(nn.Conv2d(3, 3, 1), torch.randn(1, 3, 4, 4))
    assert str(explanation) == "Conv2d: 0 calls of grouped convolutions"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, torch.ones(4, 2, 3, 3)), "input: NoneType, expected a Tensor"),
        ((numpy.ones((1, 4, 5, 5)), torch.ones(4, 2, 3, 3)), "input: ndarray, expected a Tensor"),
        ((nn.Conv2d, torch.ones(1, 4, 5, 5)), "input: type, expected a Tensor"),
        ((torch.ones(1, 4, 5, 5), [1.0]), "weight: list, expected a Tensor"),
    ],
)
def test_what_is_no_tensor(arguments, message):
    with pytest.raises(TypeError, match=message):
        rk.explain(*arguments)


@pytest.mark.parametrize("extra", [{"stride": 2}, {"padding": "same"}, {"groups": 4}])
def test_a_model_takes_its_images_alone(extra):
    ((name, value),) = extra.items()
    with pytest.raises(TypeError, match=f"{name}={value!r}.*: expected with tensors"):
        rk.explain(tiny(), torch.randn(1, 3, 64, 64), **extra)


@pytest.mark.skipif(not cpu.LIBRARY.loaded, reason=cpu.LIBRARY.message)
def test_the_decisive_reason_is_not_of_a_backend_for_other_devices(monkeypatch):
    """Where ATen is the faster one, the reason is the measurement that tells so."""
    slower = tuning.Comparison(True, "aten measured faster")
    monkeypatch.setattr(tuning, "compare", lambda *arguments: slower)
    dispatch.choose.cache_clear()
    explanation = rk.explain(*operands(), padding=1, groups=2)
    dispatch.choose.cache_clear()
    for direction in DIRECTIONS:
        assert explanation.chosen[direction] == "aten"
        assert explanation.decisive_reason(direction) == "aten measured faster"


def test_a_model_that_fails():
    with pytest.raises(ModelError, match=r"ResNeXt fails on input \(1, 4, 64, 64\): RuntimeError"):
        rk.explain(tiny(), torch.randn(1, 4, 64, 64))


@pytest.mark.parametrize("part", ["whole", "inner"])
def test_a_model_that_was_compiled_and_has_run(part):
    model = nn.Sequential(nn.Identity(), nn.Conv2d(8, 8, 3, groups=4)).eval()
    (model if part == "whole" else model[1]).compile(backend="eager")
    images = torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        model(images)
    for _ in range(2):
        assert [call.name for call in grouped_calls(model, images)] == ["1"]
