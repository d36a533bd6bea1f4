"""The suites: layers of models as others build them, and files of the user's own."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest
import torch
from interop import import_timm
from problems import problem

from resnext_kernels.bench import custom, recorded, suites
from resnext_kernels.bench.suites import Layer, ModelLayer


def layers_of_timm(name: str) -> Counter[str]:
    """How often a model of timm has each grouped layer, by the layer's name."""
    with torch.device("meta"):
        model = import_timm().create_model(name)
        found = recorded.grouped_layers(model, torch.empty(1, 3, 224, 224))
    return Counter({str(layer): layer.count for layer in found})


@pytest.mark.parametrize("name", suites.REGNETS)
def test_regnets_are_timms(name):
    made = [layer for stage in range(1, 5) for layer in suites.REGNETS[name].stage(stage)]
    known = Counter({str(x): x.count for x in made if x.groups > 1})
    assert known == layers_of_timm(name)


@pytest.mark.parametrize("name", suites.DEPTHWISE)
def test_depthwise_layers_are_timms(name):
    found = layers_of_timm(name)
    for layer in suites.DEPTHWISE[name]:
        assert layer.count == found[str(layer)] and layer.groups == layer.channels


def test_suites_show_the_widths_of_the_field():
    regnet = {x.channels // x.groups for x in suites.SUITES["regnet"]}
    assert regnet == {8, 16, 24, 48, 56, 112, 120, 168}
    assert {x.stride for x in suites.SUITES["regnet"]} == {1, 2}
    others = {x.channels // x.groups for s in suites.SUITES for x in suites.SUITES[s]} - regnet
    assert {x.channels // x.groups for x in suites.SUITES["widths"]} < others
    assert {x.kernel for x in suites.SUITES["depthwise"]} == {3, 5, 7}
    for layers in suites.SUITES.values():
        assert len(set(map(str, layers))) == len(layers)


def test_names_leave_out_what_is_usual():
    assert str(Layer(128, 56, 1, 32, 3)) == "128x56x56 g32"
    assert str(Layer(256, 56, 2, 32, 1)) == "256x56x56 g32 s2"
    assert str(Layer(144, 56, 2, 144, 1, 5)) == "144x56x56 g144 k5 s2"
    turned = problem(
        4, 8, groups=3, batch=1, size=(9, 12), kernel=(1, 3), stride=(1, 2), padding=(0, 2),
        dilation=(2, 1),
    )  # fmt: skip
    assert str(ModelLayer(turned, 1)) == "12x9x12->24 g3 k1x3 s1x2 p0x2 d2x1"


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 2}, {"in_channels": 16}, {"in_size": (7, 6)}, {"out_channels": 32},
        {"kernel": (5, 3)}, {"stride": (2, 1)}, {"padding": (0, 0)}, {"dilation": (1, 2)},
        {"groups": 4},
    ],
    ids=str,
)  # fmt: skip
def test_other_problems_have_other_names(change):
    plain = problem(4, groups=2, batch=1, padding=(2, 2))
    assert suites.name_of(dataclasses.replace(plain, **change)) != suites.name_of(plain)


def suite_file(tmp_path, content: object):
    path = tmp_path / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


PLAIN = {"in_channels": 32, "groups": 8, "size": 14}


def test_a_file_of_layers(tmp_path):
    every = {
        "in_channels": 32, "out_channels": 64, "groups": 4, "size": [14, 10], "kernel": [3, 5],
        "stride": 2, "padding": [1, 0], "dilation": [1, 2], "count": 3,
    }  # fmt: skip
    dilated = PLAIN | {"kernel": 5, "dilation": 2}
    path = suite_file(tmp_path, [PLAIN, every, dilated, PLAIN | {"count": 4}])
    plain, full, same = custom.read_suite(path)
    assert [layer.count for layer in (plain, full, same)] == [1 + 4, 3, 1]
    found = plain.problem(2, torch.bfloat16)
    assert found.input_shape == found.output_shape == (2, 32, 14, 14)
    assert (found.kernel, found.groups, found.dtype) == ((3, 3), 8, torch.bfloat16)
    found = full.problem(1, torch.float32)
    assert found.weight_shape == (64, 8, 3, 5)
    assert (found.stride, found.padding, found.dilation) == ((2, 2), (1, 0), (1, 2))
    assert same.problem(1, torch.float32).out_size == (14, 14)


@pytest.mark.parametrize(
    "content, expected",
    [
        ("[", "expected JSON"),
        ("{}", "dict, expected a list of objects"),
        ("[]", "an empty list, expected a list of objects"),
        ([PLAIN, 3], "entry 2: 3: expected an object"),
        ([{"groups": 8, "size": 14}], "entry 1: in_channels: missing"),
        ([PLAIN | {"channels": 3}], "entry 1: channels=3: unknown field, expected one of in_cha"),
        ([PLAIN | {"groups": 5}], "groups=5: expected a divisor of in_channels (32)"),
        ([PLAIN | {"out_channels": 12}], "groups=8: expected a divisor of out_channels (12)"),
        ([PLAIN | {"groups": 0}], "groups=0: expected an int >= 1"),
        ([PLAIN | {"count": 2.5}], "count=2.5: expected an int"),
        ([PLAIN | {"size": "14"}], "size='14': expected an int or a pair of ints"),
        ([PLAIN | {"size": [1, 2, 3]}], "size=[1, 2, 3]: expected an int or a pair of ints"),
        ([PLAIN | {"stride": 0}], "stride=0: expected values >= 1"),
        ([PLAIN | {"padding": -1}], "padding=-1: expected values >= 0"),
        ([PLAIN | {"kernel": True}], "kernel=True: expected an int"),
        ([PLAIN | {"dilation": None}], "dilation=None: expected an int"),
        ([PLAIN | {"kernel": 15, "padding": 0}], "kernel=(15, 15): expected at most the padded"),
    ],
    ids=str,
)
def test_a_file_that_is_no_suite(tmp_path, content, expected):
    path = suite_file(tmp_path, content)
    with pytest.raises(custom.SuiteError) as caught:
        custom.read_suite(path)
    assert str(caught.value).startswith(f"{path}: ") and expected in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(custom.SuiteError, match=path.name):
            custom.read_suite(path)


def test_what_is_asked_for_twice_is_one_case():
    twice = ["fprop", "fprop"], [torch.float32] * 2, [1, 1]
    once = ["fprop"], [torch.float32], [1]
    assert suites.cases_of("resnext50", *twice) == suites.cases_of("resnext50", *once)
