"""Swapped models inside what wraps, compiles or shards them."""

import copy

import pytest
import torch
import torch.distributed as dist
from small_models import relative_error
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

from resnext_kernels import GroupedConv2d, replace_grouped_convs

GROUPED_CONV2D = torch.ops.resnext_kernels.grouped_conv2d.default


class Network(nn.Sequential):
    """With a forward outside torch, for `Module.compile` passes over torch's own."""

    def forward(self, input):
        return super().forward(input)


def network():
    return Network(
        nn.Conv2d(8, 16, 3, padding=1, groups=4, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, stride=2, padding="valid", groups=8),
    )


def images():
    return torch.randn(2, 8, 9, 9)


def gradients(model, x):
    model.zero_grad()
    model(x).square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def assert_same_gradients(model, reference, x):
    for a, b in zip(gradients(model, x), gradients(reference, x), strict=True):
        assert relative_error(a, b) < 1e-5


@pytest.fixture(scope="module")
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("swap_first", [True, False])
@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel(swap_first):
    model, x = network(), images()
    plain = copy.deepcopy(model)
    if swap_first:
        replace_grouped_convs(model)
    wrapped = DistributedDataParallel(model)
    if not swap_first:
        wrapped(x).sum().backward()
        wrapped.zero_grad()
        plain(x)
        assert list(replace_grouped_convs(wrapped).replaced) == ["module.0", "module.3"]
    assert type(model[0]) is GroupedConv2d
    assert_same_gradients(wrapped, plain, x)


@pytest.mark.usefixtures("process_group")
def test_fully_shard_after_the_swap():
    model, x = network(), images()
    plain = copy.deepcopy(model)
    replace_grouped_convs(model)
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert relative_error(model(x), plain(x)) < 1e-5
    got = [gradient.full_tensor() for gradient in gradients(model, x)]
    for a, b in zip(got, gradients(plain, x), strict=True):
        assert relative_error(a, b) < 1e-5


@pytest.mark.usefixtures("process_group")
def test_fully_shard_before_the_swap_is_skipped():
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.warns(UserWarning, match="its weight is a DTensor: swap before sharding"):
        replace_grouped_convs(model)


@pytest.mark.usefixtures("process_group")
def test_distributed_after_the_swap():
    """A DTensor computes as it does with `torch.nn.Conv2d`, through ATen."""
    conv, x = nn.Conv2d(8, 16, 3, groups=4), images()
    plain = copy.deepcopy(conv)
    replace_grouped_convs(conv)
    mesh = init_device_mesh("cpu", (1,))
    distribute_module(conv, mesh)
    out = conv(distribute_tensor(x, mesh, [Shard(0)]))
    assert relative_error(out.full_tensor(), plain(x)) < 1e-5
    out.square().sum().backward()
    plain(x).square().sum().backward()
    assert relative_error(conv.weight.grad.full_tensor(), plain.weight.grad) < 1e-5


def test_gradients_per_sample():
    conv, x = nn.Conv2d(8, 16, 3, groups=4), images()
    replace_grouped_convs(conv)
    call_for_per_sample_grads(conv)(x).square().sum().backward()
    samples = conv.weight.grad_sample
    for sample, got in zip(x, samples, strict=True):
        expected = torch.autograd.grad(conv(sample).square().sum(), conv.weight)[0]
        assert relative_error(got, expected) < 1e-5


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_after_the_swap(backend):
    model, x = network(), images()
    plain = copy.deepcopy(model)
    replace_grouped_convs(model)
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert_same_gradients(compiled, plain, x)
    assert relative_error(compiled(x), plain(x)) < 1e-5


@pytest.mark.parametrize("in_place", [True, False], ids=["Module.compile", "torch.compile"])
def test_swap_of_a_compiled_model(in_place):
    """Code compiled before a swap does not run after it, nor that of the swap after restoring."""
    model, x, operators = network().eval(), images(), []

    def run_and_note(graph, inputs):
        def run(*args):
            operators.append(GROUPED_CONV2D in {node.target for node in graph.graph.nodes})
            return graph(*args)

        return run

    torch.compiler.reset()
    if in_place:
        model.compile(backend=run_and_note, fullgraph=True)
    compiled = model if in_place else torch.compile(model, backend=run_and_note, fullgraph=True)
    out = [compiled(x)]
    report = replace_grouped_convs(compiled)
    out.append(compiled(x))
    report.restore()
    out.append(compiled(x))
    assert operators == [False, True, False]
    assert all(relative_error(value, out[0]) < 1e-5 for value in out)


def test_fake_tensors():
    model, x = network().eval(), images()
    replace_grouped_convs(model)
    real = model(x)
    mode, state = FakeTensorMode(), model.state_dict()
    weights = {name: mode.from_tensor(value) for name, value in state.items()}
    with mode:
        fake = torch.func.functional_call(model, weights, (mode.from_tensor(x),))
    assert fake.shape == real.shape and fake.stride() == real.stride()


def test_a_model_built_of_fake_tensors():
    with FakeTensorMode():
        model = network()
        assert list(replace_grouped_convs(model).replaced) == ["0", "3"]
        assert model(images()).shape == (2, 8, 4, 4)


def test_autocast():
    model, x = network().eval(), images()
    ref = model(x)
    with replace_grouped_convs(model), torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16 and relative_error(out, ref) < 2e-2


def test_data_parallel_replicas_and_weight_averages():
    model, x = network().eval(), images()
    ref = model(x)
    replace_grouped_convs(model)
    replica = model[0]._replicate_for_data_parallel()
    assert type(replica) is GroupedConv2d
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    assert relative_error(averaged(x), ref) < 1e-5
