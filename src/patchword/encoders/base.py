"""What patchword asks of an image tower, of a text tower, and of the pair."""

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

from patchword.data.pixels import Preprocessing
from patchword.features import Images, Texts, map_tensors
from patchword.spec import Specified

Selection = Literal["all", "words", "content"]

# Articles, prepositions, conjunctions, pronouns, auxiliaries: English words that name nothing one can point at.
FUNCTION_WORDS = frozenset(
    """
    a an the this that these those some any each every and or but nor so of in on at to from by with without for as
    into onto over under above below behind beside between near next left right is are was were be been being am do
    does did has have had having it its he him his she her they them their we us our you your i me my there here
    which who whom whose what where when while not no picture photo image showing
    """.split()  # noqa: SIM905 - readable
)


@dataclass
class Tokens:
    """T tokenized captions.

    Attributes:
        captions: The strings.
        ids: Token ids, padded.
        mask: True on real tokens, special ones included.
        special: True on special tokens and on padding.
        spans: First and one past the last character of each token in its caption; (0, 0) on special tokens.
        truncated: True for captions that were longer than the tokenizer allows.
        unknown: True on tokens that stand for words, or parts of words, that the tokenizer does not know.
    """

    captions: list[str]
    ids: Int[Tensor, "T L"]
    mask: Bool[Tensor, "T L"]
    special: Bool[Tensor, "T L"]
    spans: Int[Tensor, "T L 2"]
    truncated: Bool[Tensor, " T"]
    unknown: Bool[Tensor, "T L"]

    def to(self, device: Any) -> Tokens:
        """The same tokens with tensors on `device`."""
        return map_tensors(self, lambda x: x.to(device))

    def cut(self, length: int) -> Tokens:
        """The same tokens, without the positions from `length` on."""
        return replace(
            self,
            ids=self.ids[:, :length],
            mask=self.mask[:, :length],
            special=self.special[:, :length],
            spans=self.spans[:, :length],
            unknown=self.unknown[:, :length],
        )

    def select(self, selection: Selection) -> Bool[Tensor, "T L"]:
        """The mask of `all` real tokens, of `words` (no special tokens), or of `content` words.

        Content words are those not in `FUNCTION_WORDS`; a token counts by the word that it is a part of.
        """
        if selection == "all":
            return self.mask
        words = self.mask & ~self.special
        if selection == "words":
            return words
        functional = torch.zeros(words.shape, dtype=torch.bool)
        spans = self.spans.cpu()
        for row, caption in enumerate(self.captions):
            for word in re.finditer(r"\w+", caption):
                if word.group().lower() in FUNCTION_WORDS:
                    functional[row] |= (spans[row, :, 0] < word.end()) & (spans[row, :, 1] > word.start())
        return words & ~functional.to(words.device)

    def within(self, row: Int[Tensor, " N"], span: Int[Tensor, "N 2"]) -> Bool[Tensor, "N L"]:
        """For each of N character spans [start, end) of captions[row], the real tokens that overlap it."""
        start, end = self.spans[row].unbind(-1)
        inside = (start < span[:, 1:]) & (end > span[:, :1])
        return inside & self.mask[row] & ~self.special[row]

    def phrases(self, row: Int[Tensor, " N"], span: Int[Tensor, "N 2"]) -> Int[Tensor, "T L"]:
        """For each token, which of its caption's phrases at `span` it overlaps, from 0: the last one; -1 for none."""
        number = (row[:, None] == row).tril(-1).sum(-1, keepdim=True)
        found = torch.where(self.within(row, span), number, -1)
        none = torch.full(self.mask.shape, -1, device=row.device)
        return none.scatter_reduce(0, row[:, None].expand(found.shape), found, "amax")


class ImageTower(Specified, nn.Module, ABC):
    """Pixels to patch features, before any adapter.

    Attributes:
        width: Channels C of its features.
        image_size: Height and width in pixels that it takes.
        grid: Rows and columns of its patches at that size.
        has_class_token: Whether its backbone has a class token, which it returns next to the patches.
        preprocessing: How images were brought to its size when it was trained.
        commits: What its weights came from on the hub: commits by repository.
    """

    preprocessing: Preprocessing = Preprocessing()
    commits: Mapping[str, str] = MappingProxyType({})
    width: int
    image_size: tuple[int, int]
    grid: tuple[int, int]
    has_class_token: bool

    @abstractmethod
    def forward(self, pixels: UInt8[Tensor, "I 3 H W"]) -> tuple[Float[Tensor, "I P C"], Float[Tensor, "I C"] | None]:
        """Patch features, row by row, and the class token if the backbone has one."""


class TextTower(Specified, nn.Module, ABC):
    """Captions to token features, before any adapter.

    Attributes:
        width: Channels C of its features.
        commits: What its weights came from on the hub: commits by repository.
    """

    commits: Mapping[str, str] = MappingProxyType({})
    width: int

    @abstractmethod
    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Token ids with masks and character spans, on the CPU."""

    @abstractmethod
    def forward(self, tokens: Tokens) -> Float[Tensor, "T L C"]:
        """Token features."""


class Encoder(Specified, nn.Module, ABC):
    """A pair of towers with adapters into one space.

    Attributes:
        embed_dim: The width D of the shared space.
        image_size: Height and width in pixels that the image side takes.
        grid: Rows and columns of the patches at that size.
        preprocessing: How images were brought to that size when the image side was trained.
        commits: What its own weights came from on the hub, those of towers left out: commits by repository.
    """

    preprocessing: Preprocessing = Preprocessing()
    commits: Mapping[str, str] = MappingProxyType({})
    embed_dim: int
    image_size: tuple[int, int]
    grid: tuple[int, int]

    def towers(self) -> list[nn.Module]:
        """The networks, each called as a module, that are compiled and checkpointed: all parts, unless overridden."""
        return list(self.children())

    @abstractmethod
    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Token ids with masks and character spans, on the CPU."""

    @abstractmethod
    def encode_images(self, pixels: UInt8[Tensor, "I 3 H W"]) -> Images:
        """Embeddings of raw pixels; the encoder normalises them as its backbone was trained."""

    @abstractmethod
    def encode_texts(self, tokens: Tokens, selection: Selection = "all") -> Texts:
        """Embeddings of captions, with the tokens of `selection` in the mask."""
