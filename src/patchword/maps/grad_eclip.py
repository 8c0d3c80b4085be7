"""Grad-ECLIP: the values of the last attention, weighted by channel and by place.

Gradient-based Visual Explanation for Transformer-based CLIP. Chenyang Zhao, Kun Wang, Xingyu Zeng, Rui Zhao,
Antoni B. Chan. ICML 2024.

o_i is the output of the last attention for query i, before its projection; q_i, k_p and v_p are its queries, keys and
values, with all heads side by side; s_l is the score of the image with token l (`pairs.word_scores`).

    (a)  w_ic      = d s_l / d o_ic                      the weights of channels
    (b)  lambda_ip = minmax_p cos(q_i, k_p)              the weights of places, less sparse than the attention
    (c)  map(l, p) = relu(sum_i sum_c w_ic lambda_ip v_pc)

With a class token, only its w is not zero, and (c) is the paper's map. If the tower pools its patches by a mean, all
patches are queries. In SigLIP, the query is the one of the head that pools the image.

Cost: one pass of the image tower, and for each token a backward pass of what follows the last attention.
Needs: a vision transformer.

Differs from the authors' code: it takes q_i and k_p after the output projection, and runs the last block with a single
head. Here the tower is unchanged.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from patchword.maps.attention import Attention, attentions, count_attentions
from patchword.maps.pairs import Pairs
from patchword.objective import Objective
from patchword.ops import cosine, min_max


def grad_eclip(objective: Objective, pairs: Pairs) -> Float[Tensor, "T L P"]:
    """The map (c) of each wanted token. Its values are 0 or more."""
    last = count_attentions(pairs.encoder) - 1
    kept: list[tuple[Attention, Tensor]] = []

    def read(number: int, attention: Attention) -> Tensor:
        output = attention.output()
        if number == last:
            kept.append((attention, output.requires_grad_()))
        return output

    with attentions(read):
        images = pairs.encoder.encode_images(pairs.pixels)
    ((attention, output),) = kept
    maps = pairs.empty()
    patches = maps.shape[-1]  # they are the last tokens of the tower
    key, values = _joined(attention.key)[:, -patches:], _joined(attention.value)[:, -patches:]
    place_weights = min_max(cosine(_joined(attention.query), key))
    for image, text, place, (gradient,) in pairs.gradients(objective, images, [output]):
        channels = torch.einsum("nic,nip->npc", _joined(gradient), place_weights[image])
        maps[text, place] = (channels * values[image]).sum(-1).relu()
    return maps


def _joined(heads: Float[Tensor, "I H N C"]) -> Float[Tensor, "I N K"]:
    return heads.transpose(1, 2).flatten(2)
