"""LOUPE: Fine-Grained Semantically Aligned Vision-Language Pre-Training.

Li et al., NeurIPS 2022, arXiv 2208.02515. The authors' repository has no code. The names and purposes of the losses are
the paper's. Games, normalizers and the region head are reconstructed or ours; docs/objectives/loupe.md lists which. The
letters are ours: we could not verify the numbers of the paper's equations.

    A_pl = cos(v_p, t_l), own pair only
    L_CMC = InfoNCE of the global embeddings                                   cross-modality contrast
    L_TSA = mean_m BCE(confidence_m, I'(R_m))                                  which patches form a region           (b)
        R_1 .. R_M  the boxes of patches with the highest confidence of a region head
        I(R)        Shapley interaction of the patches of R in the game with A, words fixed (`region_interactions`)  (a)
        I'(R)       I(R) / |R|, min-max over the image's regions                                                     (a)
    L_FSA = -mean_j sum_i I'_ij log softmax_i(k cos(h_i, u_j))                 which region a phrase refers to       (d)
        h_i, u_j    mean of the patches of R_i; mean of the tokens of phrase j
        I_ij        Shapley interaction of region i and phrase j (`pair_interactions`)                               (c)
        I'_ij       max(I_ij, 0) / sum_i max(I_ij, 0)                                                                (c)
    L = global_weight L_CMC + token_weight L_TSA + semantic_weight L_FSA                                             (e)

Interactions are labels: no gradient flows through them. Texts contain their phrases; if a caption has none, its words
are used as phrases. Inference is the plain dual encoder.

Differs from the paper:
- Its token-level game encodes every coalition of input tokens again. This game is `estimator: masked`. The default game
  is defined on the patches' similarities, like the game of the semantics level. Its interactions have an exact closed
  form, so that neither sampling nor a network is needed.
- In the default game, I(R) is never positive if all similarities are at least 0. It is lowest for the patches of one
  object, because they can replace each other. The default label is therefore the interaction in the deletion game.
- The paper has no map; `align` is the exact interaction of each patch with each word.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from patchword.contrast import LogitScale, info_nce
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine, masked_fill_min, masked_mean, min_max, without_padding
from patchword.shapley import (
    Estimate,
    InteractionNetwork,
    RegionHead,
    Worth,
    certain_or_sampled,
    masked_region_interactions,
    pair_interactions,
    region_interactions,
    region_maps,
    sampled_pair_interactions,
    sampled_region_interactions,
)


@final
class LOUPE(Objective):
    """Shapley interactions as labels for regions, and for the region that each phrase refers to.

    Args:
        global_weight: Weight of L_CMC.
        token_weight: Weight of L_TSA.
        semantic_weight: Weight of L_FSA.
        estimator: How interactions are computed: `exact`; `sampled` by Monte Carlo; or `neural`, by networks that
            predict them with an uncertainty. Where the networks are uncertain, Monte Carlo samples are used, and the
            networks learn from these. `masked` is `neural` with the paper's token-level game: the samples of I(R) come
            from encoding the image and the caption again with masked patches and words.
        samples: Number of contexts (coalitions of the other players) that Monte Carlo draws.
        masked_samples: The same for the masked game, where a context costs three passes of the image for every
            uncertain region, and one pass of the caption.
        certainty: A network is used where its standard deviation is at most this share of a typical interaction, that
            is, of 1 / number of pairs, or of the region's share of the patches. 0 samples all interactions.
        label: What makes a good region: a large interaction in the `deletion` game, a `negative` interaction in the
            presence game (redundant patches), a positive one (`presence`), or, as a baseline, the mean over its patches
            of the similarity with the best word (`similarity`).
        regions: The number M of regions of an image.
        sides: Heights and widths of the boxes among which the region head chooses, as shares of those of the grid.
        temperature: Initial tau; 1/tau is learned and kept in [1, 100].
    """

    map_measure = "interaction"
    multi_positive = True

    def __init__(
        self,
        global_weight: float = 1.0,
        token_weight: float = 1.0,
        semantic_weight: float = 1.0,
        estimator: Estimate = "exact",
        samples: int = 500,
        masked_samples: int = 4,
        certainty: float = 0.3,
        label: Literal["deletion", "negative", "presence", "similarity"] = "deletion",
        regions: int = 16,
        sides: tuple[float, ...] = (0.2, 0.4, 0.6),
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        for name, number in (("regions", regions), ("samples", samples), ("masked_samples", masked_samples)):
            if number < 1:
                raise UserError(f"LOUPE's {name} must be 1 or more, not {number}")
        if not sides or not all(0 < side <= 1 for side in sides):
            raise UserError(f"LOUPE's sides must be one or more shares of the grid in (0, 1], not {list(sides)}")
        self.global_weight = global_weight
        self.token_weight = token_weight
        self.semantic_weight = semantic_weight
        self.estimator = estimator
        self.samples = samples
        self.masked_samples = masked_samples
        self.certainty = certainty
        self.label = label
        self.regions = regions
        self.sides = sides
        self.scale = LogitScale(temperature)
        self.needs = ("masked",) if estimator == "masked" and label != "similarity" else ()
        self.has_networks = estimator in ("neural", "masked")
        if self.has_networks:
            self.region_network = InteractionNetwork(2)
            self.pair_network = InteractionNetwork(1)

    def build(self, embed_dim: int) -> None:
        """Build the region head."""
        self.region_head = RegionHead(embed_dim, self.sides, self.regions)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss terms `global`, `token` and `semantic`, and `estimator` if there are networks."""
        own = images.per_text(texts)
        regions, confidence = self.propose_regions(own)
        labels, region_surprise = self.region_labels(own, texts, regions)
        similarity, mask = self.semantic_similarity(own, texts, regions)
        real = regions.any(-1)
        targets, pair_surprise = self.pair_labels(similarity, mask, real)
        log_shares = without_padding(self.scale() * similarity, real, 1).log_softmax(1)
        cross_entropy = -(targets * log_shares).sum(1)  # (d), [B, N]
        token = binary_cross_entropy_with_logits(confidence, labels, reduction="none").sum(-1) / real.sum(-1)  # (b)
        terms = {  # (e)
            "global": self.global_weight * info_nce(cosine, images.pooled, texts.pooled, self.scale()),
            "token": self.token_weight * token.masked_fill(~texts.mask.any(-1), 0).mean(),
            "semantic": self.semantic_weight * masked_mean(cross_entropy[..., None], mask).mean(),
        }
        return terms | ({"estimator": region_surprise + pair_surprise} if self.has_networks else {})

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings."""
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """The exact interaction of each patch with each word."""
        return pair_interactions(cosine(images.patches, texts.tokens), texts.mask, images.mask).mT

    def propose_regions(self, images: Images) -> tuple[Bool[Tensor, "B M P"], Float[Tensor, "B M"]]:
        """The boxes in which the region head is most confident. Images with fewer patches than M have empty regions."""
        regions: tuple[Bool[Tensor, "B M P"], Float[Tensor, "B M"]] = self.region_head(images)
        return regions

    def semantic_similarity(
        self, images: Images, texts: Texts, regions: Bool[Tensor, "B M P"]
    ) -> tuple[Float[Tensor, "B M N"], Bool[Tensor, "B N"]]:
        """Cosine of each region with each phrase, and the mask of real phrases."""
        weights = regions.to(images.patches.dtype)
        u, mask = _phrases(texts)
        return cosine(weights @ images.patches / weights.sum(-1, keepdim=True).clamp_min(1), u), mask

    def region_labels(
        self, images: Images, texts: Texts, regions: Bool[Tensor, "B M P"]
    ) -> tuple[Float[Tensor, "B M"], Float[Tensor, ""]]:
        """I'(R) of (a), and the loss of the network that estimates I (0 if there is no network)."""
        similarity, real = cosine(images.patches, texts.tokens).detach(), regions.any(-1)
        size = regions.sum(-1).clamp_min(1)
        if self.label == "similarity":
            best = masked_fill_min(similarity, texts.mask[:, None]).amax(-1)
            best = best.masked_fill(~texts.mask.any(-1, keepdim=True), 0)  # a sum of `finfo.min` is infinite
            return min_max((regions * best[:, None]).sum(-1) / size, real), best.new_zeros(())
        players = similarity, regions, texts.mask, images.mask
        worth: Worth = "deletion" if self.label == "deletion" else "presence"

        def predict() -> tuple[Float[Tensor, "B M"], Float[Tensor, "B M"]]:
            cells = self.region_network(
                region_maps(similarity, regions, texts.mask, images.grid),
                regions.flatten(0, 1).unflatten(-1, images.grid),
            )
            mean, log_variance = (masked_mean(x.view(*regions.shape, 1), regions)[..., 0] for x in cells)
            return mean, log_variance

        def sample(uncertain: Bool[Tensor, "B M"]) -> Float[Tensor, "B M"]:
            draws: Any = {"worth": worth, "generator": _generator()}
            if self.estimator != "masked":
                return sampled_region_interactions(*players, samples=self.samples, **draws)
            assert images.masked is not None  # in `needs`
            assert texts.masked is not None
            again = images.masked, texts.masked, regions & uncertain[..., None], texts.mask
            return masked_region_interactions(*again, samples=self.masked_samples, **draws).to(similarity.dtype)

        interactions, surprise = self.estimate(
            partial(region_interactions, *players, worth=worth),
            sample,
            predict,
            texts.mask.any(-1, keepdim=True) & real,
            size / images.count(1),
        )
        return min_max((-interactions if self.label == "negative" else interactions) / size, real), surprise  # (a)

    def pair_labels(
        self, similarity: Float[Tensor, "B M N"], mask: Bool[Tensor, "B N"], real: Bool[Tensor, "B M"]
    ) -> tuple[Float[Tensor, "B M N"], Float[Tensor, ""]]:
        """I'_ij of (c), and the loss of the network that estimates I (0 if there is no network)."""
        similarity = similarity.detach()
        cells = mask[:, None] & real[..., None]
        interactions, surprise = self.estimate(
            partial(pair_interactions, similarity, mask, real),
            lambda _: sampled_pair_interactions(similarity, mask, real, samples=self.samples, generator=_generator()),
            lambda: self.pair_network(similarity[:, None], cells),
            cells,
            1 / cells.sum((1, 2), keepdim=True).clamp_min(1).expand(cells.shape),
        )
        positive = interactions.clamp_min(0).masked_fill(~cells, 0)
        return positive / positive.sum(1, keepdim=True).clamp_min(1e-12), surprise  # (c)

    def estimate(
        self,
        exact: Callable[[], Float[Tensor, "*n"]],
        sample: Callable[[Bool[Tensor, "*n"]], Float[Tensor, "*n"]],
        predict: Callable[[], tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]],
        mask: Bool[Tensor, "*n"],
        unit: Float[Tensor, "*n"],
    ) -> tuple[Float[Tensor, "*n"], Float[Tensor, ""]]:
        """Interactions of the chosen estimator, without gradient, and the loss of its network (0 if it has none)."""
        if self.has_networks:
            return certain_or_sampled(predict(), sample, mask, unit, self.certainty)
        found = exact() if self.estimator == "exact" else sample(mask)
        return found, found.new_zeros(())


def _generator() -> torch.Generator:
    """A generator seeded with one number of torch's global generator, regardless of how many numbers it draws."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))


def _phrases(texts: Texts) -> tuple[Float[Tensor, "T N D"], Bool[Tensor, "T N"]]:
    """The mean of each phrase's tokens, N = L, and the mask of real phrases. Without phrases, words are used."""
    place = torch.arange(texts.mask.shape[1], device=texts.mask.device)
    own = place.expand(texts.mask.shape)
    if texts.phrases is not None:
        own = torch.where((texts.phrases[:, 0] >= 0).any(-1, keepdim=True), texts.phrases[:, 0], own)
    members = (own[:, None] == place[:, None]) & texts.mask[:, None]  # [T, N, L]
    weights = members.to(texts.tokens.dtype)
    return weights @ texts.tokens / weights.sum(-1, keepdim=True).clamp_min(1), members.any(-1)
