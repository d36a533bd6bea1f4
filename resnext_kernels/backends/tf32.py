"""Whether float32 may be multiplied in TF32, for every backend that can."""

from __future__ import annotations

import torch
from torch.backends import cudnn


def allowed() -> bool:
    """Whether torch's flags allow TF32 to cuDNN's convolutions, on a device of NVIDIA.

    `torch.backends.cudnn.conv.fp32_precision` answers for the older flag too
    (`torch.backends.cudnn.allow_tf32`), and for those that stand for several libraries.
    """
    precision = cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return precision == "tf32" and not (torch.version.hip or torch.version.xpu)
