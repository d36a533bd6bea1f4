"""`replace_grouped_convs`: the grouped convolutions of any model onto this package's kernels.

A replaced module stays the same object and only its class changes, from `torch.nn.Conv2d` to
`GroupedConv2d`. So whatever else holds the module or its tensors (hooks, optimizers, a wrapper of
DistributedDataParallel, a compiled model, a second name in the model) goes on working.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import nn
from torch.jit import ScriptModule
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .calls import shown_name
from .dispatch import check_backend_name
from .nn import GroupedConv2d
from .problem import FLOATING

Filter = Callable[[str, nn.Module], bool]


def replace_grouped_convs(
    model: nn.Module, backend: str = "auto", filter_fn: Filter | None = None
) -> SwapReport:
    """Make every grouped `torch.nn.Conv2d` of ``model`` a `GroupedConv2d`, in place.

    Parameters, names, hooks, training mode, device, dtype and other attributes stay as they are,
    and so does the ``state_dict``. All padding modes are served. Left alone, with the reason in
    the report: subclasses of `torch.nn.Conv2d`, parametrised or sharded weights, lazy modules
    before their first forward, modules quantised or prepared for it, TorchScript.

    Swap before or after wrapping by DistributedDataParallel and `torch.compile`, but before
    scripting, tracing or exporting the model or sharding it with ``fully_shard``, and after fusing
    or quantising its other layers: tools that look for `torch.nn.Conv2d` itself pass over its
    subclass without a word. `torch.onnx.export` of the swapped model gives standard
    convolutions; what else is to run without this package is exported after ``restore()``.
    Modules that are `GroupedConv2d` already are given ``backend``.

    Args:
        model: any module; a lone convolution, too.
        backend: "auto" or the name of one backend, see `grouped_conv2d`.
        filter_fn: called as ``filter_fn(name, module)`` for each convolution that can be replaced,
            with its first name in ``model.named_modules()``; false leaves it alone.

    Returns:
        A `SwapReport`: print it, undo the swap with its ``restore()``, or use it in a ``with``
        statement, whose end undoes the swap.

    Raises:
        TypeError: ``model`` is not a module, or ``filter_fn`` cannot be called.
        ProblemError: ``backend`` is not the name of a backend.

    Warns:
        UserWarning: nothing was replaced.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: {type(model).__name__}, expected a torch.nn.Module")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn={filter_fn!r}: expected a callable (name, module) -> bool")
    check_backend_name(backend)

    chosen: dict[str, nn.Module] = {}
    skipped: dict[str, str] = {}
    ungrouped = 0
    for name, module in model.named_modules():
        if not _is_convolution(module):
            continue
        if getattr(module, "groups", None) == 1:
            ungrouped += 1
        elif reason := _reason_against(module):
            skipped[name] = reason
        elif filter_fn is not None and not filter_fn(name, module):
            skipped[name] = "filter_fn returned false"
        else:
            chosen[name] = module

    swaps = [_Swap.apply(name, module, backend) for name, module in chosen.items()]
    report = SwapReport(swaps, skipped, ungrouped)
    if not swaps:
        warnings.warn(
            f"replace_grouped_convs found nothing to replace in {type(model).__name__}: {report}",
            stacklevel=2,
        )
    return report


class SwapReport:
    """What `replace_grouped_convs` did; print it for a table.

    Attributes:
        replaced: the settings of each convolution that was replaced, by name.
        skipped: why a grouped convolution was left alone, by name.
        ungrouped: number of convolutions with ``groups=1``, all left alone.
    """

    def __init__(self, swaps: list[_Swap], skipped: dict[str, str], ungrouped: int) -> None:
        self.replaced = {swap.name: swap.module.extra_repr() for swap in swaps}
        self.skipped = skipped
        self.ungrouped = ungrouped
        self._swaps = swaps

    def restore(self) -> None:
        """Undo the swap. Calling it again does nothing.

        Warns:
            UserWarning: the class of a module was changed after the swap, by a parametrisation
                say. Such a module is left as it is; call again once that change is undone.
        """
        self._swaps = [swap for swap in self._swaps if not swap.undo()]
        if self._swaps:
            names = ", ".join(
                f"{shown_name(s.name)} ({type(s.module).__name__})" for s in self._swaps
            )
            warnings.warn(
                f"not restored, since their class changed after the swap: {names}", stacklevel=2
            )

    def __enter__(self) -> SwapReport:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.restore()

    def __repr__(self) -> str:
        restored = " and restored" if self.replaced and not self._swaps else ""
        return (
            f"convolutions: {len(self.replaced)} replaced{restored}, {len(self.skipped)} skipped, "
            f"{self.ungrouped} with groups=1 left alone"
        )

    def __str__(self) -> str:
        rows = [("replaced", *item) for item in self.replaced.items()]
        rows += [("skipped", *item) for item in self.skipped.items()]
        width = max((len(shown_name(name)) for _, name, _ in rows), default=0)
        lines = [f"  {what:8}  {shown_name(name):{width}}  {text}" for what, name, text in rows]
        return "\n".join([repr(self), *lines])


@dataclass(frozen=True, eq=False)
class _Swap:
    """One replaced module, with the class and the ``backend`` attribute, if any, it had before."""

    name: str
    module: nn.Module
    kind: type[nn.Module]
    attributes: dict[str, Any]

    @classmethod
    def apply(cls, name: str, module: nn.Module, backend: str) -> _Swap:
        attributes = {key: value for key, value in vars(module).items() if key == "backend"}
        swap = cls(name, module, type(module), attributes)
        if not isinstance(module, GroupedConv2d):
            module.__class__ = GroupedConv2d
        vars(module)["backend"] = backend
        return swap

    def undo(self) -> bool:
        """Whether it could be done: not where something else has changed the class since."""
        if type(self.module) not in (GroupedConv2d, self.kind):
            return False
        self.module.__class__ = self.kind
        vars(self.module).pop("backend", None)
        vars(self.module).update(self.attributes)
        return True


def _is_convolution(module: nn.Module) -> bool:
    """Convolutions of any rank and origin, also quantised, scripted or of another library."""
    if isinstance(module, _ConvNd):
        return True
    if isinstance(module, ScriptModule):  # one that was traced has no `groups`
        return "Conv" in getattr(module, "original_name", "") and hasattr(module, "weight")
    named_so = "Conv" in type(module).__name__
    return named_so and hasattr(module, "weight") and hasattr(module, "groups")


def _reason_against(module: nn.Module) -> str:
    """Why a grouped convolution cannot be replaced; empty where it can."""
    if isinstance(module, GroupedConv2d):
        return ""
    if type(module) is not nn.Conv2d:
        return _reason_against_class(module)
    if "forward" in vars(module) or "_conv_forward" in vars(module):
        return "its forward was replaced on the instance"
    if getattr(module, "qconfig", None) or hasattr(module, "activation_post_process"):
        return "prepared for quantisation, which converts torch.nn.Conv2d alone"
    if getattr(module, "weight", None) is None:
        return "it has no weight"
    if is_traceable_wrapper_subclass(module.weight):
        kind = type(module.weight).__name__
        return f"its weight is a {kind}: swap before sharding or quantising"
    if module.weight.dtype not in FLOATING:
        return f"its weight is {module.weight.dtype}"
    return ""


def _reason_against_class(module: nn.Module) -> str:
    kind = type(module)
    if isinstance(module, ScriptModule):
        return "TorchScript is compiled already: swap before scripting or tracing"
    if is_parametrized(module):
        return f"{kind.__name__} is parametrised: swap before parametrising"
    if isinstance(module, LazyModuleMixin):
        return f"{kind.__name__} has no weight yet: swap after the first forward"
    if kind.__module__.startswith("torch.ao."):
        return f"{kind.__name__} of {kind.__module__} is quantised"
    if not isinstance(module, nn.Conv2d):
        return f"{kind.__name__} is not a torch.nn.Conv2d"
    own = [f for f in ("forward", "_conv_forward") if getattr(kind, f) is not getattr(nn.Conv2d, f)]
    if own:
        return f"{kind.__name__} has a {own[0]} of its own"
    return f"{kind.__name__} is a subclass of torch.nn.Conv2d, and would lose what it adds"
