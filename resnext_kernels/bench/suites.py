"""The problems that benchmarks and tests share: grouped 3x3 layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from ..problem import ConvProblem, Direction

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_FIRST_STAGE_SIZE = 56  # a 224x224 image after the stem's two halvings


@dataclass(frozen=True)
class Layer:
    """A 3x3 convolution with padding 1 from ``channels`` to as many, square images.

    ``size`` is the input's height and width in pixels; ``count`` tells how often the model has it.
    """

    channels: int
    size: int
    stride: int
    groups: int
    count: int

    def problem(
        self, batch: int, dtype: torch.dtype, channels_last: bool = True, device: str = "cpu"
    ) -> ConvProblem:
        """The call for ``batch`` images on a type of device."""
        return ConvProblem(
            batch, self.channels, (self.size, self.size), self.channels, (3, 3),
            (self.stride, self.stride), (1, 1), (1, 1), self.groups, dtype, device, channels_last,
        )  # fmt: skip

    def __str__(self) -> str:
        stride = f" s{self.stride}" if self.stride != 1 else ""
        return f"{self.channels}x{self.size}x{self.size} g{self.groups}{stride}"


def resnext_layers(
    blocks: Sequence[int], cardinality: int, bottleneck_width: int
) -> tuple[Layer, ...]:
    """The distinct grouped layers of an ImageNet ResNeXt (table 1 of arXiv:1611.05431).

    Channels double and the image halves from stage to stage; the first block of every stage but
    the first has stride 2.
    """
    layers = []
    for stage, count in enumerate(blocks):
        channels = cardinality * bottleneck_width << stage
        size = _FIRST_STAGE_SIZE >> stage
        if stage > 0:
            layers.append(Layer(channels, 2 * size, 2, cardinality, 1))
            count -= 1
        layers.append(Layer(channels, size, 1, cardinality, count))
    return tuple(layers)


@dataclass(frozen=True)
class ModelLayer:
    """A convolution as a model calls it: ``single`` is the call for one image."""

    single: ConvProblem
    count: int

    def problem(
        self, batch: int, dtype: torch.dtype, channels_last: bool = True, device: str = "cpu"
    ) -> ConvProblem:
        """The call for ``batch`` images on a type of device."""
        return replace(
            self.single, batch=self.single.batch * batch, dtype=dtype,
            channels_last=channels_last, device=device,
        )  # fmt: skip

    def __str__(self) -> str:
        return str(self.single)


# Widths of a group that those models lack, from depthwise to 168: peers serve some of them badly.
_WIDTHS = (
    Layer(256, 28, 1, 256, 1), Layer(512, 28, 2, 512, 1), Layer(256, 28, 1, 128, 1),
    Layer(240, 28, 1, 48, 1), Layer(384, 14, 1, 32, 1), Layer(336, 28, 1, 14, 1),
    Layer(672, 28, 2, 28, 1), Layer(480, 28, 1, 10, 1), Layer(448, 14, 1, 4, 1),
    Layer(896, 28, 2, 8, 1), Layer(336, 14, 1, 2, 1),
)  # fmt: skip
SUITES: dict[str, tuple[Layer, ...]] = {
    "resnext50": resnext_layers((3, 4, 6, 3), 32, 4),
    "resnext101_32x8d": resnext_layers((3, 4, 23, 3), 32, 8),
    "widths": _WIDTHS,
}


@dataclass(frozen=True)
class Case:
    """One measurement to make: a layer, a direction, a dtype, a batch size and a device type."""

    suite: str
    layer: Layer | ModelLayer
    direction: Direction
    dtype: torch.dtype
    batch: int
    device: str = "cpu"

    @property
    def problem(self) -> ConvProblem:
        return self.layer.problem(self.batch, self.dtype, device=self.device)

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.layer} {self.direction} {self.dtype_name} batch {self.batch}"


def cases_of(
    suite: str,
    directions: Iterable[Direction],
    dtypes: Iterable[torch.dtype],
    batches: Iterable[int],
    device: str = "cpu",
) -> list[Case]:
    """Every combination for the layers of a suite of `SUITES`, the layers varying fastest."""
    return cases_of_layers(suite, SUITES[suite], directions, dtypes, batches, device)


def cases_of_layers(
    suite: str,
    layers: Sequence[Layer | ModelLayer],
    directions: Iterable[Direction],
    dtypes: Iterable[torch.dtype],
    batches: Iterable[int],
    device: str = "cpu",
) -> list[Case]:
    """As `cases_of`, of layers that need not be in the registry; ``suite`` is their name."""
    combinations = [(t, b, d) for t in dtypes for b in batches for d in directions]
    return [
        Case(suite, layer, direction, dtype, batch, device)
        for dtype, batch, direction in combinations
        for layer in layers
    ]
