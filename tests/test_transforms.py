"""`torch.func` transforms and forward-mode differentiation, each beside `F.conv2d` in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import func
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

import resnext_kernels as rk
from resnext_kernels import plain, transforms

CONV = {"stride": (2, 1), "padding": (1, 0), "groups": 2}


def operands():
    """Input (2, 4, 5, 4), weight (6, 2, 3, 2), bias (6,)."""
    shapes = (2, 4, 5, 4), (6, 2, 3, 2), (6,)
    return tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


def stacks():
    return tuple(torch.stack([t, t + 1, t * 2]) for t in operands())


def loss(conv, *args):
    return conv(*args, **CONV).sin().sum()


def dual_numbers(conv, x, w, b):
    with forward_ad.dual_level():
        dual = conv(forward_ad.make_dual(x, x + 1), forward_ad.make_dual(w, w * 2), b, **CONV)
        return tuple(forward_ad.unpack_dual(dual))


def gradient_outside(conv, x, w, b):
    """Reverse mode through a transform that has already ended."""
    w = w.clone().requires_grad_()
    mapped = func.vmap(lambda x: conv(x, w, b, **CONV))(x[None])
    _, pullback = func.vjp(lambda x: conv(x, w, b, **CONV), x)
    return torch.autograd.grad((mapped.sin() + pullback(mapped[0])[0].sum()).sum(), w)


def functionalized(name, conv, x, w, b):
    """`functionalize` alone, inside and outside another transform."""
    functional = func.functionalize(lambda x: conv(x, w, b, **CONV))
    return {
        "alone": lambda: functional(x),
        "inside grad": lambda: func.grad(lambda x: functional(x).sin().sum())(x),
        "outside grad": lambda: func.functionalize(func.grad(lambda x: loss(conv, x, w, b)))(x),
        "inside vmap": lambda: func.vmap(functional)(torch.stack([x, x + 1])),
    }[name]()


def recorded(c, x, w, b):
    """A backward of a graph that no transform saw, what it is applied to, and a tangent of that."""
    x, w, b = (t.detach().requires_grad_() for t in (x, w, b))
    y = c(x, w, b, **CONV)

    def backward(g):
        return torch.autograd.grad(y, (x, w, b), g, retain_graph=True, create_graph=True)

    g = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return backward, (g,), (g.square(),)


def gradient_of_recorded(c, x, w, b):
    backward, (g,), _ = recorded(c, x, w, b)
    return func.grad(lambda g: sum(t.square().sum() for t in backward(g)))(g)


def tangents_of_recorded(c, x, w, b):
    backward, (g,), (tangent,) = recorded(c, x, w, b)
    with forward_ad.dual_level():
        made = backward(forward_ad.make_dual(g, tangent))
        return [forward_ad.unpack_dual(t).tangent for t in made]


ON_OPERANDS = {
    "grad": lambda c, x, w, b: func.grad(lambda *a: loss(c, *a), (0, 1, 2))(x, w, b),
    "vjp": lambda c, x, w, b: func.vjp(lambda *a: c(*a, **CONV), x, w, b)[1](c(x, w, b, **CONV)),
    "jvp": lambda c, x, w, b: func.jvp(lambda *a: c(*a, **CONV), (x, w, b), (x + 1, w - 1, b * 2)),
    "jvp of the input": lambda c, x, w, b: func.jvp(lambda x: c(x, w, b, **CONV), (x,), (x + 1,)),
    "linearize": lambda c, x, w, b: func.linearize(lambda w: c(x, w, b, **CONV), w)[1](w + 1),
    "jacrev": lambda c, x, w, b: func.jacrev(lambda w: c(x, w, b, **CONV))(w),
    "jacfwd": lambda c, x, w, b: func.jacfwd(lambda x: c(x, w, b, **CONV))(x),
    "hessian": lambda c, x, w, b: func.hessian(lambda *a: loss(c, *a), (0, 1, 2))(x, w, b),
    "hessian of the weight": lambda c, x, w, b: func.hessian(lambda w: loss(c, x, w, b))(w),
    "jacrev of jacrev": lambda c, x, w, b: func.jacrev(func.jacrev(lambda w: loss(c, x, w, b)))(w),
    "per-sample gradients": lambda c, x, w, b: func.vmap(
        func.grad(lambda p, x: loss(c, x, *p)), (None, 0)
    )((w, b), x),
    "unbatched": lambda c, x, w, b: func.vmap(lambda x: c(x, w, b, **CONV))(x),
    "empty batch": lambda c, x, w, b: func.vmap(lambda x: c(x, w, b, **CONV))(x[None, :0]),
    "dual numbers": dual_numbers,
    "gradient outside": gradient_outside,
    "jvp of a recorded graph": lambda c, x, w, b: func.jvp(*recorded(c, x, w, b))[1],
    "gradient of a recorded graph": gradient_of_recorded,
    "dual numbers of a recorded graph": tangents_of_recorded,
}
ON_STACKS = {
    "input": lambda c, x, w, b: func.vmap(lambda x: c(x, w[0], b[0], **CONV))(x),
    "weight": lambda c, x, w, b: func.vmap(lambda w: c(x[0], w, b[0], **CONV))(w),
    "bias": lambda c, x, w, b: func.vmap(lambda b: c(x[0], w[0], b, **CONV))(b),
    "all": lambda c, x, w, b: func.vmap(lambda *a: c(*a, **CONV))(x, w, b),
    "other dimensions": lambda c, x, w, b: func.vmap(
        lambda *a: c(*a, **CONV), in_dims=(2, -1, 1), out_dims=3
    )(x.movedim(0, 2), w.movedim(0, -1), b.T),
    "nested": lambda c, x, w, b: func.vmap(
        func.vmap(lambda x, w: c(x, w, **CONV), (0, None)), (None, 0)
    )(x, w),
    "same": lambda c, x, w, b: func.vmap(lambda x, w: c(x, w, padding="same", groups=2))(x, w),
    "in chunks": lambda c, x, w, b: func.vmap(lambda *a: c(*a, **CONV), chunk_size=2)(x, w, b),
    "gradients": lambda c, x, w, b: func.vmap(func.grad(lambda *a: loss(c, *a), (0, 1, 2)))(
        x, w, b
    ),
    "gradient of the mean": lambda c, x, w, b: func.grad(
        lambda w: func.vmap(lambda x, b: loss(c, x, w, b))(x, b).mean()
    )(w[0]),
}


def assert_same(results, expected):
    for result, truth in zip(tree_leaves(results), tree_leaves(expected), strict=True):
        torch.testing.assert_close(result, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ON_OPERANDS)
def test_derivatives(name):
    args, function = operands(), ON_OPERANDS[name]
    assert_same(function(rk.grouped_conv2d, *args), function(F.conv2d, *args))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", ON_STACKS)
def test_vmap(name):
    args, function = stacks(), ON_STACKS[name]
    assert_same(function(rk.grouped_conv2d, *args), function(F.conv2d, *args))


@pytest.mark.parametrize("name", ["alone", "inside grad", "outside grad", "inside vmap"])
def test_functionalize(name):
    ours = functionalized(name, rk.grouped_conv2d, *(args := operands()))
    torch.testing.assert_close(ours, functionalized(name, F.conv2d, *args))


def test_functionalize_keeps_the_operator():
    x, w, b = operands()
    graph = make_fx(func.functionalize(lambda x: rk.grouped_conv2d(x, w, b, **CONV)))(x).graph
    assert torch.ops.resnext_kernels.grouped_conv2d.default in {n.target for n in graph.nodes}


def test_functionalize_inside_a_transform_has_no_named_kernels():
    x, w, b = operands()
    function = func.functionalize(lambda x: rk.grouped_conv2d(x, w, b, **CONV, backend="cpu").sum())
    with pytest.raises(rk.ProblemError, match="backend='cpu': expected 'auto' or 'aten' where"):
        func.grad(function)(x)


def test_ensemble_of_modules():
    """Stacked parameters of several modules, mapped with `functional_call`."""
    models = [torch.nn.Sequential(rk.GroupedConv2d(4, 6, 3, groups=2), torch.nn.ReLU(),
                                  rk.GroupedConv2d(6, 3, 1, groups=3)).double()
              for _ in range(3)]  # fmt: skip
    parameters, buffers = func.stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    out = func.vmap(
        lambda p, b, x: func.functional_call(skeleton, (p, b), (x,)), in_dims=(0, 0, None)
    )(parameters, buffers, x)
    assert_same(out, torch.stack([model(x) for model in models]))


@pytest.mark.parametrize("backend", ["aten", "cpu"])
def test_vmap_calls_a_backend_once(backend, monkeypatch):
    """All samples go in one call: folded into the batch or, with their own weights, the groups."""
    module = rk.dispatch.BACKENDS[backend]
    x, w, b = (t.float() for t in stacks())
    try:
        rk.grouped_conv2d(x[0], w[0], **CONV, backend=backend)
    except rk.ProblemError as error:
        pytest.skip(str(error))
    seen = []
    fprop = module.fprop
    monkeypatch.setattr(module, "fprop", lambda p, *args: seen.append(p) or fprop(p, *args))

    def conv(x, w):
        return rk.grouped_conv2d(x, w, **CONV, backend=backend)

    func.vmap(conv, (0, None))(x, w[0])
    func.vmap(conv)(x, w)
    assert [(p.batch, p.groups) for p in seen] == [(6, 2), (2, 6)]


def test_a_device_without_autocast():
    x, weight = torch.empty(2, 8, 5, 5, device="meta"), torch.empty(8, 4, 3, 3, device="meta")
    found = func.vmap(lambda image: rk.grouped_conv2d(image, weight, groups=2))(x)
    assert found.shape == (2, 8, 3, 3) and found.device.type == "meta"


def test_errors_name_the_argument():
    x, w, _ = stacks()
    with pytest.raises(rk.ProblemError, match=r"groups=3: expected a positive divisor"):
        func.vmap(lambda x: rk.grouped_conv2d(x, w[0], groups=3))(x)
    with pytest.raises(rk.ProblemError, match=r"backend='none': expected one of"):
        func.vmap(lambda x: rk.grouped_conv2d(x, w[0], groups=2, backend="none"))(x)


# Of one operand: until torch 2.13 Jacobians by several cannot be compiled.
@pytest.mark.parametrize(
    "transform", ["grad", "jvp", "per-sample gradients", "hessian of the weight"]
)
def test_compiled_transform(transform):
    torch._dynamo.reset()
    args = operands()
    function = ON_OPERANDS[transform]
    compiled = torch.compile(
        lambda *args: function(rk.grouped_conv2d, *args), backend="aot_eager", fullgraph=True
    )
    assert_same(compiled(*args), function(F.conv2d, *args))


def test_plain_calls_do_not_load_the_transforms():
    assert not plain.is_transformed()
    assert func.vmap(lambda x: x * plain.is_transformed())(torch.ones(1)).item() == 1
    with forward_ad.dual_level():
        assert plain.is_transformed()
    assert transforms.grouped_conv2d is rk.functional._transformable()


def test_vmap_over_nothing():
    weight = torch.randn(8, 4, 3, 3)
    call = torch.func.vmap(lambda x: rk.grouped_conv2d(x, weight, groups=2))
    assert call(torch.randn(0, 2, 8, 6, 6)).shape == (0, 2, 8, 4, 4)
