"""`torch.compile`, `torch.export` and AOTInductor, with strides and values as in eager mode."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from problems import TOLERANCES, relative_error

import resnext_kernels as rk
from resnext_kernels import ops
from resnext_kernels.backends import BACKENDS

FORMATS = [torch.contiguous_format, torch.channels_last]
each_format = pytest.mark.parametrize("memory_format", FORMATS, ids=str)
needs_compiler = pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++")), reason="inductor needs a C++ compiler"
)


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


class Block(torch.nn.Module):
    """A strided convolution in named groups, a depthwise one with odd "same" padding, a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = rk.GroupedConv2d(8, 12, 3, stride=2, padding=1, groups=4)
        self.second = rk.GroupedConv2d(12, 12, 2, padding="same", groups=12, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x * 2).relu())


def step(model, x: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients of one training step, the input's first."""
    x = x.detach().requires_grad_()
    parameters = list(model.parameters())
    output = model(x)
    grads = torch.autograd.grad(output.square().sum(), [x, *parameters])
    return [output, *grads]


def assert_like_eager(results, expected) -> None:
    for result, truth in zip(results, expected, strict=True):
        assert result.stride() == truth.stride()
        assert relative_error(result, truth.double()) < TOLERANCES[torch.float32]


def images(memory_format: torch.memory_format, batch: int = 2, size: int = 9) -> torch.Tensor:
    return torch.randn(batch, 8, size, size).contiguous(memory_format=memory_format)


@each_format
def test_training_step_in_one_graph(memory_format):
    model, x = Block(), images(memory_format)
    expected = step(model, x)
    model.compile(backend="aot_eager", fullgraph=True)
    assert_like_eager(step(model, x), expected)


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@each_format
def test_training_step_with_inductor(memory_format):
    model, x = Block(), images(memory_format)
    expected = step(model, x)
    model.compile(fullgraph=True)
    assert_like_eager(step(model, x), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_named_backend_and_fused_operator(backend):
    x, weight, bias = images(torch.channels_last), torch.randn(6, 4, 3, 3), torch.randn(6)
    residual = torch.randn(2, 6, 7, 7)

    def function(x, weight, bias, residual):
        y = rk.grouped_conv2d(x, weight, bias, groups=2, backend=backend)
        conv = ((1, 1), (0, 0), (1, 1), 2)
        return y, ops.grouped_conv2d_fused(x, weight, bias, residual, *conv, "relu", backend)

    try:
        expected = function(x, weight, bias, residual)
    except rk.ProblemError as error:
        pytest.skip(str(error))
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    assert_like_eager(compiled(x, weight, bias, residual), expected)


@each_format
def test_dynamic_shapes_compile_once(memory_format):
    model = Block()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    step(compiled, images(memory_format))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, size in ((3, 12), (5, 17)):
            x = images(memory_format, batch, size)
            assert_like_eager(step(compiled, x), step(model, x))


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dynamic_shapes_with_inductor():
    model = Block().eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch, size in ((2, 9), (3, 14)):
            x = images(torch.channels_last, batch, size)
            assert_like_eager([compiled(x)], [model(x)])


def test_window_given_as_symbols():
    """Stride, padding and dilation that the compiler has made symbolic."""

    def function(x, weight, stride, padding, dilation):
        return rk.grouped_conv2d(x, weight, None, stride, (padding, 1), dilation, 2)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    x, weight = images(torch.contiguous_format, size=14), torch.randn(6, 4, 3, 3)
    for window in ((1, 1, 1), (2, 2, 1), (3, 0, 2)):
        assert_like_eager([compiled(x, weight, *window)], [function(x, weight, *window)])


def test_compiled_autocast():
    model, x = Block(), images(torch.channels_last)

    def function(x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    expected = function(x)
    out = torch.compile(function, backend="aot_eager", fullgraph=True)(x)
    assert out.dtype == expected.dtype == torch.bfloat16
    assert out.stride() == expected.stride()
    assert relative_error(out, expected.double()) < TOLERANCES[torch.bfloat16]


def test_bad_input_is_told_by_the_compiler_too():
    compiled = torch.compile(rk.grouped_conv2d, backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="groups=3: expected a positive divisor"):
        compiled(images(torch.contiguous_format), torch.randn(6, 4, 3, 3), groups=3)


def dynamic_batch() -> dict:
    return {"x": {0: torch.export.Dim("batch", min=2, max=64)}}


@each_format
@pytest.mark.parametrize("strict", [False, True])
def test_export(memory_format, strict):
    model = Block().eval()
    x = images(memory_format)
    program = torch.export.export(model, (x,), dynamic_shapes=dynamic_batch(), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count("resnext_kernels.grouped_conv2d.default") == 2
    for batch in (2, 5):
        x = images(memory_format, batch)
        assert_like_eager([program.module()(x)], [model(x)])


def test_export_for_training():
    """The exported program still differentiates."""
    model, x = Block(), images(torch.channels_last)
    program = torch.export.export(model, (x,), dynamic_shapes=dynamic_batch())
    assert_like_eager(step(program.module(), x), step(model, x))


def test_exported_program_survives_a_file(tmp_path):
    model = Block().eval()
    path = tmp_path / "block.pt2"
    torch.export.save(torch.export.export(model, (images(torch.contiguous_format),)), path)
    x = images(torch.contiguous_format)
    assert_like_eager([torch.export.load(path).module()(x)], [model(x)])


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_aot_inductor_package(tmp_path):
    model = Block().eval()
    with torch.no_grad():
        x = images(torch.channels_last)
        program = torch.export.export(model, (x,), dynamic_shapes=dynamic_batch())
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "block.pt2")
        )
        loaded = torch._inductor.aoti_load_package(path)
        for batch in (2, 7):
            x = images(torch.channels_last, batch)
            assert_like_eager([loaded(x)], [model(x)])


def test_compiled_like_conv2d():
    """One graph gives what `F.conv2d` gives, for unbatched input too."""
    weight = torch.randn(6, 4, 3, 3)
    compiled = torch.compile(rk.grouped_conv2d, backend="aot_eager", fullgraph=True)
    for x in (images(torch.channels_last), images(torch.contiguous_format)[0]):
        assert_like_eager([compiled(x, weight, groups=2)], [F.conv2d(x, weight, groups=2)])


class Chosen(torch.nn.Module):
    """A convolution of those images that a mask tells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = rk.GroupedConv2d(8, 12, 3, padding=1, groups=4)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.conv(x[mask])


@pytest.mark.parametrize("strict", [False, True])
def test_export_where_data_decide_the_batch(strict):
    model, x = Chosen().eval(), images(torch.channels_last, batch=4)
    mask = torch.tensor([True, False, True, True])
    exported = torch.export.export(model, (x, mask), strict=strict).module()
    for chosen in (mask, ~mask):
        assert_like_eager([exported(x, chosen)], [model(x, chosen)])


@pytest.mark.parametrize("unknown", [(0,), (2, 3), (0, 2, 3)])
def test_sizes_known_only_at_run_time(unknown):
    x, weight = images(torch.contiguous_format), torch.randn(12, 4, 3, 3)
    for dim in unknown:
        torch._dynamo.decorators.mark_unbacked(x, dim)
    compiled = torch.compile(rk.grouped_conv2d, backend="aot_eager", fullgraph=True)
    assert_like_eager([compiled(x, weight, groups=2)], [F.conv2d(x, weight, groups=2)])
