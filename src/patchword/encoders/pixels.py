"""From raw pixels to what a backbone was trained on, on the device where the backbone runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from patchword.errors import InputError


class Normalize(nn.Module):
    """(pixel / 255 - mean) / std per channel.

    Both constants are buffers that follow the module to its device and stay out of checkpoints.

    Args:
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Shaped[Tensor, "I 3 H W"]) -> Float[Tensor, "I 3 H W"]:
        """Normalised pixels in the floating point type of the module.

        Raises:
            InputError: If the pixels are not uint8: a scale of [0, 1] would pass unnoticed otherwise.
        """
        if pixels.dtype != torch.uint8:
            raise InputError(f"pixels are uint8 in 0 ... 255, got {pixels.dtype}: multiply by 255 and convert")
        return (pixels.to(self.mean.dtype) / 255 - self.mean) / self.std


def require_size(pixels: UInt8[Tensor, "I 3 H W"], image_size: tuple[int, int]) -> None:
    """Checks that images have the height and width that an encoder takes.

    Raises:
        InputError: If they have not.
    """
    height, width = pixels.shape[-2:]
    if (height, width) != image_size:
        raise InputError(
            f"the images are {height} x {width} pixels and the encoder takes {image_size[0]} x {image_size[1]}: "
            "set the image_size of the data to that of the encoder, or the other way round"
        )
