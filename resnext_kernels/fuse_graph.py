"""Graphs of `torch.fx` for `optimize_for_inference`: finding what to fuse."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .augmented import AUGMENTED
from .fuse_memory import Modules
from .fused_conv import FusedConv2d, FusedGroupedConv2d
from .nn import GroupedConv2d
from .problem import FLOATING

_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
_SUMS = (operator.add, torch.add, "add")
_SUMS_IN_PLACE = (AUGMENTED["iadd"], "add_")


def is_norm_act(module: nn.Module) -> bool:
    """Whether it is timm's batch normalisation with an activation of its own."""
    kind = type(module)
    return kind.__name__ == "BatchNormAct2d" and kind.__module__.startswith("timm.")


def has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _is_as_defined(module: nn.Module) -> bool:
    """Whether nothing was added to this instance that changes what a call of it does."""
    return not has_hooks(module) and "forward" not in vars(module)


def reason_against_conv(conv: nn.Module) -> str:
    """Why a convolution is not fused whatever is around it; empty where it can be."""
    kind = type(conv).__name__
    if is_parametrized(conv):
        return f"{kind} is parametrised"
    if type(conv) not in (nn.Conv2d, GroupedConv2d):
        return f"{kind} is not a torch.nn.Conv2d"
    if "forward" in vars(conv) or "_conv_forward" in vars(conv):
        return "its forward was replaced on the instance"
    if has_hooks(conv):
        return "it has hooks"
    if is_traceable_wrapper_subclass(conv.weight):
        return f"its weight is a {type(conv.weight).__name__}"
    if conv.weight.dtype not in FLOATING:
        return f"its weight is {conv.weight.dtype}"
    return ""


def reason_against_norm(norm: _BatchNorm) -> str:
    """Why a batch normalisation cannot be folded whatever is before it; empty where it can be."""
    kind = type(norm)
    if kind not in (nn.BatchNorm2d, nn.SyncBatchNorm):
        return f"{kind.__name__} is not a torch.nn.BatchNorm2d"
    if "forward" in vars(norm):
        return "its forward was replaced on the instance"
    if has_hooks(norm):
        return "it has hooks"
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    return ""


def only_reader(node: fx.Node) -> fx.Node | None:
    """The one node that reads ``node``, once; None where there are more, or none."""
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and readers[0].op != "output" else None


def is_relu(node: fx.Node, modules: Modules) -> bool:
    if node.op == "call_module":
        module = modules[node.target]
        return type(module) is nn.ReLU and _is_as_defined(module)
    return node.op != "output" and node.target in _RELUS


def is_in_place(node: fx.Node) -> bool:
    return node.target in _SUMS_IN_PLACE


def summands(node: fx.Node) -> tuple[fx.Node, ...]:
    """The two different tensors that ``node`` adds; none where it is no such sum."""
    plain = node.op in ("call_function", "call_method") and not node.kwargs
    if not plain or node.target not in _SUMS + _SUMS_IN_PLACE or len(node.args) != 2:
        return ()
    both = tuple(arg for arg in node.args if isinstance(arg, fx.Node))
    return both if len(set(both)) == 2 else ()


def is_idle(node: fx.Node, modules: Modules) -> bool:
    """Whether it returns its input, one value, in evaluation mode."""
    given = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, fx.Node)]
    if len(given) != 1 or given != node.all_input_nodes:  # a list of one, say
        return False
    if node.op == "call_module":
        module = modules[node.target]
        kind = type(module)
        is_dropout = issubclass(kind, _DropoutNd) and kind.__module__ == _DropoutNd.__module__
        return (kind is nn.Identity or is_dropout) and _is_as_defined(module)
    return (
        node.op == "call_function"
        and node.target is F.dropout
        and node.kwargs.get("training") is False
    )


def allow_copy(node: fx.Node) -> None:
    """Make a view of another shape, not of another dtype, one that copies where it has to."""
    shape = (*node.args[1:], *node.kwargs.values())
    if node.op != "call_method" or any(isinstance(value, torch.dtype) for value in shape):
        return
    if node.target in ("view", "view_as"):
        node.target = "reshape" if node.target == "view" else "reshape_as"
        node.args, node.kwargs = (node.args[0], *shape), {}


def writes_nothing(node: fx.Node, modules: Modules) -> bool:
    """Whether it is known to leave every tensor there was before it as it is."""
    if node.op in ("get_attr", "placeholder"):
        return True
    if node.op == "call_method":
        return not str(node.target).endswith("_")
    if node.op != "call_module":
        into = "out" in node.kwargs
        return not into and node.target in (*_SUMS, operator.mul, operator.getitem, getattr)
    module = modules[node.target]
    if isinstance(module, (FusedConv2d, FusedGroupedConv2d)):
        return True
    known = type(module).__module__.startswith("torch.nn.modules") and not list(module.children())
    return known and not getattr(module, "inplace", False) and _is_as_defined(module)
