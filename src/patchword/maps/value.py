"""The value path: MaskCLIP's map.

Extract Free Dense Labels from CLIP. Chong Zhou, Chen Change Loy, Bo Dai. ECCV 2022, arXiv 2112.01071.

In the last attention of the image tower, every patch attends only to itself:

    (a)  z_p = Proj(v_p)                  instead of Proj(sum_q a_pq v_q), v the values of the last attention
    (b)  x_p = the rest of the tower for z_p: residual, feed-forward layer, norm and projection, as for any patch
    (c)  map(l, p) = cos(t_l, x_p)        t_l the token's embedding, as in `cosine`

SigLIP's last attention is the head that pools the image. Its value path is the head with patch p as its only input.

Cost: one pass of the image tower. Needs: a vision transformer; SigLIP's patches come without any training of (b).

Differs from the paper: it embeds names of classes with 85 templates, and refines labels by two further steps.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from patchword.encoders.pair import PretrainedPair
from patchword.maps.attention import Attention, attentions, count_attentions
from patchword.maps.pairs import Pairs
from patchword.objective import Objective
from patchword.ops import cosine


def value(objective: Objective, pairs: Pairs) -> Float[Tensor, "T L P"]:
    """The cosine of each token with each patch on the value path."""
    with torch.no_grad():
        return cosine(pairs.texts.tokens, _patches(pairs)[pairs.image])


def _patches(pairs: Pairs) -> Float[Tensor, "I P D"]:
    """The patches on the value path (a, b)."""
    encoder = pairs.encoder
    if isinstance(encoder, PretrainedPair) and not encoder.is_clip:
        patches = encoder.encode_images(pairs.pixels).patches
        return encoder.model.vision_model.head(patches.flatten(0, 1)[:, None]).view_as(patches)
    last = count_attentions(encoder) - 1

    def read(number: int, attention: Attention) -> Tensor:
        return attention.value if number == last else attention.output()

    with attentions(read):
        return encoder.encode_images(pairs.pixels).patches
