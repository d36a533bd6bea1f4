"""`GroupedConv2d`: `torch.nn.Conv2d` whose forward runs this package's kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._jit_internal import BroadcastingList2  # type: ignore[attr-defined]

from .functional import grouped_conv2d, is_onnx_export


class GroupedConv2d(torch.nn.Conv2d):
    """A `torch.nn.Conv2d` (same constructor, state_dict, padding modes) on this package's kernels.

    ``(N, C, H, W) -> (N, K, P, Q)``, or unbatched. The class attribute ``backend`` may be set on
    an instance: "auto" (default) or the name of one backend, see `grouped_conv2d`.

    Raises:
        ProblemError: from forward, as `grouped_conv2d`.
    """

    __constants__ = [*torch.nn.Conv2d.__constants__, "backend"]
    backend = "auto"

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.jit.is_scripting():
            return self._torchscript_forward(input, weight, bias)
        if torch.jit.is_tracing() and not is_onnx_export():
            return self._torchscript_forward(input, weight, bias)
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        return grouped_conv2d(
            input, weight, bias, self.stride, padding, self.dilation, self.groups,
            backend=self.backend,
        )  # fmt: skip

    def _torchscript_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same in the part of Python that TorchScript compiles and traces."""
        stride, dilation = _pair(self.stride), _pair(self.dilation)
        padding = [0, 0]
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        elif isinstance(self.padding, str):
            if self.padding == "same":
                height = dilation[0] * (weight.size(2) - 1)
                width = dilation[1] * (weight.size(3) - 1)
                left, top = width // 2, height // 2
                input = F.pad(input, [left, width - left, top, height - top])
        else:
            padding = _pair(self.padding)
        batched = input if input.dim() != 3 else input.unsqueeze(0)
        output = torch.ops.resnext_kernels.grouped_conv2d(
            batched, weight, bias, stride, padding, dilation, self.groups, self.backend
        )
        return output if input.dim() != 3 else output.squeeze(0)

    def extra_repr(self) -> str:
        try:
            text = super().extra_repr()
        except TypeError:  # torch shows no padding or dilation that was changed to an int
            text = (
                "{in_channels}, {out_channels}, kernel_size={kernel_size}, stride={stride}, "
                "padding={padding}, dilation={dilation}, groups={groups}"
            ).format_map(vars(self))
        return text if self.backend == "auto" else f"{text}, backend={self.backend!r}"


def _pair(setting: BroadcastingList2[int]) -> list[int]:
    """A setting that is a tuple of one, or was changed to an int, as a pair.

    TorchScript makes one of an int at the call.
    """
    if isinstance(setting, int):
        return [setting, setting]
    if len(setting) == 1:
        return [setting[0], setting[0]]
    return list(setting)
