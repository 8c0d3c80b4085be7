"""Can a model match images with captions that differ in one detail?

A question has I images and T captions. Caption k belongs to image k; captions from I on belong to no image.

    caption   every image scores strictly higher with its own caption than with each other caption
    image     every image's caption scores strictly higher with this image than with each other image
    both      `caption` and `image` are both true

With two images and two captions these are the text, image and group scores of Winoground (Thrush et al., CVPR 2022,
arXiv 2204.03162, equations 1 to 3). A tie or a NaN counts as an error; scores that differ by rounding only are a tie
(`metrics.ties`). The number of questions with a tie is reported with the accuracies.

The chance levels assume independent scores from one continuous distribution. An image chooses among T captions, so one
image finds its own caption with probability 1/T, and two images both find theirs among two captions with probability
(1/2)^2 = 1/4. The chance level of `image` is computed in the same way. For two images and two captions the chance level
of `both` is 2! 2! / 4! = 1/6, because the two right scores must be the two highest of four.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchword.features import map_tensors
from patchword.metrics.ties import beats, ties

CHANCE_OF_TWO = {"caption": 1 / 4, "image": 1 / 4, "both": 1 / 6}


@dataclass(frozen=True)
class Answers:
    """The answers to N questions.

    Attributes:
        group: The group of each question, such as a category or a relation.
        captions: The number of captions of each question.
        by_image: True if the image found its caption. A question with one image has True for the second image.
        by_caption: True if the caption found its image. A question with one image has True for the second caption.
        tied: True if the score of a right pair equals that of a wrong pair that it is compared with, up to rounding.
    """

    group: Int[Tensor, " N"]
    captions: Int[Tensor, " N"]
    by_image: Bool[Tensor, "N 2"]
    by_caption: Bool[Tensor, "N 2"]
    tied: Bool[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.group)

    def __getitem__(self, which: Bool[Tensor, " N"]) -> Answers:
        """The answers for which `which` is True."""
        return map_tensors(self, lambda x: x[which])

    @property
    def caption(self) -> Bool[Tensor, " N"]:
        """Whether all images found their captions."""
        return self.by_image.all(-1)

    @property
    def image(self) -> Bool[Tensor, " N"]:
        """Whether all captions found their images."""
        return self.by_caption.all(-1)

    @property
    def both(self) -> Bool[Tensor, " N"]:
        """Whether all images found their captions and all captions found their images."""
        return self.caption & self.image


def caption_found(scores: Float[Tensor, "I T"]) -> Bool[Tensor, " I"]:
    """For each image k, whether it scores strictly higher with caption k than with every other caption."""
    own, itself = _own(scores)
    return (beats(own, scores) | itself).all(-1)


def image_found(scores: Float[Tensor, "I T"]) -> Bool[Tensor, " I"]:
    """For each image k, whether caption k scores strictly higher with it than with every other image."""
    return caption_found(scores[:, : len(scores)].T)


def captions_tie(scores: Float[Tensor, "I T"]) -> bool:
    """Whether an image has the same score with another caption as with its own caption, up to rounding."""
    own, itself = _own(scores)
    return bool((ties(own, scores) & ~itself).any())


def images_tie(scores: Float[Tensor, "I T"]) -> bool:
    """Whether an image's caption has the same score with another image as with its own image, up to rounding."""
    return captions_tie(scores[:, : len(scores)].T)


def _own(scores: Float[Tensor, "I T"]) -> tuple[Float[Tensor, "I T"], Bool[Tensor, "I T"]]:
    """Each image's score with its own caption, repeated in all columns, and a mask of that caption's column."""
    itself = torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    return scores.diagonal()[:, None].expand_as(scores), itself


def share(right: Bool[Tensor, " N"]) -> float:
    """The share of True values; NaN without any value."""
    return float(right.double().mean())


def chance_of_captions(answers: Answers) -> float:
    """The chance level of `caption` on questions with one image: the mean of 1 / T."""
    return float((1 / answers.captions.double()).mean())


def mean_over_groups(answers: Answers, right: Bool[Tensor, " N"], least: int = 1) -> tuple[float, int]:
    """The share of right answers within each group, averaged over groups, and the number of these groups.

    Groups with fewer answers than `least` are left out.
    """
    groups = answers.group.unique()
    sizes = [int((answers.group == group).sum()) for group in groups]
    shares = [share(right[answers.group == g]) for g, size in zip(groups, sizes, strict=True) if size >= least]
    return (sum(shares) / len(shares) if shares else float("nan")), len(shares)
