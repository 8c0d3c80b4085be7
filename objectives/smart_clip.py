"""SmartCLIP: Modular Vision-language Alignment with Identification Guarantees.

Xie et al., CVPR 2025, arXiv 2507.22264. We have read summaries of the paper, and a public copy of the authors' code
(reyuyu/SAID at 729c5a6), but not the paper, so the letters are ours.

    h = t + MHA(LN(t)),   y = h + MLP(LN(h))     a transformer block over the tokens t of a text, without gradient  (a)
    l = sum_n softmax_n(w.y_n) y_n               [D], attention pooling over the tokens                             (b)
    m = 1 if sigmoid(l) >= 1/2, else 0           [D], the mask of the text; its gradient is that of sigmoid(l)      (c)
    Z_ij = k cos(x_i * m_j, y_j)                 [B, B], * is the product of each dimension                         (d)
    L_c = 1/2 [ CE_rows(Z) + CE_rows(Z^T) ]      rows: one image, all masks; columns: one mask, all images
    L = contrastive_weight * L_c + sparsity_weight * mean_jd |m_jd|                                                 (e)

Every text of the batch is scored with an image under its own mask. If an image had only the mask of its own text, its
masked vector would contain information about the correct text.

The cosine of all pairs needs two matrix products: x_i.(m_j y_j) and ||x_i * m_j||^2 = x_i^2.m_j^2.

Differs from the paper and the code:
- The code adds 10 times both cross-entropies and 2 times the mean of the mask: weights of 20 and 2 here. The defaults
  have the same ratio.
- k is learned from CLIP's initial value. The code fine-tunes CLIP and fixes k at 100: `temperature: 0.01`,
  `learn_temperature: false`.
- The block sees the selected tokens only. The code's attention and pooling include the positions after the end of a
  text. Tokens are those of the shared space here; in the code they are the text tower's outputs, which have the same
  width in its models.
- The code's pooling has a bias in the softmax, where it has no effect.
- A text without any token has the mask of ones.
- A mask of zeros gives the cosine 0. It is a division by zero in the code.
- Scores are cosines of the global embeddings without masks, as in the authors' evaluation; `masked_scores` scores with
  the masks, as the loss does.
- K texts of an image are all positives and no negatives of each other. The code draws one text for each image: the
  first n sentences of the caption, with n drawn at random.
- `align` is not in the paper: the cosine of each token with each patch under the mask of its text.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from patchword.contrast import LogitScale, info_nce, tiled
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine, masked_fill_min, normalize, quick_gelu


@final
class SmartCLIP(Objective):
    """Contrastive loss of each text with every image, of which only the dimensions in the text's mask are compared.

    Args:
        contrastive_weight: Weight of the contrastive loss.
        sparsity_weight: Weight of the mean of the masks.
        mask: Masks are 0 or 1 (`hard`), with the gradient of the sigmoid, or they are the sigmoid itself (`soft`).
        heads: Number of attention heads of the mask network; must divide the width of the shared space.
        masked_scores: Score with the masks, as the loss does. The authors' evaluation does not.
        temperature: tau of the contrastive loss, or its initial value if it is learned.
        learn_temperature: Learn 1/tau, kept in [1, 100].
    """

    multi_positive = True

    def __init__(
        self,
        contrastive_weight: float = 1.0,
        sparsity_weight: float = 0.1,
        mask: Literal["hard", "soft"] = "hard",
        heads: int = 8,
        masked_scores: bool = False,
        temperature: float = 0.07,
        learn_temperature: bool = True,
    ) -> None:
        super().__init__()
        if heads < 1:
            raise UserError(f"SmartCLIP's heads must be 1 or more, not {heads}")
        self.contrastive_weight = contrastive_weight
        self.sparsity_weight = sparsity_weight
        self.mask = mask
        self.heads = heads
        self.masked_scores = masked_scores
        self.uses_local_features = masked_scores
        self.scale = LogitScale(temperature, learned=learn_temperature)

    def build(self, embed_dim: int) -> None:
        """Build the mask network, initialized as in the authors' code."""
        if embed_dim % self.heads:
            raise UserError(f"SmartCLIP's heads must divide embed_dim: {embed_dim} is not a multiple of {self.heads}")
        self.network = _MaskNetwork(embed_dim, self.heads)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss terms `contrastive` and `sparsity`."""
        m = self.masks(texts)
        contrastive = info_nce(_masked_cosine, normalize(images.pooled), _with_mask(texts, m), self.scale())  # (d)
        return {  # (e)
            "contrastive": self.contrastive_weight * contrastive,
            "sparsity": self.sparsity_weight * m.abs().mean(),
        }

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings, under the masks of the texts if `masked_scores` is set."""
        if not self.masked_scores:
            return cosine(images.pooled, texts.pooled)
        return tiled(_masked_cosine, normalize(images.pooled), _with_mask(texts, self.masks(texts)))

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """Cosine of each token with each patch, in the dimensions of the text's mask."""
        masked = images.patches * self.masks(texts)[:, None]
        return cosine(texts.tokens, masked).masked_fill(~texts.mask[..., None], 0)

    def masks(self, texts: Texts) -> Float[Tensor, "T D"]:
        """The mask m of each text."""
        logits = self.network(texts.tokens.detach(), texts.mask)  # (a), (b)
        soft = logits.sigmoid()
        # (c); the difference is exactly 0 and has the gradient of the sigmoid
        return soft if self.mask == "soft" else (logits >= 0).to(soft.dtype) + (soft - soft.detach())


def _with_mask(texts: Texts, m: Float[Tensor, "T D"]) -> Float[Tensor, "T 2 D"]:
    """What a masked cosine needs of each text: its normalized vector in its mask, and the square of the mask."""
    return torch.stack([m * normalize(texts.pooled), m.square()], 1)


def _masked_cosine(x: Float[Tensor, "I D"], texts: Float[Tensor, "T 2 D"]) -> Float[Tensor, "I T"]:
    """cos(x_i * m_j, y_j) of normalized images; 0 if the product is the zero vector."""
    masked, squares = texts.unbind(1)
    square = x.square() @ squares.T
    return x @ masked.T * torch.where(square <= 1e-24, 1.0, square).rsqrt()


class _MaskNetwork(nn.Module):
    """A transformer block over the tokens of a text and attention pooling, with CLIP's initial values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first_norm, self.second_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.inputs, self.output = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.expand, self.contract = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.pool = nn.Linear(dim, 1, bias=False)
        for layer, variance in ((self.inputs, dim), (self.output, 2 * dim), (self.expand, 2 * dim)):
            nn.init.normal_(layer.weight, std=variance**-0.5)
        nn.init.normal_(self.contract.weight, std=(2 * dim) ** -0.5)
        nn.init.normal_(self.pool.weight, std=dim**-0.5)
        for layer in (self.inputs, self.output):
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Float[Tensor, "T L D"], mask: Bool[Tensor, "T L"]) -> Float[Tensor, "T D"]:
        """The logits of the mask of each text; 0 for texts without tokens."""
        h = tokens + self._attend(self.first_norm(tokens), mask)
        y = h + self.contract(quick_gelu(self.expand(self.second_norm(h))))  # (a)
        weights = masked_fill_min(self.pool(y).squeeze(-1), mask).softmax(-1).masked_fill(~mask, 0)
        return (weights[:, None] @ y).squeeze(1)  # (b)

    def _attend(self, x: Float[Tensor, "T L D"], mask: Bool[Tensor, "T L"]) -> Float[Tensor, "T L D"]:
        """Self-attention among the tokens that `mask` selects."""
        queries, keys, values = self.inputs(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = masked_fill_min(torch.zeros_like(x[..., 0]), mask)[:, None, None]
        heads = scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        return self.output(heads.transpose(1, 2).flatten(2))
