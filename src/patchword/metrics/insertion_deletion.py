"""Do maps tell the truth? Scores of images whose patches are removed, or shown, in the order of a map.

The map of an image's caption ranks the patches. The score of image and caption is measured K + 1 times: without the
best 0, P/K, 2P/K, ..., P patches (deletion), and with only these patches (insertion). Removed patches are hidden behind
the image's mean color, or blurred (`maps.removal`). This is the test of Petsiuk et al., BMVC 2018, arXiv 1806.07421
(RISE), with patches instead of pixels.

Let s_i(k) be the score of image i at step k, and A_i the area under it, by the trapezoidal rule over k / K.

    deletion        sum_i (A_i - s_i(none)) / sum_i (s_i(all) - s_i(none)); lower is better: 0 if the score is lost with
                    the first patches, 1 if it stays until the last
    insertion       the same for insertion; higher is better: 1 if the first patches bring the complete score
    deletion_rank   the area under the mean reciprocal rank of the image's caption among the captions of all images
                    that are measured, ranked by their scores with the image; lower is better
    insertion_rank  the same for insertion; higher is better

s_i(all) and s_i(none) are the scores of the complete image and of the image without patches, so that the scale of the
score does not matter. The sums make it a ratio of means: images that hardly score higher than nothing cannot dominate
it. Equal patches of a map are in a random order, which depends only on the image. A caption that ties with another one
counts as ranked after it. A map with a value that is not finite gives NaN.

A map is only useful above `chance` (a random order) and `center_prior` (from the center outwards), which do not look at
the image. Images without patches are unusual inputs, so compare maps of one model, and not models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from patchword.features import Images
from patchword.maps.phrases import chance_maps
from patchword.maps.removal import Fill, without_patches
from patchword.metrics.bootstrap import ImageTotals
from patchword.metrics.per_sample import PerSample
from patchword.metrics.ties import tolerance

PROCESSES = ("deletion", "insertion")
NAMES = ("deletion", "insertion", "deletion_rank", "insertion_rank")

Curves = Float[Tensor, "I 2 2 K"]


class InsertionDeletion(PerSample):
    """The metrics above, for one source of maps. Each sample id counts once.

    Args:
        steps: The number K of steps.

    Attributes:
        curves: After `compute`, the normalized score, and the mean reciprocal rank, at each step of each process, in
            the order of `PROCESSES`. Shape [2, 2, K + 1].
        totals: After `compute`, the totals of each image, for confidence intervals.
    """

    curves: Tensor | None = None
    totals: ImageTotals | None = None

    def __init__(self, steps: int) -> None:
        super().__init__(4 * (steps + 1))
        self.steps = steps

    def update(self, ids: Int[Tensor, " I"], curves: Curves) -> None:
        """Add the curves of images, from `curves_of`."""
        super().update(ids, curves.flatten(1))

    def compute(self) -> dict[str, float]:  # type: ignore[override]
        """The metrics above, and the number of `images`; NaN without any."""
        rows = super().compute().unflatten(1, (2, 2, self.steps + 1))
        scores, ranks = rows.unbind(2)  # [I, 2, K + 1]
        complete, none = scores[:, 0, 0], scores[:, 0, -1]
        self.curves = torch.stack(
            [(scores - none[:, None, None]).sum(0) / (complete - none).sum(), ranks.mean(0)], 1
        ).cpu()
        self.totals = ImageTotals(len(rows), torch.arange(len(rows), device=rows.device))
        for number, process in enumerate(PROCESSES):
            self.totals.add_ratio(process, _area(scores[:, number]) - none, complete - none)
            self.totals.add(f"{process}_rank", _area(ranks[:, number]))
        return self.totals.means() | {"images": float(len(rows))}


def kept_patches(maps: Float[Tensor, "I P"], keys: Int[Tensor, "I 2"], steps: int) -> Bool[Tensor, "2 K I P"]:
    """The patches that are seen at each step of deletion and of insertion.

    Args:
        maps: The maps.
        keys: Two integers for each image, from which the order of equal patches is drawn.
        steps: The number of steps; K = steps + 1.
    """
    patches = maps.shape[1]
    shuffled = chance_maps(keys, patches).to(maps.device).argsort(-1)
    order = shuffled.gather(1, maps.gather(1, shuffled).argsort(dim=-1, descending=True, stable=True))
    counts = (torch.arange(steps + 1, device=maps.device) * patches / steps).round()
    best = order.argsort(-1) < counts[:, None, None]
    return torch.stack([~best, best])


def curves_of(
    encode: Callable[[UInt8[Tensor, "I 3 H W"]], Images],
    score: Callable[[Images], Float[Tensor, "I T"]],
    pixels: UInt8[Tensor, "I 3 H W"],
    own: Int[Tensor, " I"],
    maps: Sequence[Float[Tensor, "I P"]],
    keys: Int[Tensor, "I 2"],
    grid: tuple[int, int],
    steps: int,
    fill: Fill = "mean",
) -> list[Curves]:
    """Scores and reciprocal ranks of images at each step of deletion and insertion, for several maps of them.

    Each step is a pass of the image tower, except for the complete image and the image without patches, which all maps
    share: 2 + 2 (K - 1) passes of each image for one map.

    Args:
        encode: The image tower.
        score: The scores of images with the texts of all images that are measured.
        pixels: The images.
        own: The text of each image.
        maps: The maps of each image, from several sources.
        keys: Two integers for each image; see `kept_patches`.
        grid: Rows and columns of a map.
        steps: The number K of steps.
        fill: What removed patches look like.
    """

    def measure(kept: Bool[Tensor, "I P"]) -> Float[Tensor, "2 I"]:
        scores = score(encode(without_patches(pixels, kept, grid, fill))).float()
        true = scores.gather(1, own[:, None])
        before = ~(scores < true - tolerance(true, true))  # ~(a < b) instead of a >= b, so that NaN is ranked first
        return torch.stack([true[:, 0], 1 / before.sum(1)])

    everything = torch.ones(len(pixels), grid[0] * grid[1], dtype=torch.bool, device=pixels.device)
    ends = {True: measure(everything), False: measure(~everything)}
    found = []
    for of_source in maps:
        finite = of_source.isfinite().all(-1)
        kept = kept_patches(of_source.nan_to_num(), keys, steps)
        between = [torch.stack([measure(step) for step in process[1:-1]]) for process in kept]
        deletion = torch.stack([ends[True], *between[0], ends[False]], -1)
        insertion = torch.stack([ends[False], *between[1], ends[True]], -1)
        curves = torch.stack([deletion, insertion]).permute(2, 0, 1, 3)
        found.append(curves.masked_fill(~finite[:, None, None, None], torch.nan))
    return found


def _area(curve: Float[Tensor, "I K"]) -> Float[Tensor, " I"]:
    """The area under curves over [0, 1], by the trapezoidal rule."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1))
