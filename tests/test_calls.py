"""The grouped convolutions that a model is seen to call."""

import dataclasses

import pytest
import torch
from problems import problem
from small_models import tiny
from torch import nn

import resnext_kernels as rk
from resnext_kernels.calls import ModelError, grouped_calls
from resnext_kernels.problem import ConvProblem


def test_calls_are_described_as_they_are_made():
    conv = nn.Conv2d(16, 16, 3, groups=2, padding=1)
    (call,) = grouped_calls(conv, torch.randn(problem(8).input_shape))
    assert call.module is conv and call.problem == problem(8)
    images = torch.randn(3, 16, 6, 7).to(memory_format=torch.channels_last)
    (call,) = grouped_calls(conv, images)
    assert call.problem.batch == 3 and call.problem.channels_last


@pytest.mark.parametrize(
    "options, size, padding",
    [
        ({"padding": "same"}, (6, 7), (1, 1)),
        ({"padding": 2, "padding_mode": "circular"}, (10, 11), (0, 0)),
        ({"padding": "valid"}, (6, 7), (0, 0)),
    ],
)
def test_padding_modes(options, size, padding):
    (call,) = grouped_calls(nn.Conv2d(4, 4, 3, groups=2, **options), torch.randn(1, 4, 6, 7))
    assert (call.problem.in_size, call.problem.padding) == (size, padding)


def test_images_without_a_batch_and_modules_called_twice():
    conv = rk.GroupedConv2d(4, 4, 3, groups=2, padding=1)
    calls = grouped_calls(nn.Sequential(conv, nn.ReLU(), conv), torch.randn(4, 6, 7))
    assert [call.name for call in calls] == ["0", "0"]
    expected = ConvProblem(
        1, 4, (6, 7), 4, (3, 3), (1, 1), (1, 1), (1, 1), 2, torch.float32, "cpu", False
    )
    assert {call.problem for call in calls} == {expected}


def test_other_modules_are_not_listed():
    class Own(nn.Conv2d):
        pass

    model = nn.Sequential(nn.Conv2d(4, 4, 3), Own(4, 4, 1, groups=2), nn.ReLU())
    assert grouped_calls(model, torch.randn(1, 4, 6, 7)) == []


def test_a_call_by_keyword():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 3, groups=2, padding=1)

        def forward(self, x):
            return self.conv(input=x)

    (call,) = grouped_calls(Own(), torch.randn(problem(8).input_shape))
    assert call.problem == problem(8)


def test_calls_under_autocast_are_in_its_dtype():
    conv = nn.Conv2d(16, 16, 3, groups=2, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        (call,) = grouped_calls(conv, torch.randn(problem(8).input_shape))
    assert call.problem == dataclasses.replace(problem(8), dtype=torch.bfloat16)


def test_calls_of_an_optimised_model():
    model = nn.Sequential(nn.Conv2d(16, 16, 3, groups=2), nn.ReLU(), nn.Conv2d(16, 16, 1, groups=2))
    calls = grouped_calls(rk.optimize_for_inference(model.eval()), torch.randn(1, 16, 6, 7))
    assert [call.problem.channels_last for call in calls] == [True, True]


@pytest.mark.parametrize("wrong", [(torch.randn(1, 3, 64, 64),), None, [[1.0]]], ids=type)
def test_images_are_a_tensor(wrong):
    with pytest.raises(ModelError, match=f"{type(wrong).__name__}, expected a Tensor"):
        grouped_calls(tiny(), wrong)


def test_the_model_is_left_as_it_was():
    model = tiny().train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert len(grouped_calls(model, torch.randn(2, 3, 64, 64))) == 6
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ModelError, match="ResNeXt fails on input"):
        grouped_calls(model, torch.randn(2, 1, 64, 64))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_compiled_model_is_looked_into():
    model = torch.compile(tiny(), backend="eager")
    assert len(grouped_calls(model, torch.randn(1, 3, 64, 64))) == 6


def test_a_lazy_convolution_is_seen_in_its_first_call():
    model = nn.Sequential(nn.LazyConv2d(16, 3, groups=2, padding=1), nn.ReLU())
    (call,) = grouped_calls(model, torch.randn(problem(8).input_shape))
    assert call.problem == problem(8)
