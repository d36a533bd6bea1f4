"""`optimize_for_inference`: a copy of a model with its normalisations and epilogues fused.

The model's graph is recorded by `torch.fx`. In it each convolution takes up what follows it and
nothing else reads: a batch normalisation (into its weights), a residual sum and a ReLU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.fusion import fuse_conv_bn_weights

from . import fuse_graph as graphs
from .fuse_memory import bound_to_format, in_first_format
from .fuse_record import record
from .fused_conv import become_fused
from .problem import ProblemError


def optimize_for_inference(model: nn.Module) -> fx.GraphModule:
    """Return a faster copy of ``model`` for inference; ``model`` stays as it is.

    Each `torch.nn.Conv2d` or `GroupedConv2d` takes up the batch normalisation, the residual sum and
    the ReLU that follow it. The grouped ones run this package's fused operator; on the CPU, the
    dense ones run with weights that are laid out once for an input shape and a number of threads,
    and anew after a change that autograd counts (one through ``.data`` or NumPy it does not), but
    for weights in shared memory. Images are computed in channels_last, in which outputs of 4
    dimensions are returned too; parts that are not looked into are given contiguous ones. Outputs
    equal those of ``model`` but for the rounding of folded weights, in the containers that it
    returns: dicts, lists, tuples, plain dataclasses and whatever is registered with
    ``torch.utils._pytree``, as the ``ModelOutput`` of other libraries is. Everything else stays as
    it was: ``print(result.report)`` tells what, and why.

    The copy shares no tensor with ``model``. It keeps the names of parameters that are left; those
    of convolutions take no gradient. It can be compiled, exported, copied and saved, and moved to
    another device and dtype. As `torch.fx` records one way through the model, arguments of its
    forward with a default None, bool, number or string keep that default: another value raises.

    Args:
        model: any module in evaluation mode.

    Returns:
        A `torch.fx.GraphModule` with the signature of ``model.forward`` and a `FusionReport` as
        its attribute ``report``, or, where a part has that name, in ``meta["report"]``.

    Raises:
        TypeError: ``model`` is not a module.
        ProblemError: ``model`` or a part of it is in training mode, lazy or cannot be copied; it is
            TorchScript; a part has a name that `torch.fx.GraphModule` uses, as "graph" and "meta";
            its own forward (not that of a part, which then stays as it is) has control flow,
            autocast, random numbers, another container, writes to a buffer or to a tensor that it
            makes, which `torch.fx` cannot record, or hooks, or returns what hooks on its parts
            collected. The remedy is to optimise its parts:
            ``model.backbone = optimize_for_inference(model.backbone)``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: {type(model).__name__}, expected a torch.nn.Module")
    for name, module in model.named_modules():
        where = f"its part {name!r}" if name else type(model).__name__
        if module.training:
            raise ProblemError(f"model: {where} is in training mode, expected model.eval()")
        if any(map(is_lazy, (*module.parameters(recurse=False), *module.buffers(recurse=False)))):
            raise ProblemError(f"model: {where} is lazy, expected after its first forward")
    # Out of inference mode, so that the copy's tensors are not confined to it.
    with torch.inference_mode(False), torch.no_grad():
        fast, unrecorded = record(model)
        report = _Fuser(fast, unrecorded).run()
    fast.meta["report"] = report
    if not hasattr(fast, "report"):  # no part has that name
        vars(fast)["report"] = report
        fast.meta[_USER_PRESERVED_ATTRIBUTES_KEY] = {"report": report}  # by copies
    fast.recompile()
    return fast


class FusionReport:
    """What `optimize_for_inference` did; print it for a table.

    Attributes:
        fused: what each convolution took up, by its name.
        left: why a convolution was left alone, a batch normalisation not folded, or the inside of
            a module not looked at, by name.
    """

    def __init__(self) -> None:
        self.fused: dict[str, str] = {}
        self.left: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"modules: {len(self.fused)} convolutions fused, {len(self.left)} modules left alone"

    def __str__(self) -> str:
        rows = [("fused", *item) for item in self.fused.items()]
        rows += [("left", *item) for item in self.left.items()]
        width = max((len(name) for _, name, _ in rows), default=0)
        return "\n".join([repr(self), *(f"  {a:5}  {name:{width}}  {b}" for a, name, b in rows)])


class _Fuser:
    """Rewrites the graph of one module."""

    def __init__(self, fast: fx.GraphModule, unrecorded: dict[str, str]) -> None:
        self.fast = fast
        self.graph = fast.graph
        self.unrecorded = unrecorded
        self.report = FusionReport()
        self.modules: dict[Any, Any] = dict(fast.named_modules(remove_duplicate=False))
        self.calls = Counter(
            id(module)
            for node in self.graph.find_nodes(op="call_module")
            for module in self.modules[node.target].modules()
        )
        attributes = (str(node.target) for node in self.graph.find_nodes(op="get_attr"))
        self.read = {attribute.rpartition(".")[0] for attribute in attributes}
        self.found: dict[Any, list[str]] = {}
        self.bound: set[fx.Node] = set()

    def run(self) -> FusionReport:
        self._remove_idle()
        self.bound = bound_to_format(self.graph, self.modules, self.unrecorded)
        for node in self._calls_of(_ConvNd):
            if reason := self._reason_against(node):
                self.report.left[str(node.target)] = reason
            else:
                self._fuse(node)
        for node in list(self.graph.nodes):
            self._fuse_sum(node)
        for node in self._calls_of(_BatchNorm):
            self.report.left.setdefault(str(node.target), self._reason_not_folded(node))
        self._mark_entries()
        self.report.left.update(self.unrecorded)
        self.report.fused = {
            name: f"{self.modules[name]._get_name()}: {' + '.join(['convolution', *parts])}"
            for name, parts in self.found.items()
        }
        self.fast.delete_all_unused_submodules()
        self.graph.lint()
        return self.report

    def _calls_of(self, kind: type[nn.Module]) -> Iterator[fx.Node]:
        for node in list(self.graph.nodes):
            if node.op == "call_module" and isinstance(self.modules[node.target], kind):
                yield node

    def _is_fused(self, node: fx.Node) -> bool:
        return node.op == "call_module" and node.target in self.found

    def _remove_idle(self) -> None:
        """Take out what does nothing in evaluation, and views that channels_last forbids."""
        for node in list(self.graph.nodes):
            if graphs.is_idle(node, self.modules):
                _replace(node, node.all_input_nodes[0])
            else:
                graphs.allow_copy(node)

    def _reason_against(self, node: fx.Node) -> str:
        conv = self.modules[node.target]
        if reason := graphs.reason_against_conv(conv):
            return reason
        if self.calls[id(conv)] > 1:
            return f"it is called {self.calls[id(conv)]} times"
        if node.target in self.read:
            return "its parameters are read outside of it, too"
        if node in self.bound:
            return "its memory format shows: in strides, or a write to its output in another shape"
        return ""

    def _fuse(self, node: fx.Node) -> None:
        """Fuse a convolution with the batch normalisation and the ReLU right after it."""
        conv = self.modules[node.target]
        parts = self.found[node.target] = []
        following = graphs.only_reader(node)
        if following is not None and following.op == "call_module":
            norm = self.modules[following.target]
            if isinstance(norm, _BatchNorm) and not graphs.reason_against_norm(norm):
                _fold(conv, norm)
                _replace(following, node)
                parts.append("batch normalisation")
        become_fused(conv)
        self._fuse_relu(node)

    def _fuse_relu(self, node: fx.Node) -> None:
        following = graphs.only_reader(node)
        if following is not None and graphs.is_relu(following, self.modules):
            self.modules[node.target].relu = True
            _replace(following, node)
            self.found[node.target].append("ReLU")

    def _fuse_sum(self, node: fx.Node) -> None:
        """Fuse a residual sum, and a ReLU after it, into the later of the convolutions it adds."""
        place = {other: index for index, other in enumerate(self.graph.nodes)}
        operands = graphs.summands(node)
        for conv in sorted(operands, key=place.__getitem__, reverse=True):
            (residual,) = (other for other in operands if other is not conv)
            if self._takes_sum(conv, node):
                with self.graph.inserting_before(node):
                    fused = self.graph.call_module(str(conv.target), (conv.args[0], residual))
                if graphs.is_in_place(node):
                    into = "output" if node.args[0] is conv else "residual"
                    self.modules[conv.target].sum_into = into
                _replace(node, fused)
                self.graph.erase_node(conv)
                self.found[conv.target].append("residual sum")
                self._fuse_relu(fused)
                return

    def _takes_sum(self, conv: fx.Node, node: fx.Node) -> bool:
        if not self._is_fused(conv) or len(conv.args) != 1:
            return False
        if self.modules[conv.target].relu or graphs.only_reader(conv) is not node:
            return False
        # The sum in place may show in its first operand, unless only the sum reads that one.
        if graphs.is_in_place(node) and node.args[0] is not conv:
            first = graphs.summands(node)[0]
            if not self._is_fused(first) or graphs.only_reader(first) is not node:
                return False
        # The convolution moves to the place of the sum: nothing on the way may write to its input.
        between = conv.next
        while between is not node:
            if not graphs.writes_nothing(between, self.modules):
                return False
            between = between.next
        return True

    def _reason_not_folded(self, node: fx.Node) -> str:
        norm, (source, *_) = self.modules[node.target], node.all_input_nodes
        if reason := graphs.reason_against_norm(norm):
            return reason
        last = set(self.found.get(source.target, ())) & {"ReLU", "residual sum"}
        if self._is_fused(source) and not last and graphs.only_reader(source) is not node:
            return f"the output of {source.target} is read elsewhere, too"
        if source.op == "call_module" and source.target in self.report.left:
            return f"{source.target} was left alone"
        return "it does not follow a convolution"

    def _mark_entries(self) -> None:
        """Have the convolutions that no other precedes bring their input into channels_last."""
        after: set[fx.Node] = set()
        for node in list(self.graph.nodes):
            if node.op == "call_module" and node.target in self.unrecorded:
                self._bring_back([value for value in node.all_input_nodes if value in after], node)
                continue
            known = not after.isdisjoint(node.all_input_nodes)
            if self._is_fused(node):
                self.modules[node.target].at_entry = not known
            if known or self._is_fused(node):
                after.add(node)

    def _bring_back(self, values: list[fx.Node], node: fx.Node) -> None:
        """Have ``node``, which may ask for views that channels_last forbids or write to ``values``,
        and whatever reads them later, read them in the memory format they would have had."""
        for value in values:
            with self.graph.inserting_before(node):
                back = self.graph.call_function(in_first_format, (value,))
            value.replace_all_uses_with(back, delete_user_cb=lambda user: not user < node)


def _replace(node: fx.Node, by: fx.Node) -> None:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def _fold(conv: nn.Conv2d, norm: _BatchNorm) -> None:
    """Fold ``norm`` into ``conv``, in float32 at least."""
    own = conv.weight.dtype
    dtype = torch.promote_types(own, torch.float32)

    def wide(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.to(dtype)

    weight, bias = fuse_conv_bn_weights(
        wide(conv.weight), wide(conv.bias), wide(norm.running_mean), wide(norm.running_var),
        norm.eps, wide(norm.weight), wide(norm.bias),
    )  # fmt: skip
    conv.weight, conv.bias = nn.Parameter(weight.to(own)), nn.Parameter(bias.to(own))
