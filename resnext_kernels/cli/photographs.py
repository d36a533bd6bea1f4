"""Real photographs, as ImageNet models expect them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = ("astronaut", "chelsea", "coffee", "rocket")  # these come inside scikit-image itself
_RESIZED, _CROPPED = 256, 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load() -> Tensor:
    """The photographs of `NAMES` from scikit-image: float32 ``(4, 3, 224, 224)``, normalised.

    Raises:
        ImportError: without scikit-image.
    """
    from skimage import data

    return torch.stack([prepare(torch.from_numpy(getattr(data, name)())) for name in NAMES])


def prepare(photograph: Tensor) -> Tensor:
    """An RGB image, uint8 ``(H, W, 3)``, as float32 ``(3, 224, 224)``.

    The shorter side is resized to 256, the centre cropped, and the channels normalised by
    ImageNet's mean and standard deviation.
    """
    image = photograph.permute(2, 0, 1).float() / 255
    height, width = image.shape[1:]
    scale = _RESIZED / min(height, width)
    size = (round(height * scale), round(width * scale))
    image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    top, left = ((side - _CROPPED) // 2 for side in size)
    image = image[:, top : top + _CROPPED, left : left + _CROPPED]
    return (image - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)
