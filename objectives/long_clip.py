"""Long-CLIP: Unlocking the Long-Text Capability of CLIP.

Zhang et al., ECCV 2024, arXiv 2403.15378; the losses as in the authors' code. The letters are ours: we could not verify
the numbers of the paper's equations.

    x_i, y_i, s_i                the image, its long text and its short text, normalized                       (a)
    m = 1/N sum_i x_i,   V [D, r]: the first r principal components of the x_i - m of all N images             (b)
    p_i = m + V V^T (x_i - m)    the image without details; it is not normalized again                         (c)
    Z_ij = k x_i . y_j,   S_ij = k p_i . s_j                                                                   (d)
    C(Z) = 1/2 [ CE(Z) + CE(Z^T) ]   with label smoothing: 1 - e on the pair, e spread over all candidates     (e)
    L = long_weight * C(Z) + short_weight * C(S)                                                               (f)

A long text has to match every detail of an image, a short text only its coarse content. `HFText` has the second part of
the paper, the longer table of positions (`stretch_positions`).

Differs from the paper:
- The components are those of the images of all ranks. The code uses the images of one rank.
- V depends on the images, and so does the gradient, as in the code. The code differentiates the singular vectors
  themselves, which is not defined if two singular values are equal. Here it differentiates V V^T, whose derivative
  depends only on the differences between the eigenvalues inside V and those outside. It is exact, except that pairs of
  them that differ by at most 1e-6 of the largest eigenvalue do not contribute.
- If r components hold all of the x_i - m (N <= r + 1 or D <= r), then p = x, and nothing is computed.
- k starts at CLIP's 1/0.07. The code fine-tunes a CLIP and starts at 100.
- With K > 2 texts of each image, which the paper does not have, the first is the long one and all others are short
  ones, which are positives together, as in all objectives here. With K = 1, the text is both.
- `align` is not in the paper. It is the cosine of each token with each patch.
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from patchword import distributed
from patchword.contrast import LogitScale, cross_entropies
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine, normalize


@final
class LongCLIP(Objective):
    """Contrastive loss of images with long texts, and of the images' principal components with short texts.

    The first of an image's texts is the long one, all others are short ones. A single text is both.

    Args:
        long_weight: Weight of the loss on images and long texts.
        short_weight: Weight of the loss on the images' principal components and short texts.
        components: Number of principal components that an image keeps for its short texts.
        label_smoothing: Share of the target that is spread over all candidates.
        temperature: Initial tau; 1/tau is learned, shared by both losses and kept in [1, 100].
    """

    multi_positive = True

    def __init__(
        self,
        long_weight: float = 1.0,
        short_weight: float = 1.0,
        components: int = 32,
        label_smoothing: float = 0.1,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        if components < 1:
            raise UserError(f"LongCLIP's components must be 1 or more, not {components}")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"LongCLIP's label_smoothing must be at least 0 and less than 1, not {label_smoothing}")
        self.long_weight = long_weight
        self.short_weight = short_weight
        self.components = components
        self.label_smoothing = label_smoothing
        self.scale = LogitScale(temperature)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss terms `long` and `short`."""
        x, y = normalize(images.pooled), normalize(texts.pooled).unflatten(0, (len(images), -1))  # (a)
        p = distributed.own(principal(distributed.gather(x), self.components))  # (b), (c)
        short = y if y.shape[1] == 1 else y[:, 1:]
        return {  # (f)
            "long": self.long_weight * self._contrast(x, y[:, 0]),
            "short": self.short_weight * self._contrast(p, short.flatten(0, 1)),
        }

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings, for long and for short texts."""
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """Cosine of each token with each patch."""
        return cosine(texts.tokens, images.patches).masked_fill(~texts.mask[..., None], 0)

    def _contrast(self, images: Float[Tensor, "B D"], texts: Float[Tensor, "T D"]) -> Float[Tensor, ""]:
        """C of equation (e), of vectors that are compared as they are."""
        k = self.scale()

        def logits(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            z = k * x @ y.T  # (d)
            return z, z

        to_texts, to_images = cross_entropies(logits, images, texts, label_smoothing=self.label_smoothing)
        return (to_texts + to_images) / 2


def principal(x: Float[Tensor, "N D"], components: int) -> Float[Tensor, "N D"]:
    """The projection of each row of x on the first principal components of all rows. Differentiable once.

    It is x itself if the rows cannot have more components than that.
    """
    number, dim = x.shape
    if components >= min(number - 1, dim):
        return x
    mean = x.mean(0)
    c = x - mean
    # c V V^T = U U^T c with the eigenvectors V of c^T c [D, D] and U of c c^T [N, N]. The smaller matrix is used.
    return mean + (_projector(c @ c.T, components) @ c if number < dim else c @ _projector(c.T @ c, components))


def _projector(s: Float[Tensor, "n n"], rank: int) -> Float[Tensor, "n n"]:
    """The projector on the eigenvectors of the `rank` largest eigenvalues of a symmetric matrix. Differentiable once.

    If s changes by ds, the projector V V^T changes by A + A^T with A = V (G * V^T ds W) W^T, where W are the other
    eigenvectors and G_ij = 1 / (lambda_i - lambda_j), i in V and j in W. Differences between eigenvalues inside V or
    inside W cancel out, so that they may be equal.
    """
    fixed = s.detach()
    # A matrix that is not finite cannot be decomposed. The result is still not finite, because of s - fixed.
    values, vectors = torch.linalg.eigh(fixed.nan_to_num(0, 0, 0))  # ascending
    w, v = vectors.split([len(s) - rank, rank], 1)
    gap = values[-rank:, None] - values[:-rank]
    is_zero = gap <= 1e-6 * values[-1]
    g = torch.where(is_zero, 0.0, 1 / gap.masked_fill(is_zero, 1.0))
    change = v @ (g * (v.T @ (s - fixed) @ w)) @ w.T  # zero, but its derivative is that of the projector
    return v @ v.T + change + change.T
