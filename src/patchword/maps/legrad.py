"""LeGrad: gradients of the attention of each block, for the image embedding that the block has formed.

LeGrad: An Explainability Method for Vision Transformers via Feature Formation Sensitivity. Walid Bousselham, Angie
Boggust, Sofian Chaybouti, Hendrik Strobelt, Hilde Kuehne. ICCV 2025, arXiv 2404.03214.

A_b [H, N, N] are the weights of the attention in block b of the image tower, with H heads over the N tokens of an
image. s_bl is the score of token l (`pairs.word_scores`) with the image as the tower embeds it without the blocks
after b.

    (a)  G_b       = relu(d s_bl / d A_b)
    (b)  map(l, p) = mean_b mean_h mean_i G_bhip            over all blocks, heads h and rows i

In SigLIP, the head that pools the image follows block b, and A_b are the weights of this head.

Cost: with L blocks, L passes of the image tower, of 1 to L blocks, and L backward passes of one block for each token.
Needs: a vision transformer with one attention in each block.

Differs from the authors' code: it uses the last two blocks only (`blocks=2` here), pools the tokens of a block by their
mean also in CLIP, which has a class token, sets places of SigLIP's maps to zero that an empty text has too, and
rescales maps to [0, 1]. Here the tower pools as it does for the objective's score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from jaxtyping import Float
from torch import Tensor, nn

from patchword.encoders import blocks as tower
from patchword.encoders.base import Encoder
from patchword.maps.attention import Attention, attentions, count_attentions, run_once
from patchword.maps.pairs import Pairs
from patchword.objective import Objective


def legrad(objective: Objective, pairs: Pairs, blocks: int | None = None) -> Float[Tensor, "T L P"]:
    """The map (b) of each wanted token. Its values are 0 or more.

    Args:
        objective: The objective whose score is explained.
        pairs: The images and texts.
        blocks: The number of last blocks in (b); None for all.
    """
    every = attended_blocks(pairs.encoder)
    head = count_attentions(pairs.encoder) - len(every)
    last = range(len(every))[-(blocks or len(every)) :]
    maps = pairs.empty()
    for block in last:
        kept: list[Tensor] = []

        def read(number: int, attention: Attention, wanted: int = block + head, kept: list[Tensor] = kept) -> Tensor:
            if number == wanted:
                kept.append(attention.weights.requires_grad_())
            return attention.output()

        with without(every[block + 1 :]), attentions(read):
            images = pairs.encoder.encode_images(pairs.pixels)
        for _, text, place, (gradient,) in pairs.gradients(objective, images, kept):
            maps[text, place] += gradient.relu().mean((1, 2))[:, -maps.shape[-1] :] / len(last)
    return maps


def attended_blocks(encoder: Encoder) -> list[nn.Module]:
    """The blocks of the image tower in their order, each of which has one attention.

    Raises:
        ValueError: If it has no attention over all patches, or if other parts of it have attention, except for a head.
    """
    count = count_attentions(encoder)
    found: list[nn.Module] = []
    with ExitStack() as hooks:
        for block in tower.blocks(encoder):
            hooks.callback(block.register_forward_hook(lambda part, *_: found.append(part)).remove)
        run_once(encoder)
    with without(found):
        head = len(run_once(encoder))
    if head > 1 or len(found) + head != count:
        raise ValueError(f"the {count} attentions of the image tower are not in as many repeated blocks")
    return found


@contextmanager
def without(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """A context in which these blocks return their input."""
    with ExitStack() as changed:
        for block in blocks:
            changed.enter_context(patch.object(block, "forward", _same))
        yield


def _same(*arguments: Any, **named: Any) -> Any:
    return arguments[0] if arguments else named["hidden_states"]
