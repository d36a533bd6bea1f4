"""The short way round the dispatcher: taken by plain calls alone, and never seen in a result."""

import contextlib
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
import torch.nn.functional as F
from problems import LAYOUTS, randn
from small_calls import WINDOW, assert_near, convolve, operands
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import resnext_kernels as rk
from resnext_kernels import eager, ops, plain


class SeenByFunctionMode(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Callable] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class SeenByDispatchMode(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Callable] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class Labelled(Tensor):
    """A subclass that changes nothing."""


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The way that each call of the test took: "short" or "dispatched"."""
    taken: list[str] = []
    direct = eager.direct

    def watched(*args):
        out = direct(*args)
        taken.append("dispatched" if out is None else "short")
        return out

    monkeypatch.setattr(eager, "direct", watched)
    return taken


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_plain_calls_are_short_and_alike(context, layout, ways):
    with context():
        for shape in ((2, 8, 6, 7), (1, 8, 1, 1), (3, 8, 1, 4)):
            x, w = randn(shape, torch.float32, layout), randn((8, 4, 3, 3), torch.float32, layout)
            b = torch.randn(8)
            for bias in (None, b, b):  # with a new plan, and with one that was kept
                out, expected = (
                    convolve(x, w, bias),
                    ops.grouped_conv2d(x, w, bias, *WINDOW, "auto"),
                )
                assert torch.equal(out, expected)
                assert out.stride() == expected.stride()
                assert out.is_inference() == expected.is_inference()
                assert not out._is_view() and not out.requires_grad
    assert set(ways) == {"short"}


def test_parameters_are_plain_without_gradient(ways):
    x, w, b = operands()
    with torch.no_grad():
        out = convolve(x, torch.nn.Parameter(w), torch.nn.Parameter(b))
    assert_near(out, F.conv2d(x, w, b, *WINDOW))
    assert ways == ["short"] and not out.requires_grad


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_results_may_be_changed_in_place(last, grad):
    """Also where one pixel leaves the strides open, and they have to be mended."""
    memory_format = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(3, 8, 1, 1).to(memory_format=memory_format)
    w, scale = torch.randn(8, 4, 3, 3, requires_grad=grad), torch.ones((), requires_grad=True)

    def gradients(conv) -> tuple[Tensor, ...]:
        if grad:
            return torch.autograd.grad(conv(x, w, None, *WINDOW).relu_().square().sum(), w)
        with torch.no_grad():
            out = conv(x, w, None, *WINDOW)
        return torch.autograd.grad(out.mul_(scale).sum(), scale)

    for ours, theirs in zip(gradients(rk.grouped_conv2d), gradients(F.conv2d), strict=True):
        assert_near(ours, theirs)


NOT_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "subclass": lambda x: x.as_subclass(Labelled),
    "negative bit": lambda x: torch.complex(x, x).conj().imag,
    "conjugate bit": lambda x: torch.complex(x, x).conj(),
    "complex": lambda x: torch.complex(x, x),
    "zero tensor": lambda x: torch._efficientzerotensor(x.shape),
    "oneDNN": lambda x: x.to_mkldnn(),
    "meta": lambda x: x.to("meta"),
    "unbatched": lambda x: x[0],
    "empty": lambda x: x[:0],
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_other_tensors_are_dispatched(kind, ways):
    x, w, _ = operands()
    x = NOT_PLAIN[kind](x)
    w = w.to(x.dtype).to(x.device)
    out, expected = convolve(x, w), F.conv2d(x, w, None, *WINDOW)
    assert ways[0] == "dispatched"  # one that is unbatched then calls itself
    assert type(out) is type(expected)
    assert (out.shape, out.dtype, out.layout) == (expected.shape, expected.dtype, expected.layout)
    if not out.is_meta:
        assert torch.allclose(out.to_dense(), expected.to_dense(), atol=1e-5)


CONTEXTS: dict[str, Callable[[], AbstractContextManager]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "dispatch mode": SeenByDispatchMode,
    "FLOP counter": lambda: FlopCounterMode(display=False),
    "dual level": forward_ad.dual_level,
    "fake tensors": lambda: FakeTensorMode(allow_non_fake_inputs=True),
    "below autograd": torch._C._AutoDispatchBelowAutograd,
    "python dispatcher": torch._dispatch.python.enable_python_dispatcher,
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_calls_in_a_context_are_dispatched(name, ways):
    x, w, b = operands()
    with torch.no_grad(), CONTEXTS[name]():
        out = convolve(x, w, b)
    convolve(x, w, b)
    assert ways == ["dispatched", "short"]  # and the context leaves nothing behind
    assert out.shape == x.shape
    assert out.dtype == (torch.bfloat16 if name == "autocast" else torch.float32)


def test_modes_see_the_call():
    x, w, b = operands()
    with SeenByFunctionMode() as functions:
        convolve(x, w, b)
    with SeenByDispatchMode() as operators:
        convolve(x, w, b)
    with FlopCounterMode(display=False) as counter:
        convolve(x, w, b)
    assert functions.seen[0] is rk.grouped_conv2d
    assert operators.seen[0] is ops.grouped_conv2d
    assert counter.get_total_flops() == 2 * x.numel() * w[0].numel()


def test_keys_of_a_device_are_learned_from_its_first_tensor(monkeypatch):
    tensor = torch.empty(1, device="meta")
    monkeypatch.setattr(plain, "_PLAIN_TENSORS", set(plain._PLAIN_TENSORS))
    monkeypatch.setattr(plain, "_UNKNOWN_DEVICES", {"cuda"})
    assert not plain.is_plain(tensor)
    monkeypatch.setattr(plain, "_UNKNOWN_DEVICES", {"meta"})
    assert not plain.is_plain(tensor.as_subclass(Labelled)) and plain._UNKNOWN_DEVICES
    assert plain.is_plain(tensor) and not plain._UNKNOWN_DEVICES
    assert plain.is_plain(torch.nn.Parameter(tensor)) and plain.is_plain(torch.empty(1))


def test_device_context_does_not_move_the_result():
    x, w, b = operands()
    with torch.device("meta"):
        out = convolve(x, w, b)
    assert_near(out, F.conv2d(x, w, b, *WINDOW))


@pytest.mark.parametrize("grad", [False, True])
def test_tangents_pass(grad):
    x, w, b = operands()
    tangent = torch.randn_like(x)
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        out = forward_ad.unpack_dual(convolve(forward_ad.make_dual(x, tangent), w, b))
    assert_near(out.tangent, F.conv2d(tangent, w, None, *WINDOW))
    assert_near(out.primal, F.conv2d(x, w, b, *WINDOW))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    "transform",
    [
        lambda f: lambda x: torch.func.vmap(f)(x[None])[0],
        lambda f: torch.func.functionalize(f),
        lambda f: lambda x: torch.func.jvp(f, (x,), (x,))[0],
        lambda f: lambda x: torch.func.vjp(f, x)[0],
        lambda f: lambda x: make_fx(f)(x)(x),
        lambda f: lambda x: torch.jit.trace(f, x, check_trace=False)(x),
        lambda f: torch.compile(f, backend="eager", fullgraph=True),
    ],
    ids=["vmap", "functionalize", "jvp", "vjp", "make_fx", "jit.trace", "compile"],
)
@torch.no_grad()
def test_transformed_and_traced_calls_are_dispatched(transform, ways):
    x, w, b = operands()
    out = transform(lambda t: convolve(t, w, b))(x)
    assert_near(out, F.conv2d(x, w, b, *WINDOW))
    assert "short" not in ways


@torch.no_grad()
def test_short_way_between_compiled_graphs(ways):
    x, w, b = operands()
    plain = torch.compiler.disable(convolve)
    out = torch.compile(lambda t: plain(t + 1, w, b) * 2, backend="eager")(x)
    assert_near(out, 2 * F.conv2d(x + 1, w, b, *WINDOW))
    assert ways == ["short"]


def test_profiler_names_the_work():
    x, w, _ = operands()
    for backend, kernel in (("aten", "aten::conv2d"), ("cpu", "resnext_kernels_cpu::fprop")):
        if backend == "cpu" and not rk.backends.cpu.LIBRARY.loaded:
            pytest.skip(rk.backends.cpu.LIBRARY.message)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            rk.grouped_conv2d(x, w, None, *WINDOW, backend=backend)
        assert kernel in {event.key for event in profile.key_averages()}


IMPORT_INSIDE = """
import torch
from torch.utils.flop_counter import FlopCounterMode

def load(x):
    import resnext_kernels
    return x

with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
    with FlopCounterMode(display=False), torch.autograd.forward_ad.dual_level():
        torch.func.vmap(load)(torch.zeros(2, device="cpu"))

from resnext_kernels import plain
print(sorted(plain._PLAIN_THREADS), sorted(plain._PLAIN_TENSORS))
"""


def test_import_in_the_middle_of_something_else():
    run = [sys.executable, "-c", IMPORT_INSIDE]
    out = subprocess.run(run, capture_output=True, text=True, check=True, timeout=120).stdout
    assert out.strip() == f"{sorted(plain._PLAIN_THREADS)} {sorted(plain._PLAIN_TENSORS)}"
