"""Recording the graph of a model, by `torch.fx`, for `optimize_for_inference`."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.jit import ScriptModule
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree

from .augmented import Proxy
from .fuse_graph import has_hooks, is_norm_act
from .fuse_memory import writes_to_constant
from .problem import ProblemError

# What `torch.fx` records as what it is, unlike other kinds of these.
_AS_THEY_ARE = {dict, list, tuple, torch.Size, immutable_dict, immutable_list, pytree.TreeSpec}
_CONSTANTS = (type(None), bool, int, float, str)


def record(model: nn.Module) -> tuple[fx.GraphModule, dict[str, str]]:
    """The graph of a copy of ``model``, and why which of its parts are not looked into.

    Raises:
        ProblemError: ``model`` cannot be copied, or its forward itself cannot be recorded.
    """
    kind, trial = type(model).__name__, _copied(model)
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
            with _leaves_no_trace(trial):
                graph = recorder.trace(trial, concrete_args=defaults)
            break
        except Exception as error:
            if recorder.failed is None:
                raise ProblemError(
                    f"model: torch.fx cannot record {kind}.forward, expected one without control "
                    f"flow on tensors or autocast; optimise its parts instead ({_reason(error)})"
                ) from error
            path, part = recorder.failed
            opaque[path] = f"torch.fx cannot record {part}.forward: {_reason(error)}"
            trial = _copied(model)  # a forward that failed may have left things in the last one
    names = {f"{name}_1": name for name in defaults}  # torch.fx has given them a number
    for node in graph.find_nodes(op="placeholder"):
        node.target = names.get(node.target, node.target)
    for node in graph.nodes:
        node.type = None  # an annotation that is a string makes torch.fx fail to pickle the graph
    if any(map(has_hooks, trial.modules())) and _is_stale(graph):
        raise ProblemError(
            f"model: {kind}.forward returns what hooks on its parts collect, which torch.fx cannot "
            "record; optimise its parts instead"
        )
    _check_names(graph, kind)
    for path in recorder.norm_acts:
        _make_plain_norm(trial, path)
    return fx.GraphModule(trial, graph, kind).eval(), opaque


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ProblemError(
            f"model: {type(model).__name__} expected one that can be copied, without sharded "
            f"weights, or weights that pruning or weight_norm computed with gradients ({error})"
        ) from error


@contextmanager
def _leaves_no_trace(module: nn.Module) -> Iterator[None]:
    """Raises RuntimeError for what the graph of a forward would know nothing of."""
    before, drawn = _versions(module), torch.get_rng_state()
    yield
    if _versions(module) != before:
        raise RuntimeError("it writes to a buffer")
    if not torch.equal(torch.get_rng_state(), drawn):
        raise RuntimeError("it draws random numbers")


def _versions(module: nn.Module) -> list[tuple[int, int]]:
    """Which buffers there are, and how often each was written to."""
    return [(id(b), 0 if b.is_inference() else b._version) for b in module.buffers()]


def _is_stale(graph: fx.Graph) -> bool:
    """Whether it returns nothing that it computes, or a tensor from before it was recorded."""
    returned = graph.output_node().all_input_nodes
    return not any(node.op.startswith("call") for node in returned) or any(
        node.op == "get_attr" and str(node.target).startswith("_tensor_constant")
        for node in returned
    )


def _check_names(graph: fx.Graph, kind: str) -> None:
    taken = dir(fx.GraphModule(nn.Module(), fx.Graph()))
    for node in (*graph.find_nodes(op="call_module"), *graph.find_nodes(op="get_attr")):
        name = str(node.target).partition(".")[0]
        if name in taken:
            raise ProblemError(
                f"model: {kind} has a part named {name!r}, as torch.fx.GraphModule has, expected "
                "another name; or optimise its parts instead"
            )


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
            with _leaves_no_trace(m):
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
