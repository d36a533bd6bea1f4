"""Grouped 2-D convolution, the heart of ResNeXt, as fast as the hardware allows."""

from . import models
from .calls import ModelError
from .explanation import explain
from .functional import grouped_conv2d
from .fuse import FusionReport, optimize_for_inference
from .nn import GroupedConv2d
from .problem import ProblemError
from .swap import SwapReport, replace_grouped_convs
from .version import __version__

__all__ = [
    "FusionReport",
    "GroupedConv2d",
    "ModelError",
    "ProblemError",
    "SwapReport",
    "__version__",
    "explain",
    "grouped_conv2d",
    "models",
    "optimize_for_inference",
    "replace_grouped_convs",
]
