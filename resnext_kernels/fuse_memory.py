"""Where a graph of `torch.fx` tells memory formats apart: writes to what may be a view or a copy.

``y.flatten(1)`` shares the memory of a contiguous ``y``, and is a copy of one in channels_last.
Where one of the two is written to and the other is read afterwards, the results are those of the
original model in its own memory format alone. So they are where the strides themselves are read.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Container, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils import _pytree as pytree

from .augmented import AUGMENTED

Modules = Mapping[Any, Any]

# By the memory format of a tensor, they share its memory or copy it.
_BY_FORMAT = ("contiguous", "flatten", "ravel", "reshape", "reshape_as", "to", "view", "view_as")
_OF_NO_ELEMENTS = (getattr, "size", "dim")
_VIEWS_BY_ATTRIBUTE = ("T", "mT", "data")
# Other results, or none, by the strides; what is left of "view" asks for another dtype.
_OF_STRIDES = ("as_strided", "is_contiguous", "storage_offset", "stride", "view", "view_as_complex")


def bound_to_format(graph: fx.Graph, modules: Modules, unrecorded: Container[Any]) -> set[fx.Node]:
    """The values whose memory format shows in the results, and all that they are made of.

    Those modules that are ``unrecorded`` may write to copies of their inputs, see `_Fuser`.
    """
    same: dict[fx.Node, fx.Node] = {}  # the first value in the same memory, in every format
    root: dict[fx.Node, fx.Node] = {}  # the first one that is in the same memory in some format
    outdated: set[fx.Node] = set()  # those of `same` that in some format missed a write
    missed: set[fx.Node] = set()  # those that a write to a copy would not reach
    bound: list[fx.Node] = []
    for node in graph.nodes:
        if node.op == "call_module" and node.target in unrecorded:
            for read in node.all_input_nodes:
                missed.update(o for o in same if root[o] is root[read] and o is not read)
        reads = () if node.target in _OF_NO_ELEMENTS else node.all_input_nodes
        of_strides = node.op != "call_module" and _name(node, modules) in _OF_STRIDES
        bound += [
            root[read] for read in reads if of_strides or same[read] in outdated or read in missed
        ]
        written = _written_by(node, modules)
        source = written or _shared_by(node, modules)
        same[node] = root[node] = node
        if source is not None:
            root[node] = root[source]
            if written or _name(node, modules) not in _BY_FORMAT:
                same[node] = same[source]
        if written:
            maybe = (other for other in same if root[other] is root[written])
            outdated.update(same[other] for other in maybe if same[other] is not same[written])
    return _with_sources(bound)


def in_first_format(value: Any) -> Any:
    """A tensor, or those in a container, as a model computes them that is not in channels_last."""
    if not torch.compiler.is_compiling() and has_torch_function((value,)):  # to record it, say
        return handle_torch_function(in_first_format, (value,), value)
    return pytree.tree_map_only(Tensor, _contiguous, value)


def _contiguous(tensor: Tensor) -> Tensor:
    usual = tensor.dim() == 4 and tensor.layout == torch.strided
    return tensor.contiguous() if usual else tensor


def writes_to_constant(node: fx.Node) -> bool:
    """Whether it writes to a tensor that the graph has as it was when it was recorded."""
    out = node.kwargs.get("out")
    if node.op == "call_method" and str(node.target).endswith("_"):
        out = node.args[0]
    return (
        isinstance(out, fx.Node)
        and out.op == "get_attr"
        and str(out.target).startswith("_tensor_constant")
    )


def _with_sources(nodes: list[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    while nodes:
        node = nodes.pop()
        if node not in found:
            found.add(node)
            nodes += node.all_input_nodes
    return found


def _written_by(node: fx.Node, modules: Modules) -> fx.Node | None:
    """The value that ``node`` is known to write to, and returns."""
    if not node.all_input_nodes:
        return None
    if node.op == "call_module":
        writes = getattr(modules[node.target], "inplace", False)
    elif node.op == "call_function":
        if isinstance(out := node.kwargs.get("out"), fx.Node):
            return out
        known = node.target in (*AUGMENTED.values(), operator.setitem)
        writes = known or _name(node, modules).endswith("_") or _is_asked_to_write(node)
    else:
        writes = node.op == "call_method" and _name(node, modules).endswith("_")
    return node.all_input_nodes[0] if writes else None


def _is_asked_to_write(node: fx.Node) -> bool:
    """Whether it calls a function, such as `torch.nn.functional.relu`, with ``inplace`` true."""
    if not isinstance(node.target, FunctionType):
        return False
    given = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    return bool(given.arguments.get("inplace"))


def _shared_by(node: fx.Node, modules: Modules) -> fx.Node | None:
    """The value whose memory the result of ``node`` may share; None where it has its own."""
    if not node.all_input_nodes or node.op == "output":
        return None
    if node.target is getattr:
        shares = node.args[1] in _VIEWS_BY_ATTRIBUTE
    elif packet := getattr(torch.ops.aten, _name(node, modules), None):
        schemas = (getattr(packet, overload)._schema for overload in packet.overloads())
        aliases = [returned.alias_info for schema in schemas for returned in schema.returns]
        shares = any(alias is not None and not alias.is_write for alias in aliases)
    else:  # methods such as float() return their tensor where they can
        shares = node.op == "call_method" or node.target is operator.getitem
    return node.all_input_nodes[0] if shares else None


def _name(node: fx.Node, modules: Modules) -> str:
    """Of what it calls; a module, such as `torch.nn.Flatten`, has that of its function."""
    if node.op == "call_module":
        return type(modules[node.target]).__name__.lower()
    return getattr(node.target, "__name__", str(node.target))
