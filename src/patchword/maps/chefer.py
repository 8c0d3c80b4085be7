"""Relevance of patches through all blocks, by gradients of the attention.

Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers. Hila Chefer,
Shir Gur, Lior Wolf. ICCV 2021, arXiv 2103.15679.

A_b are the weights of the b-th attention of the image tower, from the first, and s_l is the score of the image with
token l (`pairs.word_scores`).

    (a)  R = identity                                       [N, N], over the tokens of the tower
    (b)  R <- R + mean_heads relu(d s_l / d A_b * A_b) R    for each block b
    (c)  map(l, p) = mean_i (R - identity)_ip               over the rows i of the last block that s_l depends on

With a class token, (c) is its row, as in the paper. If the tower pools its patches by a mean, all patches have a row.
In SigLIP, the head that pools the image is the last attention. It has one query, the only row.

Cost: one pass of the image tower that keeps the weights of all attentions, and a backward pass for each token.
Needs: a vision transformer.

Differs from the authors' code for CLIP: its default is the last block only (`blocks=1` here); the paper's (b) starts at
the first.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from patchword.maps.attention import Attention, attentions
from patchword.maps.pairs import Pairs
from patchword.objective import Objective


def chefer(objective: Objective, pairs: Pairs, blocks: int | None = None) -> Float[Tensor, "T L P"]:
    """The map (c) of each wanted token. Its values are 0 or more.

    Args:
        objective: The objective whose score is explained.
        pairs: The images and texts.
        blocks: The number of last attentions in (b); None for all.
    """
    weights: list[Tensor] = []

    def read(number: int, attention: Attention) -> Tensor:
        weights.append(attention.weights if attention.weights.requires_grad else attention.weights.requires_grad_())
        return attention.output()

    with attentions(read):
        images = pairs.encoder.encode_images(pairs.pixels)
    weights = weights[-(blocks or len(weights)) :]
    maps = pairs.empty()
    for image, text, place, gradients in pairs.gradients(objective, images, weights):
        relevance = maps.new_zeros(len(image), 1, weights[-1].shape[-1])  # R - identity
        for gradient, weight in zip(gradients, weights, strict=True):
            step = (gradient * weight[image].detach()).relu().mean(1)
            step = step + step @ relevance.expand(-1, step.shape[2], -1)
            relevance = step if step.shape[1] == 1 else relevance + step
        used = gradients[-1].abs().sum((1, 3)) > 0
        row = used / used.sum(-1, keepdim=True).clamp_min(1)
        maps[text, place] = (row[:, None] @ relevance)[:, 0, -maps.shape[-1] :]
    return maps
