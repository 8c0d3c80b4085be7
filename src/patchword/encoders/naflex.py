"""NaFlex: a transformer reads the patches of images of several shapes as sequences (SigLIP 2, arXiv 2502.14786)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

SIGLIP2 = "siglip2_vision_model"  # the model type in transformers


@dataclass(frozen=True)
class Sequences:
    """The patches of each image as one sequence, row by row, without the padding of the grid.

    Attributes:
        patches: The pixels of each patch: row, column, channel. N is the largest number of patches of an image.
        mask: True for patches, False at the end of shorter sequences; None if all have N patches.
        shapes: Numbers of rows and columns of each image's patches.
        place: The place of each patch on the grid of all images, which has P places.
        places: P.
    """

    patches: Float[Tensor, "I N F"]
    mask: Bool[Tensor, "I N"] | None
    shapes: Int[Tensor, "I 2"]
    place: Int[Tensor, "I N"]
    places: int

    @classmethod
    def of(cls, pixels: Float[Tensor, "I 3 H W"], mask: Bool[Tensor, "I P"] | None, grid: tuple[int, int]) -> Sequences:
        """The patches of images that are padded to one grid; for `mask`, see `patch_mask`."""
        rows, columns = grid
        cells = pixels.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # [I, 3, rows, h, columns, w]
        patches = cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        if mask is None:
            place = torch.arange(rows * columns, device=pixels.device).expand(len(pixels), -1)
            return cls(
                patches, None, torch.tensor(grid, device=pixels.device).expand(len(pixels), 2), place, rows * columns
            )
        lengths = mask.sum(1)
        place = mask.int().argsort(dim=1, descending=True, stable=True)[:, : int(lengths.max())]
        real = torch.arange(place.shape[1], device=place.device) < lengths[:, None]
        by_cell = mask.unflatten(1, grid)
        shapes = torch.stack([by_cell.any(2).sum(1), by_cell.any(1).sum(1)], 1)
        return cls(patches.take_along_dim(place[..., None], 1), real, shapes, place, rows * columns)

    def on_grid(self, tokens: Float[Tensor, "I N C"]) -> Float[Tensor, "I P C"]:
        """The tokens of all patches on the grid, with zeros for its padding."""
        if self.mask is None:
            return tokens
        tokens = tokens.masked_fill(~self.mask[..., None], 0)
        grid = tokens.new_zeros(len(tokens), self.places, tokens.shape[2])
        return grid.scatter(1, self.place[..., None].expand_as(tokens), tokens)


def patch_mask(pixels: UInt8[Tensor, "I _ H W"], grid: tuple[int, int]) -> Bool[Tensor, "I P"] | None:
    """True for the patches of each image, False for padding; None if the pixels have no fourth channel (alpha)."""
    if pixels.shape[1] == 3:
        return None
    height, width = pixels.shape[2] // grid[0], pixels.shape[3] // grid[1]
    return (pixels[:, 3, ::height, ::width] > 0).flatten(1)


def siglip2_outputs(
    model: Any, pixels: Float[Tensor, "I 3 H W"], mask: Bool[Tensor, "I P"] | None
) -> tuple[Float[Tensor, "I P C"], Float[Tensor, "I C"] | None]:
    """The tokens of `Siglip2VisionModel`, after its last norm, and what its head pools if it has one."""
    patch = model.config.patch_size
    images = Sequences.of(pixels, mask, (pixels.shape[2] // patch, pixels.shape[3] // patch))
    output = model(**siglip2_inputs(images))
    return images.on_grid(output.last_hidden_state), output.pooler_output


def siglip2_inputs(images: Sequences) -> dict[str, Any]:
    """The inputs of `Siglip2VisionModel`, as those of its image processor."""
    return {"pixel_values": images.patches, "pixel_attention_mask": images.mask, "spatial_shapes": images.shapes}
