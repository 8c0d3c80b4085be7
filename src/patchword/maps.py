"""Phrase maps: where in the image an objective, or a baseline, sees a phrase.

A phrase's map is the mean of its query tokens' maps. `SOURCES` names where the tokens' maps come from:

    align     the objective's own `align`
    cosine    token . patch, both normalised
    dot       token . patch, un-normalised
    centre    minus the distance of the patch to the image's centre; knows neither image nor text
    chance    uniform noise, the same for a phrase in every run, batch and rank

`Policy` names the query tokens: the `content` words of the phrase (its whole span if it has none), its whole
`span`, or the content words of the phrase encoded `alone`, as a caption of its own. So `span` differs from
`content` by the function words only, and `alone` by the context only. Report the policy with every number: an
article left in the query can turn a ranking of objectives upside down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from patchword.data.batch import Batch
from patchword.encoders.base import Encoder, Selection, Tokens
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine, masked_mean

Policy = Literal["content", "span", "alone"]
TokenSource = Literal["align", "cosine", "dot"]
Source = Literal["align", "cosine", "dot", "centre", "chance"]
SOURCES: tuple[Source, ...] = get_args(Source)
TOKEN_SOURCES: tuple[TokenSource, ...] = get_args(TokenSource)

_BLOCK = 256  # phrases at a time: a phrase's copy of its image's patches is what takes memory


@dataclass(frozen=True)
class Queries:
    """N phrases, each with its own image and text.

    Attributes:
        images: The image of each phrase, repeated where an image has several.
        texts: The text that each phrase is read in: its caption, or the phrase alone.
        tokens: True on the query tokens of each phrase.
        keys: See `phrase_keys`.
    """

    images: Images
    texts: Texts
    tokens: Bool[Tensor, "N L"]
    keys: Int[Tensor, "N 2"]

    @property
    def kept(self) -> Bool[Tensor, " N"]:
        """False for phrases that the tokenizer truncated, in whole or in part. Their maps mean nothing."""
        return self.tokens.any(-1)


def queries(
    policy: Policy,
    batch: Batch,
    images: Images,
    texts: Texts,
    tokens: Tokens,
    encoder: Encoder,
    selection: Selection = "all",
) -> Queries:
    """The phrases of `batch` as `policy` asks for them.

    Args:
        policy: Which tokens stand for a phrase.
        batch: The N phrases; their number may be 0.
        images: The embedded `batch.images`.
        texts: The embedded `batch.captions`.
        tokens: The tokenized `batch.captions`.
        encoder: Encodes the phrases again; called for `alone` only.
        selection: The token selection that phrases are encoded with; used for `alone` only.
    """
    rows, spans = batch.phrase_caption, batch.phrase_span
    own = images[batch.caption_image[rows]]
    if policy == "alone" and len(rows):
        device = texts.pooled.device
        tokens = encoder.tokenize(phrase_texts(batch)).to(device)
        texts = encoder.encode_texts(tokens, selection)
        spans = torch.stack([torch.zeros_like(spans[:, 0]), spans[:, 1] - spans[:, 0]], -1)
        rows = torch.arange(len(rows), device=device)
    query = query_tokens(tokens, rows, spans, content=policy != "span")
    return Queries(own, texts[rows], query, phrase_keys(batch))


def query_tokens(
    tokens: Tokens, row: Int[Tensor, " N"], span: Int[Tensor, "N 2"], content: bool
) -> Bool[Tensor, "N L"]:
    """The tokens of the phrases at character spans [start, end) of captions[row]; none for a phrase that was cut.

    (What truncation leaves of "the blue book" may be "the".)

    Args:
        tokens: Tokenized captions.
        row: The caption of each phrase.
        span: First and one past the last character of each phrase.
        content: Leave out function words, unless that leaves nothing.
    """
    last = (tokens.spans[..., 1] * tokens.mask).amax(-1)[row]
    cut = tokens.truncated[row] & (last < span[:, 1])
    inside = tokens.within(row, span) & ~cut[:, None]
    if not content:
        return inside
    words = inside & tokens.select("content")[row]
    return torch.where(words.any(-1, keepdim=True), words, inside)


def phrase_texts(batch: Batch) -> list[str]:
    """The N phrases of `batch` as strings."""
    spans = zip(batch.phrase_caption.tolist(), batch.phrase_span.tolist(), strict=True)
    return [batch.captions[caption][start:end] for caption, (start, end) in spans]


def phrase_keys(batch: Batch) -> Int[Tensor, "N 2"]:
    """What identifies each phrase in its data set: the sample's id and the phrase's position in the sample."""
    image = batch.caption_image[batch.phrase_caption]
    same = image[:, None] == image
    return torch.stack([batch.ids[image], same.tril(-1).sum(-1)], -1)


def phrase_maps(source: Source, objective: Objective, asked: Queries) -> Float[Tensor, "N P"]:
    """The map of each phrase; higher means more of the phrase. Zero for phrases that are not `kept`, or noise.

    Args:
        source: Where the tokens' maps come from, or which baseline.
        objective: Gives the maps of `align`.
        asked: The phrases, from `queries`.
    """
    patches = asked.images.patches
    if source == "centre":
        return centre_map(asked.images.grid).to(patches.device).expand(len(patches), -1)
    if source == "chance":
        return chance_maps(asked.keys, patches.shape[1]).to(patches.device)
    # A query token that the training's selection left out of the mask has a map all the same.
    texts = Texts(asked.texts.pooled, asked.texts.tokens, asked.texts.mask | asked.tokens)
    maps = [torch.zeros(0, patches.shape[1], device=patches.device)]
    for start in range(0, len(texts), _BLOCK):
        block = slice(start, start + _BLOCK)
        of_tokens = token_maps(source, objective, asked.images[block], texts[block])
        maps.append(masked_mean(of_tokens, asked.tokens[block]))
    return torch.cat(maps)


def token_maps(source: TokenSource, objective: Objective, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
    """The map of each token of texts[b] over the patches of images[b]; arbitrary where `texts.mask` is False.

    In full precision, as an objective's answers are.
    """
    if source == "align":
        return objective.align(images, texts)
    tokens, patches = texts.tokens.float(), images.patches.float()
    with torch.autocast(patches.device.type, enabled=False):
        return cosine(tokens, patches) if source == "cosine" else tokens @ patches.mT


def centre_map(grid: tuple[int, int]) -> Float[Tensor, " P"]:
    """Minus the distance of each patch's centre to the image's centre, in patches: the photographer's bias."""
    y, x = (torch.arange(n) - (n - 1) / 2 for n in grid)
    return -(y[:, None].square() + x.square()).sqrt().flatten()


def chance_maps(keys: Int[Tensor, "N 2"], patches: int) -> Float[Tensor, "N P"]:
    """Uniform noise in [0, 1) that depends on a phrase's key and the patch alone.

    A hash of the three integers (the finaliser of SplitMix64, Steele et al., OOPSLA 2014), so that neither batch
    order nor ranks nor the device matter.
    """
    state = torch.zeros(len(keys), 1, dtype=torch.long, device=keys.device)
    for part in (keys[:, :1], keys[:, 1:], torch.arange(patches, device=keys.device)):
        state = _mix(state + part + 1)
    return ((state >> 40) & 0xFFFFFF).float() / 2**24


def _mix(x: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """SplitMix64 on signed 64-bit integers, whose products wrap around; `>>` is made logical by the masks."""
    x = x * -0x61C8864680B583EB
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & (2**33 - 1))


def upsampling(patches: int, pixels: int) -> Float[Tensor, "pixels patches"]:
    """The matrix of linear interpolation along one axis, pixel centres to pixel centres (`align_corners=False`)."""
    eye = torch.eye(patches, dtype=torch.float64)[None]
    return interpolate(eye, size=pixels, mode="linear", align_corners=False)[0].T


def upsample(maps: Float[Tensor, "N P"], grid: tuple[int, int], size: tuple[int, int]) -> Float[Tensor, "N H W"]:
    """Maps at `size` pixels, bilinearly (`align_corners=False`): what is drawn and what is measured.

    Computed in double precision and rounded to single, so that patches that are equal make pixels that are equal.
    """
    rows, columns = (upsampling(n, s).to(maps.device) for n, s in zip(grid, size, strict=True))
    return (rows @ maps.double().unflatten(-1, grid) @ columns.T).float()
