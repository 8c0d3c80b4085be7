"""What the sources of maps that run the towers again work on: texts, each with the image that it is read against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from patchword.encoders.base import Encoder, Selection, Tokens
from patchword.features import Images, Texts
from patchword.objective import Objective


@dataclass(frozen=True)
class Pairs:
    """T texts and I images.

    Attributes:
        encoder: The towers that embedded the texts, in eval mode.
        pixels: The images as the model sees them.
        image: The image of each text.
        texts: The embedded texts.
        tokens: The tokenized texts.
        wanted: True for the tokens whose maps are needed. The maps of other tokens are arbitrary.
        selection: The tokens that the objective sees when a text is embedded again.
    """

    encoder: Encoder
    pixels: UInt8[Tensor, "I _ H W"]
    image: Int[Tensor, " T"]
    texts: Texts
    tokens: Tokens
    wanted: Bool[Tensor, "T L"]
    selection: Selection = "all"

    def empty(self) -> Float[Tensor, "T L P"]:
        """Maps of zeros."""
        rows, columns = self.encoder.grid
        return torch.zeros(*self.wanted.shape, rows * columns, device=self.pixels.device)

    def of_images(self, first: int, last: int) -> tuple[Int[Tensor, " t"], Pairs]:
        """The positions of the texts of images[first:last], and these pairs."""
        rows = ((self.image >= first) & (self.image < last)).nonzero()[:, 0]
        tokens = replace(
            self.tokens,
            captions=[self.tokens.captions[row] for row in rows.tolist()],
            **{name: x[rows] for name, x in vars(self.tokens).items() if isinstance(x, Tensor)},
        )
        image, pixels = self.image[rows] - first, self.pixels[first:last]
        own = replace(self, image=image, texts=self.texts[rows], wanted=self.wanted[rows], pixels=pixels, tokens=tokens)
        return rows, own

    def rounds(self) -> Iterator[tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"]]]:
        """All wanted tokens, in rounds with at most one token of each image: its image, its text, its place in it."""
        text, place = self.wanted.nonzero().unbind(-1)
        image = self.image[text]
        number = (image[:, None] == image).tril(-1).sum(-1)
        for one in number.unique():
            yield image[number == one], text[number == one], place[number == one]

    def gradients(
        self, objective: Objective, images: Images, leaves: Sequence[Tensor]
    ) -> Iterator[tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"], list[Tensor]]]:
        """For each of the `rounds`, the gradients of the tokens' scores with respect to tensors [I, ...] of the tower.

        There is one backward pass for each round, for all its tokens together.

        Args:
            objective: The objective whose score is explained.
            images: The embeddings of the images, which depend on `leaves`.
            leaves: Tensors whose rows belong to the images.

        Returns:
            Image, text and place of each token of the round, and the gradients [n, ...] of its score for each leaf.
        """
        for image, text, place in self.rounds():
            scores = word_scores(objective, images[image], self.texts.tokens[text, place])
            found = torch.autograd.grad(scores.sum(), leaves, retain_graph=True, materialize_grads=True)
            yield image, text, place, [gradient[image] for gradient in found]


def word_scores(objective: Objective, images: Images, words: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
    """The objective's score of each image with a word: with a text whose global vector and only token are the word's.

    This is what gradient maps explain. For objectives that score by global vectors, it is the cosine of the image with
    the vector whose cosines with the patches are the word's map of `cosine`.
    """
    one = torch.ones(len(words), 1, dtype=torch.bool, device=words.device)
    return objective.score(images, Texts(words, words[:, None], one)).diagonal()
