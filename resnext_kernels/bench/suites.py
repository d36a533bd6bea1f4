"""The problems that benchmarks and tests share: grouped layers of well-known models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from ..problem import ConvProblem, Direction, dtype_name

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WHOLE_MODELS = "model"  # the suite of records that tell of whole models, not of layers
_FIRST_STAGE_SIZE = 56  # a 224x224 image after the stem's two halvings


@dataclass(frozen=True)
class Layer:
    """A convolution from ``channels`` to as many; square images, square kernel, padding "same".

    ``size`` is the input's height and width in pixels; ``count`` tells how often the model has it.
    """

    channels: int
    size: int
    stride: int
    groups: int
    count: int
    kernel: int = 3

    def problem(
        self, batch: int, dtype: torch.dtype, channels_last: bool = True, device: str = "cpu"
    ) -> ConvProblem:
        """The call for ``batch`` images on a type of device."""
        return ConvProblem(
            batch, self.channels, (self.size,) * 2, self.channels, (self.kernel,) * 2,
            (self.stride,) * 2, (self.kernel // 2,) * 2, (1, 1), self.groups,
            dtype, device, channels_last,
        )  # fmt: skip

    def __str__(self) -> str:
        return name_of(self.problem(1, torch.float32))


def name_of(single: ConvProblem) -> str:
    """A name for the call for one image, the same for none but equal calls.

    What is usual is left out: as many channels out as in, a 3x3 kernel, stride 1, dilation 1 and
    the padding that keeps the image's size at stride 1.
    """
    (height, width), kernel = single.in_size, single.kernel
    same = tuple(d * (k // 2) for d, k in zip(single.dilation, kernel, strict=True))
    out = "" if single.out_channels == single.in_channels else f"->{single.out_channels}"
    images = f"{single.batch}x" if single.batch != 1 else ""
    text = f"{images}{single.in_channels}x{height}x{width}{out} g{single.groups}"
    for letter, pair, usual in (
        ("k", kernel, (3, 3)), ("s", single.stride, (1, 1)),
        ("p", single.padding, same), ("d", single.dilation, (1, 1)),
    ):  # fmt: skip
        if pair != usual:
            text += f" {letter}{pair[0]}" + (f"x{pair[1]}" if pair[0] != pair[1] else "")
    return text


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
class RegNet:
    """A RegNet of arXiv:2003.13678: channels and blocks of its four stages, channels of a group."""

    channels: Sequence[int]
    blocks: Sequence[int]
    group_width: int

    def stage(self, number: int) -> tuple[Layer, ...]:
        """The distinct grouped layers of one stage, counted from 1: the first block halves."""
        channels, size = self.channels[number - 1], _FIRST_STAGE_SIZE >> (number - 1)
        groups = channels // min(channels, self.group_width)
        first = Layer(channels, 2 * size, 2, groups, 1)
        others = self.blocks[number - 1] - 1
        return (first, Layer(channels, size, 1, groups, others)) if others else (first,)


# By the names that timm has for them; the figures are those of the paper's authors.
REGNETS = {
    "regnetx_032": RegNet((96, 192, 432, 1008), (2, 6, 15, 2), 48),
    "regnety_004": RegNet((48, 104, 208, 440), (1, 3, 6, 6), 8),
    "regnetx_004": RegNet((32, 64, 160, 384), (1, 2, 7, 12), 16),
    "regnety_032": RegNet((72, 216, 576, 1512), (2, 5, 13, 1), 24),
    "regnety_080": RegNet((168, 448, 896, 2016), (2, 4, 10, 1), 56),
    "regnety_160": RegNet((224, 448, 1232, 3024), (2, 4, 11, 1), 112),
    "regnetx_080": RegNet((80, 240, 720, 1920), (2, 5, 15, 1), 120),
    "regnetx_320": RegNet((336, 672, 1344, 2520), (2, 7, 13, 1), 168),
}


def _regnet_layers() -> tuple[Layer, ...]:
    """All stages of the first of `REGNETS`; of the others the third, which has most blocks."""
    first, *others = REGNETS.values()
    stages = [first.stage(number) for number in range(1, 5)]
    return sum([*stages, *(regnet.stage(3) for regnet in others)], ())


DEPTHWISE = {
    "mobilenetv2_100": (
        Layer(96, 112, 2, 96, 1), Layer(192, 28, 1, 192, 2), Layer(384, 14, 1, 384, 4),
        Layer(576, 14, 2, 576, 1), Layer(960, 7, 1, 960, 3),
    ),
    "efficientnet_b0": (
        Layer(144, 56, 2, 144, 1, 5), Layer(240, 28, 1, 240, 1, 5),
        Layer(672, 14, 1, 672, 2, 5), Layer(1152, 7, 1, 1152, 3, 5),
    ),
    "convnext_tiny": (
        Layer(96, 56, 1, 96, 3, 7), Layer(192, 28, 1, 192, 3, 7),
        Layer(384, 14, 1, 384, 9, 7), Layer(768, 7, 1, 768, 3, 7),
    ),
}  # fmt: skip


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
        return name_of(self.single)


# Widths of a group that none of those models has.
_WIDTHS = (Layer(256, 28, 1, 128, 1), Layer(240, 28, 1, 48, 1), Layer(384, 14, 1, 32, 1))
SUITES: dict[str, tuple[Layer, ...]] = {
    "resnext50": resnext_layers((3, 4, 6, 3), 32, 4),
    "resnext101_32x8d": resnext_layers((3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": resnext_layers((3, 4, 23, 3), 64, 4),
    "regnet": _regnet_layers(),
    "depthwise": sum(DEPTHWISE.values(), ()),
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

    def __str__(self) -> str:
        return f"{self.layer} {self.direction} {dtype_name(self.dtype)} batch {self.batch}"


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
    return [
        Case(suite, layer, direction, dtype, batch, device)
        for dtype in dict.fromkeys(dtypes)
        for batch in dict.fromkeys(batches)
        for direction in dict.fromkeys(directions)
        for layer in layers
    ]
