"""The parts of a batch that only some objectives need: hard negatives, regions with their texts, and views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from patchword import distributed
from patchword.data.batch import Batch
from patchword.features import Images, Texts
from patchword.objective import Need


def supplied(
    needs: tuple[Need, ...],
    encode: Callable[[list[str]], Texts],
    encode_images: Callable[[UInt8[Tensor, "I 3 H W"]], Images],
    batch: Batch,
    images: Images,
) -> Images:
    """`images` with the hard negatives, regions and views of a batch, if they are needed and the batch has any.

    Regions are the boxes of the phrases of all captions of an image, and their texts are the phrases.

    Args:
        needs: The needs of the objective.
        encode: Function that encodes texts.
        encode_images: Function that encodes pixels.
        batch: The batch.
        images: The embeddings of its images.
    """
    if "negatives" in needs and batch.negatives:
        pooled = encode(batch.negatives).pooled
        images = replace(images, negatives=_by_image(pooled, batch.negative_image, len(batch)))
    known = (batch.phrase_box[:, 2:] > batch.phrase_box[:, :2]).all(-1).nonzero()[:, 0]
    if "regions" in needs and len(known):
        captions = batch.phrase_caption[known]
        spans = zip(captions.tolist(), batch.phrase_span[known].tolist(), strict=True)
        pooled = encode([batch.captions[caption][start:end] for caption, (start, end) in spans]).pooled
        shares = coverage(batch.phrase_box[known], images.grid, (batch.images.shape[-2], batch.images.shape[-1]))
        owners = batch.caption_image[captions]
        images = replace(
            images,
            regions=_by_image(shares.to(pooled.dtype), owners, len(batch)),
            region_texts=_by_image(pooled, owners, len(batch)),
        )
    if "views" in needs and batch.global_views is not None and batch.local_views is not None:
        pixels = torch.cat([batch.global_views, batch.local_views], 1)
        pooled = encode_images(pixels.flatten(0, 1)).pooled
        images = replace(images, views=pooled.unflatten(0, (len(batch), -1)))
    return images


def coverage(boxes: Float[Tensor, "N 4"], grid: tuple[int, int], size: tuple[int, int]) -> Float[Tensor, "N P"]:
    """The share of each box's area that each patch of the grid has, for boxes in an image of `size` pixels.

    The mean of patches with these weights is the exact mean of the patch map over the box.
    """
    left, top, right, bottom = boxes.unbind(-1)

    def overlap(start: Tensor, end: Tensor, cells: int, pixels: int) -> Float[Tensor, "N C"]:
        edges = torch.arange(cells + 1, device=boxes.device) * (pixels / cells)
        return (torch.minimum(end[:, None], edges[1:]) - torch.maximum(start[:, None], edges[:-1])).clamp_min(0)

    rows, columns = overlap(top, bottom, grid[0], size[0]), overlap(left, right, grid[1], size[1])
    area = (rows[:, :, None] * columns[:, None]).flatten(1)
    return area / area.sum(-1, keepdim=True).clamp_min(1e-12)


def _by_image(x: Float[Tensor, "N D"], owner: Int[Tensor, " N"], images: int) -> Float[Tensor, "I M D"]:
    """The rows of each image, in order, with zeros up to the largest number of rows of an image on any rank."""
    counts = owner.bincount(minlength=images)
    most = int(distributed.maximum(counts.max()))
    rows = pad_sequence(list(x[owner.argsort(stable=True)].split(counts.tolist())), batch_first=True)
    return pad(rows, (0, 0, 0, most - rows.shape[1]))
