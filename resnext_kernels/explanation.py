"""Why a call, or each layer of a model, is served by the backend that serves it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import ModuleType
from typing import overload

from torch import Tensor, nn

from . import dispatch, ops, tuning, user_table
from .backends import BACKENDS, aten
from .calls import Call, grouped_calls, is_grouped, is_known, shown_name
from .functional import check_tensors
from .nn import GroupedConv2d
from .problem import DIRECTIONS, ConvProblem, Direction, IntOrPair, dtype_name, normalise, validate


@dataclass(frozen=True)
class Explanation:
    """The backend chosen for each direction of a problem, and why each other one was not.

    ``predicted`` is the time of a direction in milliseconds, from the nearest measured problem in
    proportion to the operations; None where nothing like it was measured. ``notes`` tells of the
    user's own measurements that are not in use, see `user_table`.
    """

    problem: ConvProblem
    chosen: dict[Direction, str]
    reasons: dict[Direction, dict[str, list[str]]]
    predicted: dict[Direction, float | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [_text(self.problem)]
        for direction, name in self.chosen.items():
            lines.append(f"  {direction}: {name}{_predicted(self.predicted.get(direction))}")
            for other, reasons in self.reasons[direction].items():
                lines.append(f"    not {other}: {'; '.join(reasons)}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def decisive_reason(self, direction: Direction) -> str:
        """The reason against the backend that was nearest to being chosen instead.

        Of the backends for this device, the one that least speaks against.
        """
        others = self.reasons[direction]
        if not others:
            return ""

        def distance(reasons: list[str]) -> tuple[bool, int]:
            return any(reason.startswith("device ") for reason in reasons), len(reasons)

        return "; ".join(others.get(aten.NAME) or min(others.values(), key=distance))


@dataclass(frozen=True)
class LayerExplanation:
    """What is to be told of the layers ``names`` of a model, which all make the same call."""

    names: tuple[str, ...]
    replaced: bool
    call: Explanation


@dataclass(frozen=True)
class ModelExplanation:
    """The grouped convolutions of a model, equal calls together; ``print`` it.

    ``others`` are the classes of grouped convolutions that are not told of, with how many there
    are: their forward may do more.
    """

    model: str
    layers: tuple[LayerExplanation, ...]
    others: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        count = sum(len(layer.names) for layer in self.layers)
        lines = [f"{self.model}: {count} calls of grouped convolutions"]
        for layer in self.layers:
            lines.append(f"{len(layer.names)} x {_text(layer.call.problem)}: {_few(layer.names)}")
            for direction, name in layer.call.chosen.items():
                time = layer.call.predicted.get(direction)
                reason = layer.call.decisive_reason(direction)
                lines.append(f"  {direction}  {name:6}  {_milliseconds(time):>9}  {reason}")
        lines += [self._total(direction) for direction in DIRECTIONS if self.layers]
        if left := sum(len(layer.names) for layer in self.layers if not layer.replaced):
            lines.append(f"{left} of them run PyTorch's own until replace_grouped_convs is called")
        for name, count in self.others.items():
            lines.append(f"{count} grouped convolutions of the class {name} are left as they are")
        notes = dict.fromkeys(note for layer in self.layers for note in layer.call.notes)
        return "\n".join([*lines, *notes])

    def _total(self, direction: Direction) -> str:
        times = [(layer.call.predicted[direction], len(layer.names)) for layer in self.layers]
        known = [(time, count) for time, count in times if time is not None]
        total = sum(time * count for time, count in known)
        covered, count = sum(count for _, count in known), sum(count for _, count in times)
        return f"all {direction}: {_milliseconds(total)} predicted for {covered} of {count} calls"


@overload
def explain(input: nn.Module, weight: Tensor, /) -> ModelExplanation: ...
@overload
def explain(
    input: Tensor,
    weight: Tensor,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Explanation: ...
def explain(
    input: Tensor | nn.Module,
    weight: Tensor,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Explanation | ModelExplanation:
    """Tell which backend "auto" takes for each direction of a call, and why not each other one.

    ``explain(model, images)`` tells it of every grouped convolution that a model calls on
    ``images`` of shape ``(N, C, H, W)``, by running it once in evaluation mode: with each layer's
    own ``backend``, and for a `torch.nn.Conv2d` as if `replace_grouped_convs` had replaced it.

    Arguments as in `grouped_conv2d`, without its ``bias``; ``print`` the result.

    Raises:
        ProblemError: as `grouped_conv2d` would, and for complex tensors, which are always ATen's.
        ModelError: the model fails on the images, or these are no tensor; a ValueError.
        TypeError: ``input`` is neither a tensor nor a module, or beside a tensor ``weight`` is
            none; or a model comes with more than its images.
    """
    if isinstance(input, nn.Module):
        if (stride, padding, dilation, groups) != (1, 0, 1, 1):
            raise TypeError(
                f"stride={stride!r}, padding={padding!r}, dilation={dilation!r}, "
                f"groups={groups!r}: expected with tensors; a model's layers have their own"
            )
        return _of_model(input, weight)
    check_tensors(input, weight)
    batched, weight = ops.autocast(input.device.type, input, weight)
    batched = batched.unsqueeze(0) if batched.dim() == 3 else batched
    batched, conv = normalise(batched, weight, stride, padding, dilation, groups)
    validate(batched, weight, None, *conv)
    return _of_problem(ConvProblem.of(batched, weight, *conv), dispatch.AUTO)


def _of_model(model: nn.Module, images: Tensor) -> ModelExplanation:
    alike: dict[tuple[ConvProblem, str, bool], list[str]] = {}
    for call in grouped_calls(model, images):
        replaced = isinstance(call.module, GroupedConv2d)
        alike.setdefault((call.problem, _backend(call), replaced), []).append(call.name)
    layers = (
        LayerExplanation(tuple(names), replaced, _of_problem(problem, backend))
        for (problem, backend, replaced), names in alike.items()
    )
    grouped = filter(is_grouped, model.modules())
    others = Counter(type(module).__name__ for module in grouped if not is_known(module))
    return ModelExplanation(type(model).__name__, tuple(layers), dict(others))


def _backend(call: Call) -> str:
    return call.module.backend if isinstance(call.module, GroupedConv2d) else dispatch.AUTO


def _of_problem(problem: ConvProblem, backend: str) -> Explanation:
    chosen = {d: dispatch.choose(problem, d, backend) for d in DIRECTIONS}
    reasons = {
        d: {
            name: _reasons_not_chosen(module, chosen[d], problem, d)
            if backend == dispatch.AUTO
            else [f"the layer names {backend!r}"]
            for name, module in BACKENDS.items()
            if module is not chosen[d]
        }
        for d in DIRECTIONS
    }
    predicted = {d: _predict(chosen[d], problem, d) for d in DIRECTIONS}
    tables = (user_table.load(name, problem.device) for name in BACKENDS)
    notes = tuple(str(table) for table in tables if table.ignored)
    names = {d: module.NAME for d, module in chosen.items()}
    return Explanation(problem, names, reasons, predicted, notes)


def _reasons_not_chosen(
    module: ModuleType, chosen: ModuleType, problem: ConvProblem, direction: Direction
) -> list[str]:
    """Why "auto" took ``chosen`` and not ``module``; never empty."""
    reasons = dispatch.auto_reasons_against(module, problem, direction)
    if reasons:
        return reasons
    if module is aten:
        return [tuning.compare(chosen.NAME, chosen.isa(), problem, direction).reason]
    best, own = (dispatch.gain(one, problem, direction) for one in (chosen, module))
    return [f"{chosen.NAME} gains more over aten: {best:.3g}x against {own:.3g}x"
            if best > own else f"{chosen.NAME} comes first"]  # fmt: skip


def _predict(module: ModuleType, problem: ConvProblem, direction: Direction) -> float | None:
    """Milliseconds on ``module``; of ATen, from the first backend that was measured beside it."""
    if module is not aten:
        return tuning.compare(module.NAME, module.isa(), problem, direction).ours
    able = (
        other
        for other in BACKENDS.values()
        if other is not aten and not dispatch.not_supported_reasons(other, problem)
    )
    times = (tuning.compare(o.NAME, o.isa(), problem, direction).aten for o in able)
    return next((time for time in times if time is not None), None)


def _text(problem: ConvProblem) -> str:
    layout = "channels_last" if problem.channels_last else "contiguous"
    return f"{problem} {dtype_name(problem.dtype)} {layout}"


def _predicted(time: float | None) -> str:
    return "" if time is None else f", {_milliseconds(time)} predicted"


def _milliseconds(time: float | None) -> str:
    return "-" if time is None else f"{time:.3g} ms"


def _few(names: tuple[str, ...], most: int = 3) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown_name, names[:most])) + more
