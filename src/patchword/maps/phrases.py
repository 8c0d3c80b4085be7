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

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Bool, Float, Int, UInt8
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
        return center_map(asked.images.grid, asked.images.shapes)
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
        of_tokens = token_maps(cast(Any, source), objective, asked.images[block], texts[block])
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


def center_map(grid: tuple[int, int], shapes: Int[Tensor, "*n 2"] | None = None) -> Float[Tensor, "*n P"]:
    """Return minus the distance of each patch's center from the image's center, in patches.

    This baseline measures the bias of photographers, who place objects at the center.

    Args:
        grid: Rows and columns of the map.
        shapes: Rows and columns of the images at the top left of the grid; None for one image that fills the grid.
    """
    shapes = torch.tensor(grid) if shapes is None else shapes
    sides = zip(grid, shapes[..., None].unbind(-2), strict=True)
    y, x = (torch.arange(n, device=shapes.device) - (own - 1) / 2 for n, own in sides)
    return -(y[..., :, None].square() + x[..., None, :].square()).sqrt().flatten(-2)


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


@dataclass(frozen=True)
class Area:
    """The maps of images of one shape, and the part of these maps that is no padding.

    Attributes:
        index: The positions of the maps among all maps.
        grid: Rows and columns of the images' own patches, at the top left of the map.
        whole: Rows and columns of the complete map.
    """

    index: Int[Tensor, " n"] | slice
    grid: tuple[int, int]
    whole: tuple[int, int]

    def crop(self, maps: Float[Tensor, "N P"]) -> Float[Tensor, "n p"]:
        """Return the maps of these images without padding."""
        (rows, columns), own = self.grid, maps[self.index]
        return own if self.grid == self.whole else own.unflatten(1, self.whole)[:, :rows, :columns].flatten(1)

    def pixels(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width in pixels of these images, which are padded to `size`."""
        return size[0] * self.grid[0] // self.whole[0], size[1] * self.grid[1] // self.whole[1]

    def boxes(
        self, boxes: Float[Tensor, "K 4"], owner: Int[Tensor, " K"], number: int
    ) -> tuple[Float[Tensor, "k 4"], Int[Tensor, " k"]]:
        """Return the boxes of these maps, and the position of each box's map after `crop`.

        `owner` is the position of each box's map among all `number` maps.
        """
        every = torch.arange(number, device=owner.device)
        place = torch.full_like(every, -1)
        place[self.index] = every[: len(every[self.index])]
        return boxes[place[owner] >= 0], place[owner][place[owner] >= 0]

    def cut(self, pixels: UInt8[Tensor, "_ H W"]) -> UInt8[Tensor, "3 h w"]:
        """Return the RGB pixels of an image of this shape without padding."""
        height, width = self.pixels((pixels.shape[1], pixels.shape[2]))
        return pixels[:3, :height, :width]


EVERYWHERE = Area(slice(None), (1, 1), (1, 1))  # all maps, for images without padding


def areas(shapes: Int[Tensor, "N 2"], grid: tuple[int, int]) -> Iterator[Area]:
    """Group maps on `grid` by the shapes of their images, because metrics measure only an image's own area."""
    if (shapes == torch.tensor(grid, device=shapes.device)).all():
        yield Area(slice(None), grid, grid)
        return
    kinds, kind = shapes.unique(dim=0, return_inverse=True)
    for number, (rows, columns) in enumerate(kinds.tolist()):
        yield Area((kind == number).nonzero()[:, 0], (rows, columns), grid)


def area_of(shape: Int[Tensor, " 2"], grid: tuple[int, int]) -> Area:
    """Return the area of one image, of which there are any number of maps on `grid`."""
    rows, columns = shape.tolist()
    return Area(slice(None), (rows, columns), grid)


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
