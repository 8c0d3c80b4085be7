"""PowerCLIP: Powerset Alignment for Contrastive Pre-Training.

Kawamura et al., CVPR 2026, arXiv 2511.23170, with random regions (PowerCLIP-R). We have read summaries of the paper,
but neither the paper nor its code. (a) to (e), (g) and (h) follow the summaries; (f) is our reconstruction of the
paper's aggregator NLA-T2. The letters are ours.

    r_m = sum_{p in R_m} v_p, normalized              R_1 .. R_M: random boxes of patches, v_p: patches              (a)
    p_B = sum_{l in B} t_l                            B: a phrase of the text's parse tree, t_l: normalized tokens   (b)
    Q_AB = sum_{m in A} s_mB,   s_mB = r_m . p_B      A: one of the 2^M sets of regions                              (c)
    T2R = mean_B max_A Q_AB,   R2T = mean_A max_B Q_AB                                                               (d)
    T2R ~ mean_B t log sum_A exp(Q_AB / t) = mean_B t sum_m softplus(s_mB / t)                                       (e)
    R2T ~ t log sum_B exp sum_m [ x_mB + zeta log cosh x_mB ],   x_mB = s_mB / 2t                                    (f)
    S_ij = (e) + (f) of image i and text j
    L_P = mean_i max(0, delta + max_{j != i} S_ij - S_ii) + mean_j max(0, delta + max_{i != j} S_ij - S_jj)          (g)
    L = global_weight * L_CLIP + powerset_weight * L_P,   L_CLIP = InfoNCE of the global embeddings                  (h)

(e) is exact: the sum over all A of exp(Q_AB / t) is the product over m of 1 + exp(s_mB / t). For t -> 0 it is (d), in
which every phrase takes the regions of positive s. (f) interpolates between two bounds of mean_A t log sum_B
exp(Q_AB / t), which differs from R2T by at most t log |T|. Both follow from Jensen's inequality, for the two orders of
the mean over A and the convex log-sum-exp over B:

    zeta = 0   t log sum_B exp(mean_A Q_AB / t)    lower bound;  mean_A Q_AB = sum_m s_mB / 2
    zeta = 1   t log sum_B mean_A exp(Q_AB / t)    upper bound;  mean_A exp(Q_AB / t) = prod_m (1 + exp(s_mB / t)) / 2

All of this is linear in M. Texts contain their phrases, on any number of levels; if a text has none, its words are used
as phrases. Inference is the plain dual encoder.

Differs from the paper:
- In each step, all images have the same M boxes, relative to their size. According to the summaries, the paper draws
  boxes for each image. The
  loss therefore depends neither on the order of the batch nor on the number of ranks.
- (f) is a reconstruction. We know that NLA-T2 has a tanh as its activation, log cosh as its antiderivative, and a
  zeta in [0, 1] between an upper and a lower bound. The derivative of (f)'s summand is 1 + zeta tanh.
- Phrases are those of the data; there is no parser. The sum (b) is over the selected tokens of a phrase; the paper's
  leaves are words.
- The margin delta is not in the summaries; the default is that of VSE++ (arXiv 1707.05612), which has the same loss.
- The paper's towers average patches and tokens. Towers are not a part of the objective here.
- The paper has no token-patch map; `align` is the cosine of each token with each patch.
"""

from __future__ import annotations

import math
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from patchword.contrast import LogitScale, info_nce, triplet_loss
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine, masked_fill_min, normalize


@final
class PowerCLIP(Objective):
    """CLIP's loss, and a triplet loss on the alignment of all sets of random regions with all phrases.

    Args:
        global_weight: Weight of L_CLIP.
        powerset_weight: Weight of L_P.
        regions: The number M of random boxes in each step.
        margin: delta, by which an image has to match its own text better than any other, and a text its own image.
        zeta: The place of R2T between its lower bound, 0, and its upper bound, 1.
        smoothing: t: the smaller it is, the closer are smooth maxima to maxima.
        temperature: Initial tau of L_CLIP; 1/tau is learned and kept in [1, 100].
    """

    multi_positive = True

    def __init__(
        self,
        global_weight: float = 1.0,
        powerset_weight: float = 0.2,
        regions: int = 10,
        margin: float = 0.2,
        zeta: float = 0.75,
        smoothing: float = 0.001,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        if regions < 1:
            raise UserError(f"PowerCLIP's regions must be 1 or more, not {regions}")
        if not 0 <= zeta <= 1:
            raise UserError(f"PowerCLIP's zeta must lie in [0, 1], not {zeta}")
        if not 0 <= margin < math.inf:
            raise UserError(f"PowerCLIP's margin must be 0 or more, not {margin}")
        if not 1e-6 <= smoothing <= 1:
            raise UserError(f"PowerCLIP's smoothing must lie in [1e-6, 1], not {smoothing}")
        self.global_weight = global_weight
        self.powerset_weight = powerset_weight
        self.regions = regions
        self.margin = margin
        self.zeta = zeta
        self.smoothing = smoothing
        self.scale = LogitScale(temperature)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss terms `global` and `powerset`."""
        boxes = self.draw_boxes(images).to(images.patches.dtype)
        regions, phrases = normalize(boxes @ images.patches), phrase_sums(texts)  # (a), (b)
        pair_size = 3 * self.regions * phrases.mask.shape[1]  # s, s / t and its softplus
        powerset = triplet_loss(self.similarity, regions, phrases, self.margin, pair_size)  # (g)
        return {  # (h)
            "global": self.global_weight * info_nce(cosine, images.pooled, texts.pooled, self.scale()),
            "powerset": self.powerset_weight * powerset,
        }

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings."""
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """Cosine of each token with each patch."""
        return cosine(texts.tokens, images.patches).masked_fill(~texts.mask[..., None], 0)

    def draw_boxes(self, images: Images) -> Bool[Tensor, "I M P"]:
        """The patches of M random boxes, with one draw from torch's global generator for all images.

        Centers are uniform on an image; heights and widths are uniform between one patch and the image's. A box holds
        the patches whose centers it covers, and is cut at the border.
        """
        device = images.patches.device

        def covered(
            cells: int, size: Int[Tensor, "I 1 1"], center: Float[Tensor, "M 1"], side: Float[Tensor, "M 1"]
        ) -> Bool[Tensor, "I M cells"]:
            place = torch.arange(cells, device=device)
            distance = place + 0.5 - size * center
            return (distance.abs() <= (1 + (size - 1) * side) / 2) & (place < size)

        y, height, x, width = torch.rand(4, self.regions, 1).to(device)
        rows, columns = images.shapes.T[..., None, None]
        covered_rows, covered_columns = (
            covered(images.grid[0], rows, y, height),
            covered(images.grid[1], columns, x, width),
        )
        return (covered_rows[..., None] & covered_columns[:, :, None]).flatten(2)

    def similarity(self, regions: Float[Tensor, "I M D"], phrases: Texts) -> Float[Tensor, "I T"]:
        """S of any images and texts, from the vectors r of regions and the vectors p of phrases, `phrases.tokens`."""
        count, real = regions.shape[1], phrases.mask
        x = regions.flatten(0, 1) @ phrases.tokens.flatten(0, 1).T / self.smoothing  # s / t
        x = x.view(len(regions), count, *real.shape)
        total, half = softplus(x).sum(1), x.sum(1) / 2  # [I, T, B]
        t2r = total.masked_fill(~real, 0).sum(-1) / real.sum(-1).clamp_min(1)  # (e)
        log_cosh = total - half - count * math.log(2)  # log cosh x/2 = softplus(x) - x/2 - log 2
        r2t = masked_fill_min(half + self.zeta * log_cosh, real).logsumexp(-1)  # (f)
        return self.smoothing * (t2r + r2t.masked_fill(~real.any(-1), 0))


def phrase_sums(texts: Texts) -> Texts:
    """The texts with the phrases of all levels in place of their tokens: p of (b), at the place of its first token."""
    place = torch.arange(texts.mask.shape[1], device=texts.mask.device)
    number = place.expand(texts.mask.shape)[:, None]
    if texts.phrases is not None:
        inside = (texts.phrases >= 0) & texts.mask[:, None]
        first_level = torch.arange(inside.shape[1], device=place.device)[:, None] == 0
        number = torch.where(first_level & ~inside.flatten(1).any(-1)[:, None, None], number, texts.phrases)
    real = (number >= 0) & texts.mask[:, None]  # [T, V, L]
    same = (number[..., None] == number[..., None, :]) & real[..., None] & real[..., None, :]
    members = same & ~same.tril(-1).any(-1, keepdim=True)  # rows of tokens that are not the first one are empty
    t = normalize(texts.tokens)[:, None]
    return Texts(texts.pooled, (members.to(t.dtype) @ t).flatten(1, 2), members.any(-1).flatten(1))
