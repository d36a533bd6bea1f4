"""`GroupedConv2d`: `torch.nn.Conv2d` whose forward runs this package's kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .functional import grouped_conv2d


class GroupedConv2d(torch.nn.Conv2d):
    """A `torch.nn.Conv2d` (same constructor, state_dict, padding modes) on this package's kernels.

    ``(N, C, H, W) -> (N, K, P, Q)``, or unbatched. The class attribute ``backend`` may be set on
    an instance: "auto" (default) or the name of one backend, see `grouped_conv2d`.

    Raises:
        ProblemError: from forward, as `grouped_conv2d`.
    """

    backend = "auto"

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return grouped_conv2d(
            input, weight, bias, self.stride, padding, self.dilation, self.groups,
            backend=self.backend,
        )  # fmt: skip

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.backend == "auto" else f"{text}, backend={self.backend!r}"
