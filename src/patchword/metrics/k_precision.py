"""Are retrieved captions faithful to their image? K-Precision, as SPARC (arXiv 2401.09865) reports it.

    k_precision      the share of the words of the retrieved caption (the one that scores highest with the image) that
                     occur in one of the image's own captions; the mean over images
    k_precision_na   the share of the nouns and adjectives of the retrieved caption that occur in one of the image's own
                     captions; the mean over images whose retrieved caption has nouns or adjectives

The candidates are all captions of all images, including the image's own captions, so a model that always retrieves one
of the image's own captions gets 1. If a wrong caption ties with the best own caption (`metrics.ties`) or scores NaN,
the wrong caption is retrieved. Chance is the exact mean over all captions instead of the retrieved one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from patchword.features import Images, Texts
from patchword.metrics.retrieval import Retrieval
from patchword.metrics.ties import beats

Words = Sequence[str]


class KPrecision(Retrieval):
    """K-Precision of an objective's score; each sample id counts once. `Retrieval` documents which data it stores.

    `compute` returns the metrics above with their chance levels, `images`, `captions` and, with `described`,
    `images_na`, the number of images whose retrieved caption has a noun or an adjective.

    Args:
        score: A function that scores images with texts: an objective's `score`.
        words: For each sample id, the words of each of its captions.
        described: For each sample id, the nouns and adjectives of each of its captions; None to leave out
            `k_precision_na`.
        tokens: Store patches and tokens, too, for a score that needs more than the pooled embeddings.
        block: The number of images, and of captions, that are scored at a time.
    """

    def __init__(
        self,
        score: Callable[[Images, Texts], Float[Tensor, "I T"]],
        words: Mapping[int, Sequence[Words]],
        described: Mapping[int, Sequence[Words]] | None = None,
        tokens: bool = False,
        block: int = 256,
    ) -> None:
        super().__init__(score, tokens, block)
        self.words, self.described = words, described

    def compute(self) -> dict[str, float]:
        """The metrics above; NaN, and 0 images, before the first batch."""
        if len(self.ids) == 0:
            return {"images": 0.0, "captions": 0.0, "k_precision": math.nan, "chance_k_precision": math.nan}
        images = self._once()
        texts, image = self._captions(images)
        top = retrieved(self._scores(images, texts)[0], image).tolist()
        ids = dim_zero_cat(self.ids)[images].tolist()
        truth = [{word for caption in self.words[i] for word in caption} for i in ids]
        found = {"images": float(len(ids)), "captions": float(len(texts))}
        for name, of in ("", self.words), ("_na", self.described):
            if of is not None:
                captions = [caption for i in ids for caption in of[i]]
                shares = precisions([captions[t] for t in top], truth)
                found[f"k_precision{name}"] = math.fsum(shares) / len(shares) if shares else math.nan
                found[f"chance_k_precision{name}"] = expected_precision(captions, truth)
                found |= {"images_na": float(len(shares))} if name else {}
        return found


def retrieved(scores: Float[Tensor, "I T"], caption_image: Int[Tensor, " T"]) -> Int[Tensor, " I"]:
    """The caption with the highest score for each image; a wrong caption if it ties with the best own one or is NaN."""
    top = []
    for i, row in enumerate(scores):
        own = caption_image == i
        best, where = row.masked_fill(~own, -torch.inf).max(0)
        wrong, elsewhere = row.masked_fill(own, -torch.inf).max(0)
        top.append(torch.where(beats(best, wrong), where, elsewhere))
    return torch.stack(top)


def precisions(captions: Sequence[Words], truth: Sequence[set[str]]) -> list[float]:
    """For each caption that has words, the share of its words, counted with repetitions, that are in its `truth`."""
    pairs = zip(captions, truth, strict=True)
    return [sum(word in true for word in words) / len(words) for words, true in pairs if words]


def expected_precision(captions: Sequence[Words], truth: Sequence[set[str]]) -> float:
    """The mean of `precisions` over every pair of a caption that has words and a truth; NaN without any pair.

    The sum over captions is computed once per word, so the cost is linear in the number of words.
    """
    weight: defaultdict[str, float] = defaultdict(float)
    number = 0
    for words in captions:
        number += bool(words)
        for word in words:
            weight[word] += 1 / len(words)
    total = math.fsum(weight[word] for true in truth for word in true)
    return total / number / len(truth) if number and truth else math.nan
