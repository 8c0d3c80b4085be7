"""Normalize raw pixels for a backbone, on the device of the backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from patchword.data.pixels import Preprocessing
from patchword.errors import UserError


class Normalize(nn.Module):
    """(pixel / 255 - mean) / std per channel, where the mean and the standard deviation are those of pixels in [0, 1].

    They are buffers: they move with the module, and are not saved in checkpoints.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Shaped[Tensor, "I 3 H W"]) -> Float[Tensor, "I 3 H W"]:
        """Returns normalized pixels in the floating point type of the module.

        Raises:
            UserError: If the pixels are not uint8. This finds pixels that were scaled to [0, 1] before.
        """
        if pixels.dtype != torch.uint8:
            wrong = f"pixels must be uint8 in 0 ... 255, not {pixels.dtype}"
            raise UserError(f"{wrong}: multiply them by 255 and convert them")
        return (pixels.to(self.mean.dtype) / 255 - self.mean) / self.std


def require_size(pixels: UInt8[Tensor, "I _ H W"], image_size: tuple[int, int], preprocessing: Preprocessing) -> None:
    """Require that images have the input size of an encoder, and padding only if the encoder takes images of any shape.

    Raises:
        UserError: If they have another size, or padding that the encoder cannot ignore.
    """
    if pixels.shape[1] != 3 and preprocessing.resize_mode != "native":
        raise UserError(
            "the images are padded (resize_mode: native), but the image tower takes images of one shape: set "
            "data.resize_mode to backbone, crop or stretch, or use a NaFlex model"
        )
    height, width = pixels.shape[-2:]
    if (height, width) != image_size:
        raise UserError(
            f"the images are {height} x {width} pixels and the encoder takes {image_size[0]} x {image_size[1]}: "
            "set image_size of the data and of the encoder to the same value"
        )


def require_one_shape(pixels: UInt8[Tensor, "I _ H W"], refusal: str, others: str = "") -> None:
    """Require images of one shape, which have no channel for padding.

    Args:
        pixels: The images.
        refusal: What is not done for images of several shapes, as the start of a sentence.
        others: What else the user can do, as the end of the sentence.

    Raises:
        UserError: If they have padding (`resize_mode: native`).
    """
    if pixels.shape[1] != 3:
        raise UserError(
            f"{refusal} images of several shapes (resize_mode native): set data.resize_mode to crop or stretch{others}"
        )
