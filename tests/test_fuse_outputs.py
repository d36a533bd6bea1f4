"""What an optimised model returns comes in the containers of the original."""

import copy
import pickle
from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import pytest
import torch
from fusible import block, images, optimised, own
from interop import import_torchvision
from small_models import relative_error
from torch.utils import _pytree as pytree

import resnext_kernels as rk

Pair = namedtuple("Pair", "first second")


class Typed(NamedTuple):
    first: torch.Tensor
    second: int = 3


@dataclass
class Record:
    first: torch.Tensor
    second: Any = None


@dataclass
class ModelOutput(OrderedDict):
    """A dataclass that is a dict of what is not None, as other libraries have it."""

    logits: Any = None
    features: Any = None
    loss: Any = None

    def __post_init__(self):
        for each in fields(self):
            if (value := getattr(self, each.name)) is not None:
                self[each.name] = value


pytree.register_pytree_node(
    ModelOutput,
    lambda output: (list(output.values()), list(output)),
    lambda values, names: ModelOutput(**dict(zip(names, values, strict=True))),
    serialized_type_name="tests.ModelOutput",
)

OUTPUTS = {
    "ordered dict": lambda y, x: OrderedDict(out=y, aux=x),
    "default dict": lambda y, x: defaultdict(list, out=y),
    "deque": lambda y, x: deque([y, x], maxlen=3),
    "named tuple": lambda y, x: Pair(y, x),
    "typed tuple": lambda y, x: Typed(y),
    "dataclass": lambda y, x: Record(y, [x]),
    "model output": lambda y, x: ModelOutput(logits=y, features=(x, y)),
    "of torch": lambda y, x: torch.return_types.max((y, x)),
    "nested": lambda y, x: {"a": [Pair(y, OrderedDict(b=x))], "c": None, 4: (y, "text")},
    "size": lambda y, x: (y, y.shape),
}


def model_returning(outputs):
    return own(lambda self, x: outputs(self.bn(self.conv(x)), x), **block())


def assert_alike(out, expected):
    assert type(out) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert relative_error(out, expected) < 1e-12
    elif isinstance(expected, dict):
        assert list(out) == list(expected)
        assert_alike(list(out.values()), list(expected.values()))
    elif isinstance(expected, Record):
        assert_alike(vars(out), vars(expected))
    elif isinstance(expected, (list, tuple, deque)):
        assert len(out) == len(expected)
        for pair in zip(out, expected, strict=True):
            assert_alike(*pair)
    else:
        assert out == expected


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch copies its own so
@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_come_in_the_same_containers(kind):
    model, x = model_returning(OUTPUTS[kind]), images(channels=8)
    fast, expected = rk.optimize_for_inference(model), model(x)
    assert list(fast.report.fused) == ["conv"]
    for same in (fast, copy.deepcopy(fast), rk.optimize_for_inference(fast)):
        assert_alike(same(x), expected)
    assert_alike(pickle.loads(pickle.dumps(fast))(x), expected)


@pytest.mark.parametrize("kind", ["ordered dict", "named tuple", "model output", "nested"])
def test_outputs_of_a_compiled_model(kind):
    model, x = model_returning(OUTPUTS[kind]), images(channels=8)
    torch.compiler.reset()
    fast = torch.compile(rk.optimize_for_inference(model), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert_alike(fast(x), model(x))


class OwnDict(dict):
    pass


class OwnTuple(tuple):
    pass


@dataclass
class Scaled:
    first: torch.Tensor

    def __post_init__(self):
        self.first = 2 * self.first


@dataclass
class Counted:
    first: torch.Tensor
    calls: int = field(default=1, init=False)


# How a model makes them, and how one that it is a part of reads them.
OTHERS = {
    "a OwnDict is no container": (lambda y: OwnDict(out=y), lambda out: out["out"]),
    "a OwnTuple is no container": (lambda y: [OwnTuple([y])], lambda out: out[0][0]),
    "a Scaled is a dataclass": (lambda y: Scaled(y), lambda out: out.first),
    "a Counted is a dataclass": (lambda y: {"out": Counted(y)}, lambda out: out["out"].first),
}


@pytest.mark.parametrize("reason", OTHERS)
def test_other_containers_are_refused_at_the_end_alone(reason):
    """A graph would return a plain dict or tuple, or go through the constructor twice."""
    make, read = OTHERS[reason]
    inner = model_returning(lambda y, x: make(y))
    with pytest.raises(rk.ProblemError, match=rf"cannot record Own\.forward.*\({reason}"):
        rk.optimize_for_inference(inner)
    fast = optimised(own(lambda self, x: x + read(self.inner(x)), inner=inner))
    assert list(fast.report.fused) == ["inner.conv"]


def test_segmentation_of_torchvision():
    models = import_torchvision().models
    resnet = models.resnet
    backbone = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], groups=4, width_per_group=8)
    model = models.segmentation.fcn._fcn_resnet(backbone, 5, aux=True).eval()
    fast, x = rk.optimize_for_inference(model), torch.randn(1, 3, 64, 64)
    out, expected = fast(x), model(x)
    assert type(out) is OrderedDict and list(out) == list(expected) == ["out", "aux"]
    assert all(relative_error(out[name], expected[name]) < 1e-5 for name in out)
