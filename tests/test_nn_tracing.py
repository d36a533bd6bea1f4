"""`GroupedConv2d` under everything that turns modules into graphs."""

import io

import pytest
import torch
from small_models import relative_error
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from resnext_kernels import GroupedConv2d, grouped_conv2d

SETTINGS = [
    dict(kernel_size=3, padding=(1, 2), stride=2),
    dict(kernel_size=(3, 4), padding="same", dilation=2),
    dict(kernel_size=3, padding="valid"),
    dict(kernel_size=3, padding=(1,), stride=(2,), dilation=(1,)),
    dict(kernel_size=3, padding=1, padding_mode="reflect"),
    dict(kernel_size=4, padding="same", padding_mode="circular"),
]
each_setting = pytest.mark.parametrize("settings", SETTINGS, ids=str)


def grouped(settings):
    return GroupedConv2d(8, 12, groups=4, **settings)


def gradients(call, module, x):
    module.zero_grad()
    call(x).square().sum().backward()
    return [parameter.grad for parameter in module.parameters()]


@each_setting
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_in_one_graph(settings, backend):
    module, x = grouped(settings), torch.randn(2, 8, 9, 11)
    torch.compiler.reset()
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    assert relative_error(compiled(x), module(x)) < 1e-6
    for a, b in zip(gradients(compiled, module, x), gradients(module, module, x), strict=True):
        assert relative_error(a, b) < 1e-6


def test_compile_dynamic_shapes():
    module = grouped(SETTINGS[0])
    torch.compiler.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True, dynamic=True)
    for shape in ((2, 8, 9, 11), (3, 8, 12, 7)):
        x = torch.randn(shape)
        assert relative_error(compiled(x), module(x)) < 1e-6


@each_setting
def test_fake_tensors_have_the_true_shape_and_strides(settings):
    module, x = grouped(settings), torch.randn(2, 8, 9, 11)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = module(mode.from_tensor(x.contiguous(memory_format=torch.channels_last)))
    real = module(x.contiguous(memory_format=torch.channels_last))
    assert fake.shape == real.shape
    if module.padding_mode == "zeros":  # until torch 2.13 the fakes of other pads have wrong ones
        assert fake.stride() == real.stride()


@each_setting
def test_meta_device(settings):
    x = torch.randn(2, 8, 9, 11)
    with torch.device("meta"):
        module = grouped(settings)
    out = module(x.to("meta"))
    assert out.is_meta and out.shape == grouped(settings)(x).shape


@each_setting
def test_export(settings):
    module, x = nn.Sequential(grouped(settings)), torch.randn(2, 8, 9, 11)
    program = torch.export.export(module, (x,))
    called = {node.target for node in program.graph.nodes}
    assert torch.ops.resnext_kernels.grouped_conv2d.default in called
    assert relative_error(program.module()(x), module(x)) < 1e-6


def saved_and_loaded(scripted):
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@each_setting
def test_torchscript_script(settings):
    module = grouped(settings)
    scripted = saved_and_loaded(torch.jit.script(nn.Sequential(module, nn.ReLU())))
    for x in (torch.randn(2, 8, 9, 11), torch.randn(8, 12, 9)):
        assert relative_error(scripted(x), module(x).relu()) < 1e-6


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_keeps_the_backend():
    module = grouped(SETTINGS[0])
    module.backend = "nope"
    with pytest.raises(Exception, match="backend='nope': expected one of"):
        torch.jit.script(module)(torch.randn(2, 8, 9, 11))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@each_setting
def test_torchscript_trace(settings):
    module, x = grouped(settings), torch.randn(2, 8, 9, 11)
    traced = saved_and_loaded(torch.jit.trace(module, x))
    assert relative_error(traced(x), module(x)) < 1e-6
    smaller = torch.randn(3, 8, 12, 7)
    assert relative_error(traced(smaller), module(smaller)) < 1e-6
    for a, b in zip(gradients(traced, traced, x), gradients(module, module, x), strict=True):
        assert relative_error(a, b) < 1e-6


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("stride", "padding", "dilation"),
    [(1, "same", (2, 3)), ((1, 1), "valid", (2, 3)), ((1, 1), (2, 3), (2, 3)), (2, 1, 1)],
)
def test_torchscript_of_settings_changed_after_construction(stride, padding, dilation):
    module, x = grouped(SETTINGS[0]), torch.randn(2, 8, 9, 11)
    module.stride, module.padding, module.dilation = stride, padding, dilation
    for compiled in (torch.jit.script(module), torch.jit.trace(module, x)):
        assert relative_error(compiled(x), module(x)) < 1e-6


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_torchscript_refuses_settings_of_three(name):
    module, x = grouped(SETTINGS[0]), torch.randn(2, 8, 9, 11)
    setattr(module, name, (1, 1, 1))
    with pytest.raises(RuntimeError, match=rf"{name}=\(1, 1, 1\): expected a pair of ints"):
        torch.jit.script(module)(x)


@each_setting
def test_symbolic_trace_sees_one_call(settings):
    module = nn.Sequential(grouped(settings), nn.ReLU())
    graph = torch.fx.symbolic_trace(module)
    names = [n.target.__name__ for n in graph.graph.nodes if n.op == "call_function"]
    assert names.count("grouped_conv2d") == 1 and set(names) <= {"getattr", "pad", "grouped_conv2d"}
    x = torch.randn(2, 8, 9, 11)
    assert torch.equal(graph(x), module(x))


class Direct(nn.Module):
    """Calls the function itself, as models written on `F.conv2d` do."""

    def __init__(self, padding) -> None:
        super().__init__()
        self.weight, self.padding = nn.Parameter(torch.randn(12, 2, 3, 4)), padding

    def forward(self, x):
        return grouped_conv2d(x, self.weight, padding=self.padding, groups=4).relu_()


@pytest.mark.parametrize("padding", ["same", "valid", (1, 2)])
def test_symbolic_trace_of_the_function(padding):
    module, x = Direct(padding), torch.randn(2, 8, 9, 11)
    graph = torch.fx.symbolic_trace(module)
    (call,) = (n for n in graph.graph.nodes if n.op == "call_function")
    assert call.target is grouped_conv2d and call.kwargs == {"backend": "auto"}
    assert torch.equal(graph(x), module(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("padding", ["same", "valid", (1, 2)])
def test_torchscript_trace_of_the_function(padding):
    module = Direct(padding)
    traced = saved_and_loaded(torch.jit.trace(module, torch.randn(2, 8, 9, 11)))
    for shape in ((2, 8, 9, 11), (3, 8, 12, 7)):
        x = torch.randn(shape)
        assert relative_error(traced(x), module(x)) < 1e-6


def test_vmap_over_parameters():
    """An ensemble of two, as `torch.func.stack_module_state` makes it."""
    modules = [grouped(SETTINGS[0]) for _ in range(2)]
    x = torch.randn(2, 8, 9, 11)
    parameters, buffers = torch.func.stack_module_state(modules)

    def call(parameters, buffers):
        return torch.func.functional_call(modules[0], (parameters, buffers), (x,))

    out = torch.func.vmap(call)(parameters, buffers)
    for got, module in zip(out, modules, strict=True):
        assert relative_error(got, module(x)) < 1e-5
