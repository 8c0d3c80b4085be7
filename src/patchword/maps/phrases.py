"""Phrase maps: the map of a phrase over the image patches, from an objective or a baseline.

The map of a phrase is the mean of the maps of its query tokens. Sources of the tokens' maps:

    align           the objective's own `align`
    cosine          token . patch, both normalized
    dot             token . patch, not normalized
    value, ...      the sources in `maps.sources`, which run the towers again
    center_prior    minus the distance of the patch from the center of the image; independent of image and text
    chance          uniform noise, the same for a phrase in every run, batch and rank

`Policy` selects the query tokens: `content` uses the content words of the phrase (or its full span if it has none),
`span` uses the full span, and `alone` uses the content words of the phrase when it is encoded as a separate caption.
So `span` differs from `content` only in the function words, and `alone` only in the context. Report the policy with
every number: an article in the query can change the ranking of objectives.
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
from patchword.maps.pairs import Pairs
from patchword.maps.sources import PLAIN_SOURCES, TOWER_SOURCES, PlainSource, TokenSource, tower_maps
from patchword.objective import Objective
from patchword.ops import cosine, masked_mean

Policy = Literal["content", "span", "alone"]
Baseline = Literal["center_prior", "chance"]
Source = Literal[TokenSource, Baseline]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
SOURCES: tuple[Source, ...] = (*PLAIN_SOURCES, *BASELINES)  # measured by default

_BLOCK = 256  # phrases at a time, because each phrase has its own copy of the image's patches in memory


@dataclass(frozen=True)
class Queries:
    """N phrases, each with its own image and text.

    Attributes:
        images: The image of each phrase, repeated if an image has several phrases.
        texts: The text that contains each phrase: its caption, or the phrase alone.
        query: True for the query tokens of each phrase. Shape [N, L].
        keys: The key of each phrase, see `phrase_keys`. Shape [N, 2].
        row: The text of each phrase among those of `pairs`. Shape [N].
        pairs: The texts, each once, with the pixels of their images; needed for sources that run the towers.
    """

    images: Images
    texts: Texts
    query: Bool[Tensor, "N L"]
    keys: Int[Tensor, "N 2"]
    row: Int[Tensor, " N"] | None = None
    pairs: Pairs | None = None

    @property
    def kept(self) -> Bool[Tensor, " N"]:
        """True for phrases with a valid map, False for phrases that the tokenizer truncated. Shape [N]."""
        return self.query.any(-1)


def queries(
    policy: Policy,
    batch: Batch,
    images: Images,
    texts: Texts,
    tokens: Tokens,
    encoder: Encoder,
    selection: Selection = "all",
) -> Queries:
    """Return the N phrases of `batch`, of which there may be none, with the query tokens that `policy` selects.

    `images`, `texts` and `tokens` are the embedded images and captions and the tokenized captions of `batch`. The
    policy `alone` encodes the phrases with `encoder` and the token selection `selection`.
    """
    rows, spans = batch.phrase_caption, batch.phrase_span
    own, image = images[batch.caption_image[rows]], batch.caption_image
    if policy == "alone" and len(rows):
        device = texts.pooled.device
        tokens = encoder.tokenize(phrase_texts(batch)).to(device)
        texts = encoder.encode_texts(tokens, selection)
        spans = torch.stack([torch.zeros_like(spans[:, 0]), spans[:, 1] - spans[:, 0]], -1)
        image = image[rows]
        rows = torch.arange(len(rows), device=device)
    query = query_tokens(tokens, rows, spans, content=policy != "span")
    wanted = torch.zeros_like(tokens.mask, dtype=torch.long).index_add(0, rows, query.long()) > 0
    pairs = Pairs(encoder, batch.images, image, texts, tokens, wanted, selection)
    return Queries(own, texts[rows], query, phrase_keys(batch), rows, pairs)


def query_tokens(
    tokens: Tokens, row: Int[Tensor, " N"], span: Int[Tensor, "N 2"], content: bool
) -> Bool[Tensor, "N L"]:
    """Return True for the tokens of the phrases at the character spans [start, end) of captions[row].

    With `content`, function words in phrases that have content words are ignored. A truncated phrase has no tokens at
    all, because what remains of "the blue book" could be only "the".
    """
    last = (tokens.spans[..., 1] * tokens.mask).amax(-1)[row]
    cut = tokens.truncated[row] & (last < span[:, 1])
    inside = tokens.within(row, span) & ~cut[:, None]
    if not content:
        return inside
    words = inside & tokens.select("content")[row]
    return torch.where(words.any(-1, keepdim=True), words, inside)


def phrase_texts(batch: Batch) -> list[str]:
    """Return the N phrases of `batch` as strings."""
    spans = zip(batch.phrase_caption.tolist(), batch.phrase_span.tolist(), strict=True)
    return [batch.captions[caption][start:end] for caption, (start, end) in spans]


def phrase_keys(batch: Batch) -> Int[Tensor, "N 2"]:
    """Return the key of each phrase in its data set: the sample's id and the index of the phrase in the sample."""
    image = batch.caption_image[batch.phrase_caption]
    same = image[:, None] == image
    return torch.stack([batch.ids[image], same.tril(-1).sum(-1)], -1)


def phrase_maps(source: Source, objective: Objective, asked: Queries) -> Float[Tensor, "N P"]:
    """Return the map of each phrase; higher values mean a closer match.

    The maps of phrases that are not `kept` have no meaning.
    """
    patches = asked.images.patches
    if source == "center_prior":
        return center_map(asked.images.grid).to(patches.device).expand(len(patches), -1)
    if source == "chance":
        return chance_maps(asked.keys, patches.shape[1]).to(patches.device)
    if source in TOWER_SOURCES:
        assert asked.pairs is not None
        return masked_mean(tower_maps(source, objective, asked.pairs)[asked.row], asked.query)
    # Query tokens have a map even if the token selection of the training excludes them from the mask.
    texts = Texts(asked.texts.pooled, asked.texts.tokens, asked.texts.mask | asked.query)
    maps = [torch.zeros(0, patches.shape[1], device=patches.device)]
    for start in range(0, len(texts), _BLOCK):
        block = slice(start, start + _BLOCK)
        of_tokens = token_maps(source, objective, asked.images[block], texts[block])
        maps.append(masked_mean(of_tokens, asked.query[block]))
    return torch.cat(maps)


def token_maps(source: PlainSource, objective: Objective, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
    """Return the map of each token of texts[b] over the patches of images[b], in full precision.

    The values are arbitrary for tokens with `texts.mask` False.
    """
    if source == "align":
        return objective.align(images, texts)
    tokens, patches = texts.tokens.float(), images.patches.float()
    with torch.autocast(patches.device.type, enabled=False):
        return cosine(tokens, patches) if source == "cosine" else tokens @ patches.mT


def center_map(grid: tuple[int, int]) -> Float[Tensor, " P"]:
    """Return minus the distance of each patch's center from the image's center, in patches.

    This baseline measures the bias of photographers, who place objects at the center.
    """
    y, x = (torch.arange(n) - (n - 1) / 2 for n in grid)
    return -(y[:, None].square() + x.square()).sqrt().flatten()


def chance_maps(keys: Int[Tensor, "N 2"], patches: int) -> Float[Tensor, "N P"]:
    """Return uniform noise in [0, 1) that depends only on the phrase's key and the patch.

    The noise is a hash of these three integers (the finalizer of SplitMix64, Steele et al., OOPSLA 2014), so that it
    does not depend on batch order, ranks or the device.
    """
    state = torch.zeros(len(keys), 1, dtype=torch.long, device=keys.device)
    for part in (keys[:, :1], keys[:, 1:], torch.arange(patches, device=keys.device)):
        state = _mix(state + part + 1)
    return ((state >> 40) & 0xFFFFFF).float() / 2**24


def _mix(x: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Apply SplitMix64 to signed 64-bit integers, whose products wrap around; the masks make `>>` a logical shift."""
    x = x * -0x61C8864680B583EB
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & (2**33 - 1))


def upsampling(patches: int, pixels: int) -> Float[Tensor, "pixels patches"]:
    """Return the matrix of linear interpolation along one axis, with `align_corners=False`."""
    eye = torch.eye(patches, dtype=torch.float64)[None]
    return interpolate(eye, size=pixels, mode="linear", align_corners=False)[0].T


def upsample(maps: Float[Tensor, "N P"], grid: tuple[int, int], size: tuple[int, int]) -> Float[Tensor, "N H W"]:
    """Resize maps to `size` pixels with bilinear interpolation (`align_corners=False`), for drawing and for metrics.

    The result is computed in double precision and rounded to single precision, so that equal patches give equal pixels.
    """
    rows, columns = (upsampling(n, s).to(maps.device) for n, s in zip(grid, size, strict=True))
    return (rows @ maps.double().unflatten(-1, grid) @ columns.T).float()
