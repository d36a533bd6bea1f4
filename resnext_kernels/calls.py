"""The grouped convolutions that a model calls, seen in one run of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ops
from .fused_conv import FusedGroupedConv2d, entering
from .nn import GroupedConv2d
from .problem import ConvProblem, normalise


class ModelError(ValueError):
    """A model that cannot be had or run; the text names it and says why."""


@dataclass(frozen=True)
class Call:
    """One call of ``module``, whose name in the model is ``name``."""

    name: str
    module: nn.Conv2d
    problem: ConvProblem


def is_grouped(module: nn.Module) -> bool:
    """Whether it is a grouped 2-D convolution, of torch's class or one derived from that."""
    return isinstance(module, nn.Conv2d) and module.groups > 1


def is_known(module: nn.Module) -> bool:
    """Whether a convolution is of torch's class or this package's, and not of another's."""
    return type(module) is nn.Conv2d or isinstance(module, GroupedConv2d)


def shown_name(name: str) -> str:
    """A module's name in its model as reports show it."""
    return name or "(the model itself)"


@torch.no_grad()
def grouped_calls(model: nn.Module, images: Tensor) -> list[Call]:
    """The grouped convolutions of ``model`` in the order in which it calls them on ``images``.

    Those that `replace_grouped_convs` can replace, modules of exactly `torch.nn.Conv2d`, and those
    that it has replaced. The model is run in evaluation mode.

    Raises:
        ModelError: the model fails on the images, or these are no tensor.
    """
    if not isinstance(images, Tensor):
        raise ModelError(f"images: {type(images).__name__}, expected a Tensor")
    model = getattr(model, "_orig_mod", model)
    found: list[Call] = []

    def note(name: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_known(module):  # only now, as a lazy one is made known by a hook before this one
            found.append(Call(name, module, _problem(module, *args[:1], **kwargs)))

    hooks = [
        module.register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name, module in model.named_modules()
        if is_grouped(module)
    ]
    try:
        # What torch.compile has compiled before would run without the hooks.
        with _evaluating(model), torch.compiler.set_stance("force_eager"):
            model(images)
    except (Exception, SystemExit) as error:  # code of the user's own may raise anything
        raise ModelError(
            f"{type(model).__name__} fails on input {tuple(images.shape)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each module in the mode in which it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _problem(module: nn.Conv2d, input: Tensor) -> ConvProblem:
    if isinstance(module, FusedGroupedConv2d):
        input = entering(module, input)
    input, weight = ops.autocast(input.device.type, input, module.weight)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    padding: Any = module.padding
    if module.padding_mode != "zeros":
        sides = module._reversed_padding_repeated_twice
        batched, padding = F.pad(batched, sides, mode=module.padding_mode), 0
    window = (module.stride, padding, module.dilation, module.groups)
    batched, conv = normalise(batched, weight, *window)
    return ConvProblem.of(batched, weight, *conv)
