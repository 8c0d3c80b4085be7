"""Does a phrase's map lie on the phrase's object?

One resolution for everything: the map is upsampled bilinearly to the image's pixels (`maps.upsample`, which
also draws it) and compared there with the mask of the object's visible pixels and with its box. Averages are
over phrases. With m the upsampled map of a phrase:

    pointing           argmax m lies in the mask (pointing game: Zhang et al., ECCV 2016, arXiv 1608.00507,
                       section 4.1, without its tolerance of 15 pixels)
    pointing_box       argmax m lies in the box, as for phrases in Akbari et al., CVPR 2019, arXiv 1811.11683
    box_accuracy       the box around the largest connected component of m >= (min m + max m) / 2 has an IoU of at
                       least 0.5 with the object's box. This is BoxAcc(tau = 0.5, delta = 0.5) of Choe et al.,
                       CVPR 2020, arXiv 2001.07437, section 3; their MaxBoxAcc takes the best tau on the
                       evaluation set, which is optimistic
    average_precision  of the pixels of the mask, ranked by m (Choe et al.'s PxAP, per phrase)
    auroc              likewise, area under the ROC curve
    choice             among the objects of the caption, the phrase's own has the strictly highest mean of m over
                       its mask; captions with one object do not count
    choice_chance      1 / number of objects, the `choice` of a guess

Ties never flatter: where several pixels share the maximum, pointing counts the share of them that hit, the
expectation of a random pick; AP and AUROC take a group of equal pixels at once, as scikit-learn does; a tie in
`choice` fails. So a constant map has AUROC 0.5, AP = pointing = the object's share of the image, choice 0, and
its box is the image. A map with a value that is not finite makes NaN.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from patchword.data.batch import Batch
from patchword.maps import phrase_keys, upsample, upsampling
from patchword.metrics.components import largest_box
from patchword.metrics.ranking import pixel_ranking
from patchword.metrics.unique import first_of_each

NAMES = ("pointing", "pointing_box", "box_accuracy", "average_precision", "auroc", "choice", "choice_chance")

_BLOCK = 2**21  # pixels at a time: 64 MB or so


class Grounding(Metric):
    """The numbers above, for one source of maps and one query policy.

    Keeps one row per phrase and counts each phrase of each sample id once, however often a distributed sampler
    repeats it. `compute` returns the means over phrases (NaN without any), `phrases`, their number, and
    `dropped`, the number of phrases that were not counted: truncated away, or without a visible pixel.
    """

    full_state_update = False
    keys: list[Tensor]
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("keys", [], dist_reduce_fx="cat")
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, maps: Float[Tensor, "N P"], grid: tuple[int, int], batch: Batch, kept: Bool[Tensor, " N"]) -> None:
        """Measure the phrases of `batch`.

        Args:
            maps: Their maps, from `maps.phrase_maps`.
            grid: Rows and columns of the patches.
            batch: Gives masks, boxes, captions and ids; some phrase has a mask.
            kept: False for phrases that do not count; their objects still compete in `choice`.
        """
        assert batch.phrase_mask is not None
        values = ground(maps, grid, batch.phrase_mask, batch.phrase_box, batch.phrase_caption)
        counts = kept & batch.phrase_mask.flatten(1).any(-1)
        self.keys.append(phrase_keys(batch))
        self.values.append(torch.cat([counts[:, None].to(values.dtype), values], -1))

    def compute(self) -> dict[str, float]:
        """Means over phrases, and how many they are."""
        if len(self.keys) == 0:
            return dict.fromkeys(NAMES, float("nan")) | {"phrases": 0.0, "dropped": 0.0}
        values = dim_zero_cat(self.values)[first_of_each(dim_zero_cat(self.keys))]
        counts, values = values[:, 0] == 1, values[:, 1:].double()
        values = values[counts]
        rivals = values[:, NAMES.index("choice_chance")] < 1
        result = {
            name: float(column[rivals].mean() if name.startswith("choice") else column.mean())
            for name, column in zip(NAMES, values.unbind(-1), strict=True)
        }
        return result | {"phrases": float(counts.sum()), "dropped": float((~counts).sum())}


def ground(
    maps: Float[Tensor, "N P"],
    grid: tuple[int, int],
    masks: Bool[Tensor, "N H W"],
    boxes: Float[Tensor, "N 4"],
    caption: Int[Tensor, " N"],
) -> Float[Tensor, "N 7"]:
    """The numbers `NAMES` of each phrase.

    Args:
        maps: A value per patch, row by row; higher means more of the phrase.
        grid: Rows and columns of the patches.
        masks: The visible pixels of each phrase's object. Numbers of an empty mask mean nothing.
        boxes: Left, top, right, bottom of the whole object in pixels, right and bottom exclusive.
        caption: The caption of each phrase: its phrases' objects are what `choice` chooses from.

    Raises:
        ValueError: If `grid` does not hold P patches.
    """
    if grid[0] * grid[1] != maps.shape[1]:
        raise ValueError(f"a grid of {grid[0]} x {grid[1]} does not hold maps of {maps.shape[1]} patches")
    maps = maps.float()
    size = (masks.shape[1], masks.shape[2])
    step = max(1, _BLOCK // (size[0] * size[1]))
    parts = [maps.new_zeros(0, 5)]
    for start in range(0, len(maps), step):
        block = slice(start, start + step)
        parts.append(_measure(upsample(maps[block], grid, size), masks[block], boxes[block]))
    values = torch.cat([torch.cat(parts), torch.stack(choice(maps, grid, masks, caption), -1)], -1)
    return values.masked_fill(~maps.isfinite().all(-1, keepdim=True), torch.nan)


def _measure(
    maps: Float[Tensor, "N H W"], masks: Bool[Tensor, "N H W"], boxes: Float[Tensor, "N 4"]
) -> Float[Tensor, "N 5"]:
    """Pointing in mask and box, box accuracy, average precision, AUROC."""
    ap, auroc = pixel_ranking(maps.flatten(1), masks.flatten(1))
    overlap = box_iou(largest_box(maps >= _midpoint(maps)), boxes) >= 0.5
    pointed = pointing(maps, masks), pointing(maps, inside(boxes, maps.shape[1], maps.shape[2]))
    return torch.stack([*pointed, overlap.float(), ap, auroc], -1)


def pointing(maps: Float[Tensor, "N H W"], regions: Bool[Tensor, "N H W"]) -> Float[Tensor, " N"]:
    """The share of each map's maximal pixels that lie in the region: 0 or 1 unless several tie."""
    maxima = maps == maps.amax((1, 2), keepdim=True)
    return (maxima & regions).sum((1, 2)) / maxima.sum((1, 2)).clamp_min(1)


def inside(boxes: Float[Tensor, "N 4"], height: int, width: int) -> Bool[Tensor, "N H W"]:
    """The pixels whose centres lie in each box."""
    left, top, right, bottom = boxes[..., None].unbind(1)
    x = torch.arange(width, device=boxes.device) + 0.5
    y = torch.arange(height, device=boxes.device) + 0.5
    return ((top <= y) & (y < bottom))[:, :, None] & ((left <= x) & (x < right))[:, None, :]


def box_iou(a: Float[Tensor, "N 4"], b: Float[Tensor, "N 4"]) -> Float[Tensor, " N"]:
    """Intersection over union of boxes a[n] and b[n]; 0 for two boxes without area."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    common = (high - low).clamp_min(0).prod(-1)
    union = (a[:, 2:] - a[:, :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1) - common
    return common / union.clamp_min(1e-9)


def choice(
    maps: Float[Tensor, "N P"], grid: tuple[int, int], masks: Bool[Tensor, "N H W"], caption: Int[Tensor, " N"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Whether each phrase's own object has the strictly highest mean map, and 1 / number of objects.

    The objects are those of the caption's phrases that have a visible pixel; phrases with one and the same mask
    name one object.
    """
    rows, columns = (upsampling(n, s).to(maps.device) for n, s in zip(grid, masks.shape[1:], strict=True))
    # The mean over a mask of an upsampled map is a weighted sum of its patches. The minimum is taken off so that
    # the objects under a constant map tie exactly.
    weight = (rows.T @ masks.double() @ columns).flatten(1)
    weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-9)
    level = maps.double() - maps.double().amin(-1, keepdim=True)
    one, other = (caption[:, None] == caption).nonzero().unbind(-1)
    rival = (masks[one] != masks[other]).flatten(1).any(-1) & masks[other].flatten(1).any(-1)
    mean = (level[one] * weight[other]).sum(-1)
    own = (level * weight).sum(-1)[one]
    lost = torch.zeros_like(level[:, 0]).index_add(0, one, (rival & ~(own > mean)).to(level.dtype))
    count = torch.zeros_like(lost).index_add(0, one, rival.to(level.dtype))
    return (lost == 0).float(), (1 / (1 + count)).float()


def _midpoint(maps: Float[Tensor, "N H W"]) -> Float[Tensor, "N 1 1"]:
    return (maps.amin((1, 2), keepdim=True) + maps.amax((1, 2), keepdim=True)) / 2
