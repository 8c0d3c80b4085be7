"""Do images and captions that differ in one detail find each other?

A question has I images and T captions; caption k belongs to image k, and captions from I on belong to none.

    caption   every image scores strictly higher with its own caption than with each other one
    image     every image's caption scores strictly higher with it than with each other image
    both      both

With two images and two captions these are the text, image and group scores of Winoground (Thrush et al., CVPR 2022,
arXiv 2204.03162, equations 1 to 3). A tie fails, so does NaN; scores that differ by rounding only are a tie
(`hard_negatives.beats`).

Chance is that of independent scores of one continuous distribution: an image has T captions to choose from, so that
one image finds its own with 1/T, and both of two images theirs of two captions with (1/2)^2 = 1/4; `image` likewise;
`both` of two by two is 2! 2! / 4! = 1/6, for the two right scores must be the two highest of four.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchword.metrics.hard_negatives import beats

CHANCE_OF_TWO = {"caption": 1 / 4, "image": 1 / 4, "both": 1 / 6}


@dataclass(frozen=True)
class Answers:
    """How N questions were answered.

    Attributes:
        group: The group of each: a category, a relation.
        captions: Its number of captions.
        by_image: Whether each of two images found its caption; True for an image that is not there.
        by_caption: Likewise, whether the caption of each image found it.
    """

    group: Int[Tensor, " N"]
    captions: Int[Tensor, " N"]
    by_image: Bool[Tensor, "N 2"]
    by_caption: Bool[Tensor, "N 2"]

    def __len__(self) -> int:
        return len(self.group)

    def __getitem__(self, which: Bool[Tensor, " N"]) -> Answers:
        """Those where `which` is True."""
        return Answers(self.group[which], self.captions[which], self.by_image[which], self.by_caption[which])

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
        """Whether either found the other."""
        return self.caption & self.image


def caption_found(scores: Float[Tensor, "I T"]) -> Bool[Tensor, " I"]:
    """For each image k, whether it scores strictly higher with caption k than with every other caption."""
    own = scores.diagonal()[:, None].expand_as(scores)
    itself = torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    return (beats(own.flatten(), scores.flatten()).unflatten(0, scores.shape) | itself).all(-1)


def image_found(scores: Float[Tensor, "I T"]) -> Bool[Tensor, " I"]:
    """For each image k, whether its caption k scores strictly higher with it than with every other image."""
    return caption_found(scores[:, : len(scores)].T)


def share(right: Bool[Tensor, " N"]) -> float:
    """The share of True; NaN of none."""
    return float(right.double().mean())


def chance_of_captions(answers: Answers) -> float:
    """What a guess gets for `caption` on questions of one image: the mean of 1 / T."""
    return float((1 / answers.captions.double()).mean())


def mean_over_groups(answers: Answers, right: Bool[Tensor, " N"], least: int = 1) -> tuple[float, int]:
    """The mean over groups of the share of `right` in each, and the number of these groups.

    Args:
        answers: The answers.
        right: Which of them are right.
        least: Groups of fewer answers are left out.
    """
    groups = answers.group.unique()
    sizes = [int((answers.group == group).sum()) for group in groups]
    shares = [share(right[answers.group == g]) for g, size in zip(groups, sizes, strict=True) if size >= least]
    return (sum(shares) / len(shares) if shares else float("nan")), len(shares)
