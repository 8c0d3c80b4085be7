"""The interfaces of image towers, text towers and encoders."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from patchword.data.function_words import FUNCTION_WORDS
from patchword.data.pixels import Preprocessing
from patchword.features import Images, Texts, map_tensors
from patchword.provenance.spec import Configurable

Selection = Literal["all", "words", "content"]


@dataclass
class Tokens:
    """T tokenized captions.

    Attributes:
        captions: The captions as strings.
        ids: Padded token ids.
        mask: True for real tokens, including special tokens; False for padding.
        special: True for special tokens and for padding.
        spans: The character span [start, end) of each token in its caption; (0, 0) for special tokens.
        truncated: True for captions that were longer than the tokenizer allows.
        unknown: True for tokens that represent words, or parts of words, that the tokenizer does not know.
    """

    captions: list[str]
    ids: Int[Tensor, "T L"]
    mask: Bool[Tensor, "T L"]
    special: Bool[Tensor, "T L"]
    spans: Int[Tensor, "T L 2"]
    truncated: Bool[Tensor, " T"]
    unknown: Bool[Tensor, "T L"]

    def to(self, device: Any) -> Tokens:
        """Returns the same tokens with all tensors on `device`."""
        return map_tensors(self, lambda x: x.to(device))

    def cut(self, length: int) -> Tokens:
        """Returns the first `length` positions of the tokens."""
        return replace(
            self,
            ids=self.ids[:, :length],
            mask=self.mask[:, :length],
            special=self.special[:, :length],
            spans=self.spans[:, :length],
            unknown=self.unknown[:, :length],
        )

    def select(self, selection: Selection) -> Bool[Tensor, "T L"]:
        """The mask of `all` real tokens, of `words` (without special tokens), or of `content` words.

        Content words are the words that are not in `FUNCTION_WORDS`. A token is selected if its word is.
        """
        if selection == "all":
            return self.mask
        words = self.mask & ~self.special
        if selection == "words":
            return words
        functional = [
            (row, *word.span())
            for row, caption in enumerate(self.captions)
            for word in re.finditer(r"\w+", caption)
            if word.group().lower() in FUNCTION_WORDS
        ]
        rows, start, end = torch.tensor(functional, dtype=torch.long).view(-1, 3, 1).unbind(1)
        first, last = self.spans.cpu()[rows[:, 0]].unbind(-1)
        within = torch.zeros(words.shape, dtype=torch.long)
        within.index_add_(0, rows[:, 0], ((first < end) & (last > start)).long())
        return words & (within == 0).to(words.device)

    def within(self, row: Int[Tensor, " N"], span: Int[Tensor, "N 2"]) -> Bool[Tensor, "N L"]:
        """The real tokens that overlap each of N character spans [start, end) of captions[row]."""
        start, end = self.spans[row].unbind(-1)
        inside = (start < span[:, 1:]) & (end > span[:, :1])
        return inside & self.mask[row] & ~self.special[row]

    def phrases(self, row: Int[Tensor, " N"], span: Int[Tensor, "N 2"]) -> Int[Tensor, "T V L"]:
        """For each token and level, the index of the last phrase of its caption that it overlaps, or -1.

        Phrases are the character spans [start, end) of captions[row]. They are on the first level, except for those
        that contain others: a phrase is one level above the highest phrase inside it.
        """
        level = _levels(row, span)
        number = (row[:, None] == row).tril(-1).sum(-1, keepdim=True)
        found = torch.where(self.within(row, span), number, -1)
        levels = max([0, *level.tolist()]) + 1
        none = torch.full((len(self.mask) * levels, self.mask.shape[1]), -1, device=row.device)
        place = (row * levels + level)[:, None].expand(found.shape)
        return none.scatter_reduce(0, place, found, "amax").unflatten(0, (-1, levels))


def _levels(row: Int[Tensor, " N"], span: Int[Tensor, "N 2"]) -> Int[Tensor, " N"]:
    """The level of each phrase: 0 if it contains no other phrase of its caption, or one more than those inside it."""
    start, end = span.unbind(-1)
    contains = (row[:, None] == row) & (start[:, None] <= start) & (end[:, None] >= end)
    contains &= (end - start)[:, None] > end - start
    level = torch.zeros_like(row)
    while (contains & (level[:, None] <= level)).any():
        level = torch.where(contains, level + 1, 0).amax(-1)
    return level


class ImageTower(Configurable, nn.Module, ABC):
    """Base class of image towers: they map pixels to patch features, before any adapter.

    Attributes:
        width: The number of channels C of the features.
        image_size: The height and width of its input in pixels.
        grid: The number of rows and columns of patches.
        has_class_token: Whether `forward` returns a class token in addition to the patches.
        preprocessing: How images were resized and cropped when the backbone was trained.
        commits: The hub commit of its weights by repository; empty if nothing came from the hub.
    """

    preprocessing: Preprocessing = Preprocessing()
    commits: Mapping[str, str] = MappingProxyType({})
    width: int
    image_size: tuple[int, int]
    grid: tuple[int, int]
    has_class_token: bool

    @abstractmethod
    def forward(self, pixels: UInt8[Tensor, "I _ H W"]) -> tuple[Float[Tensor, "I P C"], Float[Tensor, "I C"] | None]:
        """Returns the patch features in row-major order, and the class token if the backbone has one."""


class TextTower(Configurable, nn.Module, ABC):
    """Base class of text towers: they map captions to token features, before any adapter.

    Attributes:
        width: The number of channels C of the features.
        commits: The hub commit of its weights and its tokenizer by repository; empty if nothing came from the hub.
    """

    commits: Mapping[str, str] = MappingProxyType({})
    width: int

    @abstractmethod
    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Returns token ids with masks and character spans, on the CPU."""

    @abstractmethod
    def forward(self, tokens: Tokens) -> Float[Tensor, "T L C"]:
        """Returns the features of all tokens."""


class Encoder(Configurable, nn.Module, ABC):
    """Base class of encoders: they embed images and texts in one space.

    Attributes:
        embed_dim: The width D of the shared space.
        image_size: The height and width of input images in pixels.
        grid: The number of rows and columns of patches.
        preprocessing: How images were resized and cropped when the image backbone was trained.
        commits: The hub commit of its own weights by repository, without those of its towers.
    """

    preprocessing: Preprocessing = Preprocessing()
    commits: Mapping[str, str] = MappingProxyType({})
    embed_dim: int
    image_size: tuple[int, int]
    grid: tuple[int, int]

    def towers(self) -> list[nn.Module]:
        """The modules to compile and to checkpoint. By default, these are all child modules."""
        return list(self.children())

    @abstractmethod
    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Returns token ids with masks and character spans, on the CPU."""

    @abstractmethod
    def encode_images(self, pixels: UInt8[Tensor, "I _ H W"]) -> Images:
        """Returns the embeddings of raw pixels. The encoder normalizes pixels in the way its backbone was trained."""

    @abstractmethod
    def encode_texts(self, tokens: Tokens, selection: Selection = "all") -> Texts:
        """Returns the embeddings of captions. Their mask contains the tokens of `selection`."""
