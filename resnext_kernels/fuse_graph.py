"""Graphs of `torch.fx` for `optimize_for_inference`: recording them, finding what to fuse."""

from __future__ import annotations

import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.jit import ScriptModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrize import is_parametrized
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .augmented import AUGMENTED, Proxy
from .fuse_memory import Modules, writes_to_constant
from .fused_conv import FusedConv2d, FusedGroupedConv2d
from .nn import GroupedConv2d
from .problem import FLOATING, ProblemError

# What `torch.fx` records as what it is, unlike other kinds of these.
_AS_THEY_ARE = {dict, list, tuple, torch.Size, immutable_dict, immutable_list, pytree.TreeSpec}
_CONSTANTS = (type(None), bool, int, float, str)
_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
_SUMS = (operator.add, torch.add, "add")
_SUMS_IN_PLACE = (AUGMENTED["iadd"], "add_")


def record(model: nn.Module) -> tuple[fx.GraphModule, dict[str, str]]:
    """The graph of ``model``, which is used up, and why which of its parts are not looked into.

    Raises:
        ProblemError: the forward of ``model`` itself cannot be recorded.
    """
    kind = type(model).__name__
    if isinstance(model, ScriptModule):
        raise ProblemError(f"model: {kind} is TorchScript, expected a module from before scripting")
    if hasattr(model, "_orig_mod"):
        raise ProblemError(f"model: {kind} is compiled, expected the module before torch.compile")
    if has_hooks(model) or "forward" in vars(model):
        what = "hooks" if has_hooks(model) else "a forward of its own instance"
        raise ProblemError(
            f"model: {kind} has {what}, expected a module without; optimise it before adding them"
        )
    opaque: dict[str, str] = {}
    defaults = _defaults(model)
    while True:
        recorder = _Recorder(opaque)
        try:
            graph = recorder.trace(model, concrete_args=defaults)
            break
        except Exception as error:
            if recorder.failed is None:
                raise ProblemError(
                    f"model: torch.fx cannot record {kind}.forward, expected one without control "
                    f"flow on tensors or autocast; optimise its parts instead ({_reason(error)})"
                ) from error
            path, part = recorder.failed
            opaque[path] = f"torch.fx cannot record {part}.forward: {_reason(error)}"
    names = {f"{name}_1": name for name in defaults}  # torch.fx has given them a number
    for node in graph.find_nodes(op="placeholder"):
        node.target = names.get(node.target, node.target)
    for node in graph.nodes:
        node.type = None  # an annotation that is a string makes torch.fx fail to pickle the graph
    for path in recorder.norm_acts:
        _make_plain_norm(model, path)
    return fx.GraphModule(model, graph, kind).eval(), opaque


def is_norm_act(module: nn.Module) -> bool:
    """Whether it is timm's batch normalisation with an activation of its own."""
    kind = type(module)
    return kind.__name__ == "BatchNormAct2d" and kind.__module__.startswith("timm.")


class _Recorder(fx.Tracer):
    def __init__(self, opaque: dict[str, str] | None = None) -> None:
        super().__init__()
        self.opaque = {} if opaque is None else opaque  # torch.fx unpickles a graph with none
        self.failed: tuple[str, str] | None = None
        self.norm_acts: set[str] = set()
        self.autocasts = _autocasts()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """As `torch.fx`, which makes plain dicts, lists and tuples of the kinds derived of them."""
        kind = type(a)
        if kind in _AS_THEY_ARE or isinstance(a, (fx.Proxy, fx.node.Node)):
            return super().create_arg(a)
        if kind is OrderedDict:
            return self.create_node("call_function", kind, (self.create_arg(dict(a)),), {})
        if kind in pytree.SUPPORTED_NODES:
            leaves, spec = pytree.tree_flatten(a)
            arguments = self.create_arg(leaves), self.create_arg(spec)
            return self.create_node("call_function", pytree.tree_unflatten, arguments, {})
        if isinstance(a, (dict, list, tuple)) and not hasattr(a, "_fields"):
            raise TypeError(f"a {kind.__name__} is no container that torch.utils._pytree knows")
        if is_dataclass(a) and not _is_plain_record(kind):
            raise TypeError(f"a {kind.__name__} is a dataclass that its fields alone do not make")
        return super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _autocasts() != self.autocasts:
            raise RuntimeError("it uses autocast")  # of which the graph would know nothing
        node = super().create_node(*args, **kwargs)
        if writes_to_constant(node):
            raise RuntimeError("it writes to a tensor that each call makes anew")
        return node

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if has_hooks(m) and next(m.children(), None) is not None:
            self.opaque[module_qualified_name] = "it has hooks"
        return (
            module_qualified_name in self.opaque
            or isinstance(m, _ConvNd)
            or has_hooks(m)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(
        self,
        m: Any,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        path = self.path_of_module(m)
        if is_norm_act(m) and not has_hooks(m):
            self.norm_acts.add(path)
            return m.act(m.drop(self.create_proxy("call_module", path, args, kwargs)))
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed is None and not self.is_leaf_module(m, path):
                self.failed = path, type(m).__name__
            raise


def _is_plain_record(kind: type) -> bool:
    """Whether a dataclass holds what its constructor is given, and nothing else."""
    return not hasattr(kind, "__post_init__") and all(field.init for field in fields(kind))


def _autocasts() -> int:
    """How many contexts of autocast this is in, of those too that turn it off."""
    count = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return count


def _defaults(model: nn.Module) -> dict[str, Any]:
    """The arguments of its forward that are recorded as what they are by default.

    A tensor stands in for every other argument, and would be taken for one where forward asks
    ``if mask is None``.
    """
    parameters = inspect.signature(type(model).forward).parameters.values()
    return {p.name: p.default for p in parameters if isinstance(p.default, _CONSTANTS)}


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _make_plain_norm(model: nn.Module, path: str) -> None:
    """Replace a normalisation with an activation by one without: the graph calls that by itself."""
    parent, _, name = path.rpartition(".")
    norm = model.get_submodule(path)
    plain = nn.BatchNorm2d.__new__(nn.BatchNorm2d)
    vars(plain).update(vars(norm))
    setattr(model.get_submodule(parent), name, plain)


def has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


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
        return type(module) is nn.ReLU and not has_hooks(module)
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
        idle = type(module) is nn.Identity or isinstance(module, _DropoutNd)
        return idle and not has_hooks(module)
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
        return node.target in (*_SUMS, operator.mul, operator.getitem, getattr)
    module = modules[node.target]
    if isinstance(module, (FusedConv2d, FusedGroupedConv2d)):
        return True
    known = type(module).__module__.startswith("torch.nn.modules") and not list(module.children())
    return known and not getattr(module, "inplace", False) and not has_hooks(module)
