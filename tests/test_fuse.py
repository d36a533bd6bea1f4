"""`optimize_for_inference`: whole models, what it refuses, what becomes of the result."""

import copy
import io

import pytest
import torch
from fusible import assert_same, block, images, optimised, own, parts_of, small
from interop import import_timm, import_torchvision
from small_models import randomise, relative_error, tiny
from torch import nn
from torch.nn.utils import prune

import resnext_kernels as rk
from resnext_kernels.fused_conv import FusedConv2d, FusedGroupedConv2d

TORCHVISION = ("resnet18", "regnet_y_400mf", "shufflenet_v2_x0_5", "mobilenet_v2")
TIMM = {
    "resnext50_32x4d": {"layers": (1, 2, 1, 1), "cardinality": 4, "base_width": 8},
    "regnety_002": {},
    "efficientnet_lite0": {},
}


def torchvision_resnext():
    resnet = import_torchvision().models.resnet
    return resnet.ResNet(
        resnet.Bottleneck, [1, 2, 1, 1], num_classes=10, groups=4, width_per_group=8
    )


def from_torchvision(name):
    return import_torchvision().models.get_model(name, num_classes=10)


def from_timm(name):
    return import_timm().create_model(name, num_classes=10, **TIMM[name])


MODELS = [
    pytest.param(tiny, id="resnext"),
    pytest.param(lambda: tiny(cardinality=1), id="resnet"),
    pytest.param(torchvision_resnext, id="torchvision-resnext"),
    *(pytest.param(lambda n=n: from_torchvision(n), id=f"torchvision-{n}") for n in TORCHVISION),
    *(pytest.param(lambda n=n: from_timm(n), id=f"timm-{n}") for n in TIMM),
]


@pytest.mark.parametrize("make", MODELS)
def test_models(make):
    model, x = randomise(make()).eval(), images(torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    fast = rk.optimize_for_inference(model)
    convolutions = parts_of(fast, FusedConv2d) + parts_of(fast, FusedGroupedConv2d)
    assert sorted(convolutions) == sorted(fast.report.fused)
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    wide = copy.deepcopy(model).double()
    with torch.no_grad():
        truth = wide(x.double())
        assert relative_error(fast(x), truth) < 4 * relative_error(model(x), truth) + 1e-6
    assert_same(wide, rk.optimize_for_inference(wide), x.double())


def test_every_part_of_the_resnext_is_fused():
    fast = rk.optimize_for_inference(small())
    assert not fast.report.left and not parts_of(fast, (nn.BatchNorm2d, nn.ReLU))
    calls = [node for node in fast.graph.nodes if node.op == "call_module"]
    assert len(calls) == len(fast.report.fused) + 3  # pooling twice, the classifier
    assert set(dict(fast.named_parameters())) == {
        *(f"{name}.{kind}" for name in fast.report.fused for kind in ("weight", "bias")),
        "fc.weight", "fc.bias",
    }  # fmt: skip
    assert not any(
        p.requires_grad for name, p in fast.named_parameters() if not name.startswith("fc")
    )
    text = str(fast.report)
    assert "layer1.0.conv2" in text and "convolution + batch normalisation + ReLU" in text
    assert fast.report.fused["layer2.1.conv3"].endswith("residual sum + ReLU")


def test_bad_models():
    with pytest.raises(TypeError, match="model: int, expected a torch.nn.Module"):
        rk.optimize_for_inference(3)
    with pytest.raises(rk.ProblemError, match="model: ResNeXt is in training mode"):
        rk.optimize_for_inference(tiny())
    model = tiny().eval()
    model.layer2.train()
    with pytest.raises(rk.ProblemError, match="its part 'layer2' is in training mode"):
        rk.optimize_for_inference(model)
    lazy = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d()).eval()
    with pytest.raises(rk.ProblemError, match="its part '0' is lazy, expected after its first"):
        rk.optimize_for_inference(lazy)
    lazy(images(torch.float32))
    assert rk.optimize_for_inference(lazy).report.fused


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_models_that_cannot_be_recorded_or_copied():
    scripted = torch.jit.script(nn.Conv2d(3, 3, 1).eval())
    with pytest.raises(rk.ProblemError, match="model: RecursiveScriptModule is TorchScript"):
        rk.optimize_for_inference(scripted)
    with pytest.raises(rk.ProblemError, match="model: OptimizedModule is compiled, expected"):
        rk.optimize_for_inference(torch.compile(nn.Sequential(nn.Conv2d(3, 3, 1)).eval()))
    pruned = prune.random_unstructured(nn.Conv2d(3, 3, 1), "weight", 0.5).eval()
    with pytest.raises(rk.ProblemError, match="model: Conv2d expected one that can be copied"):
        rk.optimize_for_inference(pruned)


def test_copies_pickles_and_state_dicts():
    model, x = small(), images(torch.float32)
    fast = rk.optimize_for_inference(model)
    ref = fast(x)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    other = rk.optimize_for_inference(small())
    other(x)
    other.load_state_dict(fast.state_dict())
    again = rk.optimize_for_inference(fast)
    for same in (copy.deepcopy(fast), torch.load(file, weights_only=False), other, again):
        assert torch.equal(same(x), ref)
        assert same is again or str(getattr(same, "report", "")) == str(fast.report)


def test_inference_mode_and_gradient_by_the_input():
    model, x = small().double(), images()
    with torch.inference_mode():
        fast = rk.optimize_for_inference(model)
        ref = fast(x)
    assert torch.equal(fast(x), ref)
    grads = []
    for network in (model, fast):
        y = x.clone().requires_grad_()
        network(y).square().sum().backward()
        grads.append(y.grad)
    assert relative_error(*grads) < 1e-10


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_in_one_graph(dynamic):
    model, x = small(), images(torch.float32)
    fast = rk.optimize_for_inference(model)
    torch.compiler.reset()
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    with torch.no_grad():
        assert relative_error(compiled(x), model(x)) < 1e-5


def test_exported():
    model, x = small(), images(torch.float32)
    fast = rk.optimize_for_inference(model)
    batch = torch.export.Dim("batch", min=2, max=8)
    program = torch.export.export(fast, (x,), dynamic_shapes=((batch, None, None, None),))
    calls = [node.target for node in program.graph.nodes if "grouped_conv2d" in str(node.target)]
    assert calls == 3 * [torch.ops.resnext_kernels.grouped_conv2d_fused.default]
    y = torch.cat((x, x))
    assert relative_error(program.module()(y), model(y)) < 1e-5


def test_swap_after_it_sets_the_backend():
    model, x = small(), images(torch.float32)
    fast = rk.optimize_for_inference(model)
    report = rk.replace_grouped_convs(fast, backend="aten")
    assert list(report.replaced) == parts_of(fast, FusedGroupedConv2d)
    assert relative_error(fast(x), model(x)) < 1e-5


def test_channels_last_throughout():
    fast = rk.optimize_for_inference(tiny(stem="cifar").eval())
    seen = []
    for name in fast.report.fused:
        fast.get_submodule(name).register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        fast(images(torch.float32))
    assert len(seen) == len(fast.report.fused)
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in seen)


@pytest.mark.parametrize("name", ["meta", "graph", "_graph", "code", "recompile", "shape_env"])
@pytest.mark.parametrize("kind", [lambda: nn.Conv2d(8, 8, 1), lambda: nn.Parameter(torch.ones(8))])
def test_names_that_the_copy_uses_itself(name, kind):
    def run(self, x):
        part = getattr(self, name)
        return part(self.conv(x)) if isinstance(part, nn.Module) else self.conv(x) * part.sum()

    model = own(run, **block())
    setattr(model, name, kind())
    with pytest.raises(rk.ProblemError, match=f"Own has a part named '{name}', as torch.fx"):
        rk.optimize_for_inference(model.eval())


def test_a_part_named_report():
    model = own(lambda self, x: self.report(self.bn(self.conv(x))), **block(report=nn.ReLU6()))
    fast = optimised(model)
    for same in (fast, copy.deepcopy(fast)):
        assert "conv" in same.meta["report"].fused and isinstance(same.report, nn.ReLU6)
        assert_same(model, same, images(channels=8))
