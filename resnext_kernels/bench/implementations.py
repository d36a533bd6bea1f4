"""What is measured: this package's backends and their peers, behind one interface."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import derivatives
from ..backends import BACKENDS
from ..dispatch import AUTO, not_supported_reasons
from ..functional import grouped_conv2d
from ..problem import ConvProblem, Direction
from . import jax_peer

Layout = Literal["channels_last", "contiguous"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
Call = Callable[[], Any]  # what it returns, `result_of` takes

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
_MASKS: dict[Direction, list[bool]] = {
    "dgrad": [True, False, False],
    "wgrad": [False, True, False],
}


class Operands(NamedTuple):
    """The three tensors of a convolution; a direction reads two of them."""

    input: Tensor
    weight: Tensor
    grad_output: Tensor

    @classmethod
    def random(cls, problem: ConvProblem) -> Operands:
        """Contiguous standard normal tensors of the problem's shapes, dtype and device."""
        shapes = (problem.input_shape, problem.weight_shape, problem.output_shape)
        return cls(*(torch.randn(s, device=problem.device).to(problem.dtype) for s in shapes))


@dataclass(frozen=True)
class Implementation:
    """A way to compute a convolution.

    ``layout`` is the memory format of the images and of the weight, as
    ``model.to(memory_format=...)`` leaves them. ``bind(problem, direction, operands)`` returns the
    call to be timed; where it ``compiles``, that takes long.
    """

    name: str
    layout: Layout
    bind: Callable[[ConvProblem, Direction, Operands], Call]
    compiles: bool = False

    @property
    def label(self) -> str:
        return label(self.name, self.layout)

    def in_layout(self, layout: Layout) -> Implementation:
        """The same one on operands in another memory format, conversions within its time."""
        return dataclasses.replace(self, layout=layout)

    def copy_operands(self, operands: Operands) -> Operands:
        """Fresh copies in the layout of this implementation."""
        return Operands(*(t.clone(memory_format=FORMATS[self.layout]) for t in operands))


def result_of(direction: Direction, returned: Any) -> Tensor:
    """The one tensor of interest among what a call returned."""
    if isinstance(returned, tuple):
        returned = returned[_MASKS[direction].index(True)]
    return returned if isinstance(returned, Tensor) else jax_peer.as_tensor(returned)


def _bind_ours(problem: ConvProblem, direction: Direction, x: Operands, *, backend: str) -> Call:
    conv = problem.convolution
    if direction == "fprop":
        return partial(grouped_conv2d, x.input, x.weight, None, *conv, backend=backend)
    return partial(  # what autograd calls on the way back
        derivatives.masked_backward,
        x.grad_output, x.input, x.weight, conv, _MASKS[direction], backend,
    )  # fmt: skip


def _bind_torch(problem: ConvProblem, direction: Direction, x: Operands) -> Call:
    conv = (problem.stride, problem.padding, problem.dilation)
    if direction == "fprop":
        return partial(F.conv2d, x.input, x.weight, None, *conv, problem.groups)
    return partial(
        torch.ops.aten.convolution_backward,
        x.grad_output, x.input, x.weight, None,
        *conv, False, [0, 0], problem.groups, _MASKS[direction],
    )  # fmt: skip


def _bind_inductor(problem: ConvProblem, direction: Direction, x: Operands) -> Call:
    """Compiled at once. On a CPU the weight of fprop is frozen, as in a model in inference."""
    from torch._inductor import config

    frozen = direction == "fprop" and problem.device == "cpu"
    if frozen:
        x = x._replace(weight=torch.nn.Parameter(x.weight, requires_grad=False))

    def call() -> Tensor | tuple[Tensor, ...]:
        return _bind_torch(problem, direction, x)()

    # A code object of its own: what is compiled of one is limited to a few shapes, then it would
    # run uncompiled.
    code, cells = call.__code__.replace(), call.__closure__
    own = FunctionType(code, call.__globals__, closure=cells)
    compiled: Call = torch.compile(own, mode="max-autotune-no-cudagraphs", dynamic=False)
    with torch.no_grad(), config.patch(freezing=frozen):
        compiled()
    return compiled


def _by_name(implementations: Iterable[Implementation]) -> dict[str, Implementation]:
    return {implementation.name: implementation for implementation in implementations}


OURS = _by_name(
    Implementation(name, "channels_last", partial(_bind_ours, backend=name))
    for name in (*BACKENDS, AUTO)
)
DEFAULT_OURS = tuple(name for name in OURS if name != "aten")  # which the peers stand for
PEERS = _by_name(
    (
        Implementation("torch:channels_last", "channels_last", _bind_torch),
        Implementation("torch:contiguous", "contiguous", _bind_torch),
        Implementation("torch:inductor", "channels_last", _bind_inductor, compiles=True),
        Implementation("jax", "channels_last", jax_peer.bind, compiles=True),
    )
)
DEFAULT_PEERS = ("torch:channels_last", "torch:contiguous")  # the others compile for minutes


def label(implementation: str, layout: str) -> str:
    """The name, with the layout where that is neither the usual one nor in the name."""
    usual = layout == "channels_last" or implementation in PEERS
    return implementation if usual else f"{implementation} {layout}"


def reasons_against(name: str, problem: ConvProblem, direction: Direction) -> list[str]:
    """Why an implementation of `OURS` or `PEERS` cannot serve a call; empty where it can."""
    if name in BACKENDS:
        return not_supported_reasons(BACKENDS[name], problem)
    return jax_peer.reasons_against(problem, direction) if name == "jax" else []
