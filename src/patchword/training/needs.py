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
from patchword.features import Images
from patchword.objective import Need


def supplied(
    needs: tuple[Need, ...],
    encode: Callable[[Need, list[str]], Tensor],
    encode_images: Callable[[UInt8[Tensor, "I 3 H W"]], Images],
    batch: Batch,
    images: Images,
    size: tuple[int, int],
) -> Images:
    """`images` with the hard negatives, regions and views of a batch, if they are needed and a rank has any.

    Regions are the boxes of the phrases of all captions of an image, and their texts are the phrases. A hard negative
    that is listed twice for an image counts once.

    Args:
        needs: The needs of the objective.
        encode: Function that computes the global embeddings of texts; it is also given what they are needed for.
        encode_images: Function that encodes pixels.
        batch: The batch.
        images: The embeddings of its images.
        size: The height and width of the images in pixels, to which boxes refer.
    """

    def encoded(need: Need, texts: list[str]) -> Float[Tensor, "N D"]:
        return encode(need, texts) if texts else images.pooled[:0]

    if "negatives" in needs:
        owners = batch.negative_image
        listed = {pair: n for n, pair in reversed([*enumerate(zip(owners.tolist(), batch.negatives, strict=True))])}
        once = torch.tensor(sorted(listed.values()), dtype=torch.long, device=owners.device)
        pooled = encoded("negatives", batch.negatives)[once]
        images = replace(images, negatives=_by_image(pooled, owners[once], len(batch)))
    if "regions" in needs:
        known, texts = batch.regions()
        owners = batch.caption_image[batch.phrase_caption[known]]
        pooled = encoded("regions", texts)
        shares = coverage(batch.phrase_box[known], images.grid, size)
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


def _by_image(x: Float[Tensor, "N D"], owner: Int[Tensor, " N"], images: int) -> Float[Tensor, "I M D"] | None:
    """The rows of each image, in order, with zeros up to the largest number of rows of an image on any rank.

    It is None if no image of any rank has a row. All ranks must call this function.
    """
    counts = owner.bincount(minlength=images)
    most = int(distributed.maximum(counts.max()))
    if most == 0:
        return None
    rows = pad_sequence(list(x[owner.argsort(stable=True)].split(counts.tolist())), batch_first=True)
    return pad(rows, (0, 0, 0, most - rows.shape[1]))
