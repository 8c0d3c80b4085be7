"""SuperCLIP: CLIP with Simple Classification Supervision.

Zhao et al., NeurIPS 2025, arXiv 2512.14480; the head and the weights of tokens as in the authors' code
(hustvl/SuperCLIP, commit fb59c6d). The letters are ours.

    v_i = mean_p v_ip                                  the mean of the image's patches                               (a)
    w_c = log((N + 1) / (n_c + 1))                     n_c of the N captions so far have token c                     (b)
    y_ic = w_c [c in caption i] / sum_c' w_c' [c' in caption i]                                                      (c)
    L_cls = -1/B sum_i sum_c y_ic log softmax(W LN(v_i) + b)_c                                                       (d)
    L = global_weight * L_CLIP + classification_weight * L_cls                                                       (e)

The second loss asks which tokens the caption contains, in any order. Rare tokens count more. It needs no other pair.

Differs from the paper:
- v_i is the mean of patches in the shared space, to which the encoder projects them. The code takes the mean before the
  projection.
- (b) counts captions. The code counts fractions of batches, which is the same if all batches have the same size.
- Padding is no token. In the code it is the token that occurs in all captions but the longest, so that its weight is
  almost 0.
- With K texts for each image, which the paper does not have, L_cls is the mean over all texts.
- The paper has no token-patch map; `align` is the cosine of each token with each patch, as for CLIP.
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from patchword import distributed
from patchword.contrast import LogitScale, info_nce
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objective import Need, Objective
from patchword.ops import cosine, masked_mean


@final
class SuperCLIP(Objective):
    """CLIP's loss, and the classification of the mean patch into the tokens of the caption.

    Args:
        global_weight: Weight of the CLIP loss on the global embeddings.
        classification_weight: Weight of the classification into tokens.
        vocabulary: The number of classes: at least the number of tokens that the tokenizer knows.
        temperature: Initial tau; 1/tau is learned and kept in [1, 100].
    """

    multi_positive = True
    needs: tuple[Need, ...] = ("ids",)
    captions: Int[Tensor, ""]
    captions_with: Int[Tensor, " V"]

    def __init__(
        self,
        global_weight: float = 1.0,
        classification_weight: float = 1.0,
        vocabulary: int = 49408,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        if vocabulary < 1:
            raise UserError(f"SuperCLIP's vocabulary must be 1 or more, not {vocabulary}")
        self.global_weight = global_weight
        self.classification_weight = classification_weight
        self.vocabulary = vocabulary
        self.scale = LogitScale(temperature)
        # Integers, because half precision cannot count.
        self.register_buffer("captions", torch.zeros((), dtype=torch.long))
        self.register_buffer("captions_with", torch.zeros(vocabulary, dtype=torch.long))

    def build(self, embed_dim: int) -> None:
        """Build the classifier, initialized as in the code."""
        self.norm = nn.LayerNorm(embed_dim)
        self.classifier = nn.Linear(embed_dim, self.vocabulary)
        nn.init.normal_(self.classifier.weight, std=embed_dim**-0.5)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss terms `global` and `classification`. In training mode, the captions are counted."""
        return {  # (e)
            "global": self.global_weight * info_nce(cosine, images.pooled, texts.pooled, self.scale()),
            "classification": self.classification_weight * self.classification_loss(images, texts),
        }

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings."""
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """Cosine of each token with each patch."""
        return cosine(texts.tokens, images.patches).masked_fill(~texts.mask[..., None], 0)

    def classification_loss(self, images: Images, texts: Texts) -> Float[Tensor, ""]:
        """L_cls of equation (d), unweighted.

        Raises:
            UserError: If the id of a token is not below `vocabulary`.
        """
        assert texts.ids is not None  # in `needs`
        if not torch.compiler.is_compiling() and (largest := int(texts.ids.max())) >= self.vocabulary:
            raise UserError(
                f"SuperCLIP's vocabulary is {self.vocabulary}, but a token has the id {largest}: increase it"
            )
        # A token counts once, at its first place in the caption.
        repeats = (texts.ids[:, :, None] == texts.ids[:, None, :]).tril(-1).any(-1)
        present, ids = (texts.ids >= 0) & ~repeats, texts.ids.clamp_min(0)
        if self.training:
            self._count(ids, present)
        v = images.patches.mean(1) if images.mask is None else masked_mean(images.patches, images.mask)  # (a)
        w = ((self.captions + 1).to(v.dtype) / (self.captions_with + 1)).log()  # (b)
        y = w[ids].masked_fill(~present, 0)
        y = y / y.sum(-1, keepdim=True).clamp_min(1e-12)  # (c)
        log_p = self.classifier(self.norm(v)).log_softmax(-1)
        log_p = log_p.repeat_interleave(len(texts) // len(images), 0).gather(1, ids)
        return -(y * log_p).sum(-1).mean()  # (d)

    def _count(self, ids: Int[Tensor, "T L"], present: Bool[Tensor, "T L"]) -> None:
        """Count the captions of this batch with each token, on all ranks."""
        counts = torch.zeros(self.vocabulary, device=ids.device).index_add_(0, ids.flatten(), present.flatten().float())
        ranks = distributed.world_size()
        self.captions_with += (ranks * distributed.mean(counts)).round().long()
        self.captions += ranks * len(ids)
