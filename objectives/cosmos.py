"""COSMOS: Cross-Modality Self-Distillation for Vision Language Pre-training.

Kim et al., CVPR 2025, arXiv 2412.01814; everything here is as in the authors' code (ExplainableML/cosmos, c80348f). The
letters are ours: we have not read the paper's equations. A teacher is the moving average of the towers.

    x_iv, t_ik        the student's global vectors of image i and its crops, and of its K texts
    X_ig, T_ig        the teacher's global vectors of image i and its large crops, and of its first texts
    A(q, C) = MHA(LN(q), LN(C), LN(C))          multi-head attention of a query q over the vectors C               (a)
    u_iv = x_iv + A_t(x_iv, tokens of text 1 of image i)                                                           (b)
    w_ik = t_ik + A_x(t_ik, patches of image i)                                                                    (c)
    C(a, b; k) = mean_mn 1/2 [ CE(k cos(a_im, b_jn) over j) + CE(k cos(a_jm, b_in) over j) ]                       (d)
    L_g = C(x, t; k)          v: only the image and its large crops                                                (e)
    L_d = 1/4 [ C(u, X; k') + C(u, T; k') + C(w, X; k') + C(w, T; k') ]          v: all crops, k: all texts        (f)
    L = global_weight * L_g + distillation_weight * L_d                                                            (g)

In (d) the m-th view or text of an image competes with the m-th ones of other images, and never with those of its own.
u and w contain information about the right answer: an image's own text is among the tokens that u reads. The teacher's
vectors of this text are therefore easy to find. The gradient reaches the patches and tokens through A.

Differs from the paper:
- The code crops every view at random, also the first one, whose patches w reads. Here the first view is the image as
  the data gives it, so that `patches` belong to the same image as in all objectives.
- All crops have the size of the towers' input. The code scales small crops to 96 pixels, and large ones to 224.
- The code joins one to five random captions in each of the first two texts, and draws the others one by one. Here the
  data decides which texts an image has; the first `global_texts` of them are the long ones.
- u reads the tokens that `token_selection` selects. The code reads all positions, including padding.
- The code maps patches and tokens to the shared space by layers of their own. Towers are not a part of the objective.
- The code averages the student into the teacher before the optimizer's step, and we after it.
- The code is trained without `--gather-with-grad`: on W ranks, the gradient of its vectors is that of one process
  divided by W, but the gradient of k and k' is not. Here it is exact.
- The code can raise the teacher's momentum to 1 during training. Its training scripts do not (`--fix-momentum`).
- `align` uses each token as the query of A_x, as the loss uses a text's global vector, and averages over heads.
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from patchword.contrast import LogitScale, info_nce
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine, normalize


@final
class COSMOS(Objective):
    """A contrastive loss on images and texts, and one of their crops and texts with the embeddings of a teacher.

    Args:
        global_weight: Weight of the contrastive loss.
        distillation_weight: Weight of the loss with the teacher's embeddings.
        global_texts: The number of an image's first texts of which the teacher's embeddings are used.
        heads: Number of heads of the two attention modules; must divide the width of the shared space.
        temperature: Initial tau of each of the two losses; each 1/tau is learned and kept in [1, 100].
    """

    map_measure = "weight"
    multi_positive = True
    needs = ("views", "teacher")

    def __init__(
        self,
        global_weight: float = 1.0,
        distillation_weight: float = 1.0,
        global_texts: int = 2,
        heads: int = 8,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        for name, value in {"global_texts": global_texts, "heads": heads}.items():
            if value < 1:
                raise UserError(f"COSMOS's {name} must be 1 or more, not {value}")
        self.global_weight = global_weight
        self.distillation_weight = distillation_weight
        self.global_texts = global_texts
        self.heads = heads
        self.scale = LogitScale(temperature)
        self.distillation_scale = LogitScale(temperature)

    def build(self, embed_dim: int) -> None:
        """Build the two attention modules, initialized like `torch.nn.MultiheadAttention`."""
        if embed_dim % self.heads:
            raise UserError(f"COSMOS's heads must divide embed_dim: {embed_dim} is not a multiple of {self.heads}")
        self.of_tokens, self.of_patches = _Attention(embed_dim, self.heads), _Attention(embed_dim, self.heads)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss terms `global` and `distillation`."""
        assert images.views is not None  # in `needs`
        assert images.teacher is not None
        assert texts.teacher is not None
        own = (len(images), len(texts) // len(images))
        x, t = torch.cat([images.pooled[:, None], images.views], 1), texts.pooled.unflatten(0, own)
        first = texts[:: own[1]]
        u = x + self.of_tokens(x, first.tokens, first.mask)[0]  # (b)
        w = t + self.of_patches(t, images.patches, images.mask)[0]  # (c)
        taught = images.teacher, texts.teacher.unflatten(0, own)[:, : self.global_texts]
        together = _contrast(x[:, : images.teacher.shape[1]], t, self.scale())  # (e)
        distilled = [_contrast(a, b, self.distillation_scale()) for a in (u, w) for b in taught]  # (f)
        return {  # (g)
            "global": self.global_weight * together,
            "distillation": self.distillation_weight * torch.stack(distilled).mean(),
        }

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings."""
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """The attention weights of A_x with each token as the query, averaged over heads. Rows sum to 1."""
        weights = self.of_patches(texts.tokens, images.patches, images.mask)[1]
        return weights.masked_fill(~texts.mask[..., None], 0)


class _Attention(nn.Module):
    """Multi-head attention of queries over the vectors of a context, with a layer norm for each of the two."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.query_norm, self.context_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads)

    def forward(
        self, queries: Float[Tensor, "B N D"], context: Float[Tensor, "B M D"], mask: Bool[Tensor, "B M"] | None
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B N M"]]:
        """A(q, C) of equation (a), and the weights. Queries read where `mask` is True, or everywhere if it never is."""
        ignored = None if mask is None else ~mask & mask.any(-1, keepdim=True)
        # The layer takes [M, B, D]. If it swapped the axes after the norm, each projection would copy its input.
        q, c = self.query_norm(queries.transpose(0, 1)), self.context_norm(context.transpose(0, 1))
        # Another object as the values: for one object, torch projects keys and values together, with a slower gradient.
        found, weights = self.attention(q, c, c.view_as(c), key_padding_mask=ignored)
        return found.transpose(0, 1), weights


def _contrast(a: Float[Tensor, "B M D"], b: Float[Tensor, "B N D"], k: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """C of equation (d)."""
    return info_nce(_products, normalize(a), normalize(b), k)


def _products(a: Float[Tensor, "I M D"], b: Float[Tensor, "T N D"]) -> Float[Tensor, "I T M N"]:
    """The product of every vector of each image with every vector of each text."""
    return torch.einsum("imd,tnd->itmn", a, b)
