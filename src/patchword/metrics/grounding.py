"""Does a phrase's map highlight the phrase's object?

All metrics use one resolution: the map is upsampled bilinearly to the image's pixels (`maps.upsample`, which is also
used for figures) and compared with the mask of the object's visible pixels and with the object's box. If an image has
more than 192 pixels along a side, squares of 2 x 2 pixels (or 3 x 3, ...) count as one pixel, which belongs to the
object if any of them does. Averages are over phrases, except for `swap_accuracy`. Let m be the upsampled map of a
phrase:

    pointing_game         argmax m lies in the mask (the pointing game of Zhang et al., ECCV 2016, arXiv 1608.00507,
                          section 4.1, without its tolerance of 15 pixels)
    pointing_game_box     argmax m lies in the box, as for phrases in Akbari et al., CVPR 2019, arXiv 1811.11683; if the
                          phrase has several boxes, in any of them
    box_accuracy          the box around the largest connected component of m >= (min m + max m) / 2 has an IoU of at
                          least 0.5 with the object's box. This is BoxAcc(tau = 0.5, delta = 0.5) of Choe et al.,
                          CVPR 2020, arXiv 2001.07437, section 3; their MaxBoxAcc chooses the best tau on the
                          evaluation set, which is optimistic
    average_precision     average precision of the pixels of the mask, ranked by m (PxAP of Choe et al., per phrase)
    auroc                 area under the ROC curve of the pixels of the mask, ranked by m
    object_choice         among the objects of the caption, the phrase's own object has the strictly highest mean of m
                          over its mask; captions with one object do not count
    object_choice_chance  1 / number of objects, the `object_choice` of a random guess
    swap_accuracy         the maps of two phrases of a caption fit their own regions better than each other's; exactly
                          0.5 for maps that do not depend on the phrase; see `metrics.swap`

`pointing_game` and `average_precision` are also reported for parts of the phrases: `<metric>_<type>` for each type of
phrases, and `<metric>_small`, `<metric>_medium` and `<metric>_large` by the size of the mask. A small mask covers less
than 1/16 of the image (a square with a quarter of the image's side), and a large mask covers 1/4 or more (half of the
side). COCO's limits of 32 and 96 pixels squared are 0.3 % and 3 % of its usual image, and nine of ten phrases of
Flickr30k Entities would be large.

Ties do not help a model. If several pixels share the maximum, `pointing_game` is the share of them that hit, which is
the expected value of a random pick. AP and AUROC treat equal pixels as one group, as scikit-learn does. A tie in
`object_choice` counts as an error. A constant map therefore has AUROC 0.5, AP and `pointing_game` equal to the object's
share of the image, `object_choice` 0, and the image as its box. A map with a value that is not finite gives NaN.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from patchword.metrics.bootstrap import ImageTotals
from patchword.metrics.map_scores import COLUMNS
from patchword.metrics.targets import Targets
from patchword.metrics.unique import first_of_each

NAMES = (*COLUMNS[:7], "swap_accuracy")
OF_PARTS = ("pointing_game", "average_precision")
SIZES = {"small": (0.0, 1 / 16), "medium": (1 / 16, 1 / 4), "large": (1 / 4, 2.0)}  # share of the image

_TYPE = 40  # bytes of a type's name; ranks exchange names as tensors


class Grounding(Metric):
    """The metrics above, for one source of maps and one query policy.

    This metric keeps one row per phrase and counts each phrase of each sample id once, even if a distributed sampler
    repeats it. `compute` returns the means (NaN without any phrase), `phrases`, the number of phrases, and
    `phrases_<part>`, their number for each type and each size. `dropped` is the number of phrases that were not counted
    because the tokenizer truncated them or no pixel of their object is visible. Types are distinguished by the first 40
    bytes of their names.

    Attributes:
        totals: After `compute`, the totals of each image, for confidence intervals.
    """

    full_state_update = False
    totals: ImageTotals | None = None
    keys: list[Tensor]
    values: list[Tensor]
    types: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("keys", [], dist_reduce_fx="cat")
        self.add_state("values", [], dist_reduce_fx="cat")
        self.add_state("types", [], dist_reduce_fx="cat")

    def update(self, scores: Float[Tensor, "N 9"], targets: Targets) -> None:
        """Add the phrases of a batch.

        Args:
            scores: The scores of the phrases' maps, from `map_scores`.
            targets: The phrases and their regions.
        """
        names = [(name or "").replace("/", "_").encode()[:_TYPE] for name in targets.types]
        types = torch.tensor([[*name.ljust(_TYPE, b"\0")] for name in names], dtype=torch.uint8, device=scores.device)
        share = targets.area / (targets.size[0] * targets.size[1])
        self.keys.append(targets.keys)
        self.types.append(types.view(-1, _TYPE))
        self.values.append(torch.cat([torch.stack([targets.counted, share], -1).to(scores.dtype), scores], -1))

    def compute(self) -> dict[str, float]:
        """The means over phrases, and the numbers of phrases."""
        if len(self.keys) == 0:
            return dict.fromkeys(NAMES, float("nan")) | {"phrases": 0.0, "dropped": 0.0}
        first = first_of_each(dim_zero_cat(self.keys))
        keys, types = dim_zero_cat(self.keys)[first], dim_zero_cat(self.types)[first]
        values = dim_zero_cat(self.values)[first].double()
        counts = values[:, 0] == 1
        images, image = keys[counts, 0].unique(return_inverse=True)
        share, scores = values[counts, 1], dict(zip(COLUMNS, values[counts, 2:].unbind(-1), strict=True))
        self.totals = ImageTotals(len(images), image)
        rivals = scores["object_choice_chance"] < 1
        for name in COLUMNS[:7]:
            self.totals.add(name, scores[name], rivals if name.startswith("object_choice") else None)
        right, pairs = (values.new_zeros(len(images)).index_add(0, image, scores[name]) for name in COLUMNS[7:])
        self.totals.add_ratio("swap_accuracy", (right / pairs).masked_fill(pairs == 0, 0), pairs > 0)
        numbers = {}
        for part, member in _parts(types[counts], share):
            for name in OF_PARTS:
                self.totals.add(f"{name}_{part}", scores[name], member)
            numbers[f"phrases_{part}"] = float(member.sum())
        numbers |= {"phrases": float(counts.sum()), "dropped": float((~counts).sum())}
        return self.totals.means() | numbers


def _parts(types: Tensor, share: Float[Tensor, " N"]) -> Iterator[tuple[str, Tensor]]:
    """The name and the members of each type and of each size that has members."""
    for name in types.unique(dim=0):
        if name.any():
            yield bytes(name.tolist()).rstrip(b"\0").decode(errors="ignore"), (types == name).all(-1)
    for part, (low, high) in SIZES.items():
        member = (low <= share) & (share < high)
        if member.any():
            yield part, member
