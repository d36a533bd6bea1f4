"""Random operands with the strides that callers hand over: sliced, expanded, permuted, offset."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..problem import ConvProblem, Direction

Shape = tuple[int, ...]


def operand_shapes(problem: ConvProblem, direction: Direction) -> tuple[Shape, Shape]:
    """Shapes of the two operands, in the order in which a backend takes them."""
    output, input, weight = problem.output_shape, problem.input_shape, problem.weight_shape
    shapes = {"fprop": (input, weight), "dgrad": (output, weight), "wgrad": (output, input)}
    return shapes[direction]


def _channels_last(shape: Sequence[int], **options) -> Tensor:
    n, c, h, w = shape
    return torch.randn(n, h, w, c, **options).permute(0, 3, 1, 2)


def _offset(shape: Sequence[int], **options) -> Tensor:
    """Starts one element into its storage, hence off every vector's alignment."""
    return torch.randn(torch.Size(shape).numel() + 1, **options)[1:].view(*shape)


LAYOUTS: dict[str, Callable[..., Tensor]] = {
    "contiguous": torch.randn,
    "channels_last": _channels_last,
    "channel_slice": lambda s, **o: torch.randn(s[0], s[1] + 3, *s[2:], **o)[:, 2:-1],
    "channel_slice_last": lambda s, **o: _channels_last((s[0], s[1] + 5, *s[2:]), **o)[:, 3:-2],
    "window": lambda s, **o: torch.randn(*s[:2], s[2] + 2, s[3] + 3, **o)[:, :, 1:-1, 2:-1],
    "window_last": lambda s, **o: _channels_last((*s[:2], s[2] + 2, s[3] + 3), **o)[
        :, :, 1:-1, 1:-2
    ],
    "every_second": lambda s, **o: torch.randn(*[2 * d for d in s], **o)[::2, ::2, ::2, ::2],
    "every_second_last": lambda s, **o: _channels_last((*s[:3], 2 * s[3]), **o)[..., ::2],
    "offset": _offset,
    "offset_last": lambda s, **o: _offset((s[0], s[2], s[3], s[1]), **o).permute(0, 3, 1, 2),
    "permuted": lambda s, **o: torch.randn(*s[::-1], **o).permute(3, 2, 1, 0),
    "transposed": lambda s, **o: torch.randn(s[0], s[1], s[3], s[2], **o).mT,
    "expanded_batch": lambda s, **o: torch.randn(1, *s[1:], **o).expand(*s),
    "expanded_channels": lambda s, **o: torch.randn(s[0], 1, *s[2:], **o).expand(*s),
    "expanded_pixels": lambda s, **o: torch.randn(*s[:2], 1, 1, **o).expand(*s),
    "expanded": lambda s, **o: torch.randn(1, 1, 1, 1, **o).expand(*s),
}


def seed(value: int) -> None:
    """`torch.manual_seed`, but on the CPU alone where there is no other device.

    For each kind of device that is not there, that would put a traceback into a queue.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(value)
    else:
        torch.default_generator.manual_seed(value)


def randn(shape: Shape, dtype: torch.dtype, layout: str = "contiguous", device="cpu") -> Tensor:
    """Normal numbers of ``dtype`` with the strides that ``layout`` names."""
    return LAYOUTS[layout](shape, dtype=dtype, device=device)
