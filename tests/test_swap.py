"""`replace_grouped_convs` and its report on small models of torch's own modules."""

import copy
import io
import pickle
import warnings
import weakref

import pytest
import torch
from small_models import relative_error
from torch import nn

import resnext_kernels as rk
from resnext_kernels import GroupedConv2d, replace_grouped_convs


def network(**options):
    """Grouped, depthwise and ordinary convolutions with all that can go with them."""
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1, groups=4, bias=False, **options),
        nn.BatchNorm2d(16, **options),
        nn.ReLU(),
        nn.Conv2d(16, 16, 1, **options),
        nn.Conv2d(16, 16, 3, stride=2, groups=16, padding=1, padding_mode="reflect", **options),
        nn.Conv2d(16, 8, 3, padding="same", groups=2, **options),
    )


GROUPED = ["0", "4", "5"]


def images(**options):
    return torch.randn(2, 8, 9, 9, **options)


def classes(model):
    return [type(module) for module in model.modules()]


class OwnForward(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) * 2


def test_replaces_in_place_and_computes_the_same():
    model, x = network(), images()
    before, objects, ref = classes(model), list(model.modules()), model(x)
    tensors = {name: id(value) for name, value in model.state_dict(keep_vars=True).items()}
    report = replace_grouped_convs(model)
    assert list(report.replaced) == GROUPED and not report.skipped and report.ungrouped == 1
    assert all(type(model.get_submodule(name)) is GroupedConv2d for name in GROUPED)
    assert all(a is b for a, b in zip(objects, model.modules(), strict=True))
    after = {name: id(value) for name, value in model.state_dict(keep_vars=True).items()}
    assert list(after.items()) == list(tensors.items())
    assert relative_error(model(x), ref) < 1e-5
    report.restore()
    assert classes(model) == before and "backend" not in vars(model[0])
    assert torch.equal(model(x), ref)
    report.restore()
    assert classes(model) == before


def test_training_step():
    plain = network()
    swapped = copy.deepcopy(plain)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (plain, swapped)]
    replace_grouped_convs(swapped)
    x = images()
    for model, optimizer in zip((plain, swapped), optimizers, strict=True):
        model(x).square().mean().backward()
        optimizer.step()
    for (name, a), b in zip(plain.state_dict().items(), swapped.state_dict().values(), strict=True):
        assert relative_error(b, a) < 1e-5, name


@pytest.mark.parametrize("error", [None, KeyError])
def test_context_manager(error):
    model = network()
    before = classes(model)
    try:
        with replace_grouped_convs(model, backend="aten") as report:
            assert model[0].backend == "aten" and list(report.replaced) == GROUPED
            if error:
                raise error
    except KeyError:
        pass
    assert classes(model) == before


def test_printed_report():
    model = network()
    model.append(OwnForward(8, 8, 3, groups=2))
    report = replace_grouped_convs(model)
    lines = str(report).splitlines()
    assert lines[0] == "convolutions: 3 replaced, 1 skipped, 1 with groups=1 left alone"
    assert lines[1].split(maxsplit=2) == ["replaced", "0", model[0].extra_repr()]
    assert lines[4].split(maxsplit=2) == ["skipped", "6", "OwnForward has a forward of its own"]
    assert len(lines) == 5 and repr(report) == lines[0]
    report.restore()
    assert str(report).startswith("convolutions: 3 replaced and restored, 1 skipped")


def test_names_line_up_in_the_report():
    lone = nn.Conv2d(4, 4, 3, groups=2)
    report = replace_grouped_convs(
        nn.ModuleDict({"a": lone, "longer": nn.Conv2d(8, 8, 1, groups=4)})
    )
    first, second = str(report).splitlines()[1:]
    assert first.index("4, 4") == second.index("8, 8")
    assert "(the model itself)" in str(replace_grouped_convs(lone))


def test_the_model_itself_is_a_convolution():
    model, x = nn.Conv2d(8, 8, 3, groups=4), images()
    ref = model(x)
    assert list(replace_grouped_convs(model).replaced) == [""]
    assert type(model) is GroupedConv2d and relative_error(model(x), ref) < 1e-5


def test_shared_module_is_handled_once():
    shared, seen = nn.Conv2d(8, 8, 3, groups=2, padding=1), []
    model = nn.ModuleDict({"first": shared, "second": shared})
    report = replace_grouped_convs(model, filter_fn=lambda name, module: not seen.append(name))
    assert seen == list(report.replaced) == ["first"]
    assert model["second"] is shared and type(shared) is GroupedConv2d


def test_filter():
    model = network()
    report = replace_grouped_convs(model, filter_fn=lambda name, m: m.groups != m.in_channels)
    assert list(report.replaced) == ["0", "5"]
    assert report.skipped == {"4": "filter_fn returned false"} and type(model[4]) is nn.Conv2d


def test_failing_filter_changes_nothing():
    model = network()
    before = classes(model)
    with pytest.raises(ZeroDivisionError):
        replace_grouped_convs(model, filter_fn=lambda name, module: 1 / (name == "0"))
    assert classes(model) == before


def test_backend_is_set():
    model = network(dtype=torch.float64)
    replace_grouped_convs(model, backend="cpu")
    with pytest.raises(rk.ProblemError, match="backend='cpu' cannot serve fprop .*float64"):
        model(images(dtype=torch.float64))


def test_nested_swaps_restore_in_turn():
    model = network()
    outer = replace_grouped_convs(model)
    with replace_grouped_convs(model, backend="aten") as inner:
        assert list(inner.replaced) == GROUPED and model[0].backend == "aten"
    assert type(model[0]) is GroupedConv2d and model[0].backend == "auto"
    outer.restore()
    assert type(model[0]) is nn.Conv2d


class Derived(GroupedConv2d):
    pass


def test_a_grouped_conv2d_already_there_is_given_the_backend():
    model = nn.Sequential(GroupedConv2d(8, 8, 3, groups=2), Derived(8, 8, 3, groups=2))
    with replace_grouped_convs(model, backend="aten") as report:
        assert list(report.replaced) == ["0", "1"]
        assert classes(model)[1:] == [GroupedConv2d, Derived]
        assert [module.backend for module in model] == ["aten", "aten"]
    assert classes(model)[1:] == [GroupedConv2d, Derived]
    assert [module.backend for module in model] == ["auto", "auto"]


def test_everything_else_of_a_module_stays():
    model = network(dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    conv, calls = model[0], []
    conv.note, conv.weight.note = {"mine": 1}, "kept"
    conv.weight.requires_grad_(False)
    model.train()
    model[5].eval()
    conv.register_forward_pre_hook(lambda module, args: calls.append("pre"))
    conv.register_forward_hook(lambda module, args, out: calls.append("forward"))
    model[5].register_full_backward_hook(lambda module, into, out: calls.append("backward"))
    conv.register_state_dict_post_hook(lambda module, state, *_: calls.append("state_dict"))
    conv.register_load_state_dict_pre_hook(lambda module, *_: calls.append("load"))
    replace_grouped_convs(model)
    model(images(dtype=torch.bfloat16)).sum().backward()
    model.load_state_dict(model.state_dict())
    assert calls == ["pre", "forward", "backward", "state_dict", "load"]
    assert conv.note == {"mine": 1} and conv.weight.note == "kept"
    assert conv.weight.grad is None and model[5].weight.grad is not None
    assert conv.training and not model[5].training
    assert conv.weight.dtype == torch.bfloat16
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_settings_changed_to_ints():
    """As code that dilates a backbone does; torch computes with them but cannot show them."""
    model, x = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4)), images()
    model[0].stride, model[0].padding, model[0].dilation = 1, 2, 2
    ref = model(x)
    report = replace_grouped_convs(model)
    assert "stride=1, padding=2, dilation=2, groups=4" in report.replaced["0"]
    assert relative_error(model(x), ref) < 1e-5


def test_report_lets_go_of_the_model_after_restoring():
    model = network()
    report = replace_grouped_convs(model)
    gone = weakref.ref(model[0])
    report.restore()
    del model
    assert gone() is None


def saved_and_loaded(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded]
)
def test_copies_of_a_swapped_model(copied):
    model, x = network().eval(), images()
    report = replace_grouped_convs(model, backend="aten")
    other = copied(model)
    report.restore()
    assert [type(other.get_submodule(name)) for name in GROUPED] == [GroupedConv2d] * 3
    assert other[0].backend == "aten" and relative_error(other(x), model(x)) < 1e-5


def test_state_dict_of_a_swapped_model_fits_a_plain_one():
    swapped, plain, x = network().eval(), network().eval(), images()
    replace_grouped_convs(swapped)
    plain.load_state_dict(swapped.state_dict(), strict=True)
    assert relative_error(swapped(x), plain(x)) < 1e-5
    swapped.load_state_dict(network().state_dict(), strict=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("resnext",), TypeError, "model: str, expected a torch.nn.Module"),
        ((nn.Conv2d,), TypeError, "model: type, expected a torch.nn.Module"),
        ((network(), "fast"), rk.ProblemError, "backend='fast': expected one of 'auto'"),
        ((network(), "auto", ["0"]), TypeError, r"filter_fn=\['0'\]: expected a callable"),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else None,
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        replace_grouped_convs(*arguments)
    if isinstance(arguments[0], nn.Module):
        assert GroupedConv2d not in classes(arguments[0])


def test_warns_where_nothing_is_replaced():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), OwnForward(8, 8, 3, groups=8))
    with pytest.warns(UserWarning, match="nothing to replace in Sequential") as caught:
        report = replace_grouped_convs(model)
    assert caught[0].filename == __file__ and "OwnForward has a forward" in str(caught[0].message)
    assert not report.replaced and report.ungrouped == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace_grouped_convs(network())
