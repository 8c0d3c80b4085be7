"""Interactions of patches and words in the score of the pair, by removing both: FIxLIP's cross-modal estimate.

`shapley.crossmodal` has the paper, the game's sets and the fit. The value of a set of patches and a set of words is the
objective's score of the image without the other patches and the caption without the other words.

    (a)  map(l, p) = phi_pw for the word w of token l

Words are runs of letters and digits. Punctuation and special tokens stay in every caption and have maps of zeros.

Cost: m passes of the image tower for each image, and n passes of the text tower for each text; 2 (P + 1) and at most 64
by default, or twice the number of words if that is more. Needs: nothing; it works for every encoder and objective.

Differs from the paper: a removed patch has the image's mean color, and not that of the data set; a removed word is cut
out of the caption, and not masked in attention, since not every text tower can mask; interactions within a side are not
in the fit, which does not change the limit for sets that contain each player with probability 1/2.
"""

from __future__ import annotations

import re

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchword.features import Images, Texts
from patchword.maps.pairs import Pairs
from patchword.maps.removal import Fill, without_patches
from patchword.objective import Objective
from patchword.shapley.crossmodal import crossmodal_interactions

_IMAGES = 64  # images of a pass


def banzhaf(
    objective: Objective,
    pairs: Pairs,
    images: int | None = None,
    texts: int | None = None,
    fill: Fill = "mean",
    seed: int = 0,
) -> Float[Tensor, "T L P"]:
    """The map (a) of each token of a word.

    Args:
        objective: The objective whose score is explained.
        pairs: The images and texts.
        images: The number m of sets of patches; None for 2 (P + 1).
        texts: The number n of sets of words; None for all sets if there are at most 64 of them, else the larger one of
            64 and twice the number of words.
        fill: What removed patches look like; see `removal`.
        seed: The seed of the sets, which are the same for all images, and for all texts of as many words.
    """
    maps = pairs.empty()
    patches = maps.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    seen = torch.rand(images or 2 * (patches + 1), patches, generator=generator) < 0.5
    seen = seen.to(maps.device)
    for image in pairs.image[pairs.wanted.any(-1)].unique():
        without = _images(pairs, pairs.pixels[image], seen, fill)
        for text in (pairs.image == image).nonzero()[:, 0].tolist():
            words = [found.span() for found in re.finditer(r"\w+", pairs.tokens.captions[text])]
            if not words or not pairs.wanted[text].any():
                continue
            read = word_sets(len(words), texts, seed).to(maps.device)
            values = objective.score(without, _texts(pairs, text, words, read))
            found = crossmodal_interactions(values, seen, read)
            span = torch.tensor(words, device=maps.device)
            of_token = pairs.tokens.within(torch.full_like(span[:, 0], text), span)  # [W, L]
            share = of_token / of_token.sum(0).clamp_min(1)
            maps[text] = share.mT.to(found) @ found.mT
    return maps


def word_sets(words: int, number: int | None, seed: int) -> Bool[Tensor, "N W"]:
    """The sets of words; see `banzhaf`."""
    if number is None and 2**words <= 64:
        return (torch.arange(2**words)[:, None] >> torch.arange(words)) % 2 == 1
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(number or max(64, 2 * (words + 1)), words, generator=generator) < 0.5


def _images(pairs: Pairs, pixels: Tensor, seen: Bool[Tensor, "M P"], fill: Fill) -> Images:
    """The embeddings of one image without the patches of each set."""
    parts = []
    with torch.no_grad():
        for some in seen.split(_IMAGES):
            every = pixels.expand(len(some), -1, -1, -1)
            parts.append(pairs.encoder.encode_images(without_patches(every, some, pairs.encoder.grid, fill)))
    return Images(torch.cat([x.pooled for x in parts]), torch.cat([x.patches for x in parts]), parts[0].grid)


def _texts(pairs: Pairs, text: int, words: list[tuple[int, int]], read: Bool[Tensor, "N W"]) -> Texts:
    """The embeddings of one caption without the words of each set."""
    caption = pairs.tokens.captions[text]
    captions = []
    for kept in read.tolist():
        removed = {
            place for (start, end), stays in zip(words, kept, strict=True) if not stays for place in range(start, end)
        }
        captions.append(" ".join("".join(c for place, c in enumerate(caption) if place not in removed).split()))
    tokens = pairs.encoder.tokenize(captions).to(pairs.pixels.device)
    with torch.no_grad():
        return pairs.encoder.encode_texts(tokens, pairs.selection)
