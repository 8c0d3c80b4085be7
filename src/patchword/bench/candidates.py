"""The candidates of a measurement: objectives, their plain formulas and open_clip's losses, on the same features."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from patchword.bench import peers, plain
from patchword.commands.objective_names import build
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine
from patchword.shapley import pair_interactions, sampled_pair_interactions


def own_loss(objective: Objective, images: Images, texts: Texts) -> Tensor:
    """Return the sum of the terms of the objective's own loss."""
    return torch.stack(list(objective(images, texts).values())).sum()


LOSSES: dict[str, Callable[[Objective, Images, Texts], Tensor]] = {
    "patchword": own_loss,
    "plain": plain.loss,
    "open_clip": peers.loss,
}


@dataclass(frozen=True)
class Setting:
    """The setting of all measurements in one table.

    Attributes:
        work: What is measured: `train` is a forward and a backward pass of the loss, `score` computes the scores of all
            images with all texts, and `interactions` computes the interactions of all patches and words of each pair.
        batch: The number of images, which is the number of pairs except for `score`.
        texts: The number of texts, which is equal to `batch` except for `score`.
        patches: P, the number of patches per image.
        tokens: L, the number of tokens of the longest caption.
        dim: D, the width of the shared space.
        dtype: The type of the features. Half precision runs under autocast.
        device: A torch device.
        threads: The number of CPU threads.
        seed: The seed of the random features.
    """

    work: Literal["train", "score", "interactions"]
    batch: int
    texts: int
    patches: int
    tokens: int
    dim: int
    dtype: Literal["float32", "bfloat16", "float16", "float64"]
    device: str
    threads: int
    seed: int = 0

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as a torch type."""
        return getattr(torch, self.dtype)

    @property
    def is_half(self) -> bool:
        """Whether the features have half precision, so that objectives run under autocast."""
        return self.dtype in ("bfloat16", "float16")

    def features(self) -> tuple[Images, Texts]:
        """Return random embeddings that are not normalized and are the same for every call.

        Their products have a standard deviation of 1. The patches form a grid that is as square as possible. Captions
        have between L/4 and L tokens in phrases of three tokens; the first caption has L tokens. Every image has two
        hard negatives, two regions, and seven crops, one of which is large. For `train` the embeddings require
        gradients, except for those of the teacher.
        """
        generator = torch.Generator().manual_seed(self.seed)

        def random(*shape: int) -> Tensor:
            x = (torch.randn(*shape, generator=generator) * self.dim**-0.25).to(self.device, self.torch_dtype)
            return x.requires_grad_(self.work == "train")

        rows = next(r for r in range(math.isqrt(self.patches), 0, -1) if self.patches % r == 0)
        lengths = torch.randint(max(self.tokens // 4, 1), self.tokens + 1, (self.texts,), generator=generator)
        lengths[0] = self.tokens
        mask = torch.arange(self.tokens) < lengths[:, None]
        phrases = (torch.arange(self.tokens) // 3).masked_fill(~mask, -1)
        pooled, patches = random(self.batch, self.dim), random(self.batch, self.patches, self.dim)
        images = Images(pooled, patches, (rows, self.patches // rows))
        pooled, tokens = random(self.texts, self.dim), random(self.texts, self.tokens, self.dim)
        ids = torch.randint(1000, mask.shape, generator=generator).masked_fill(~mask, -1)
        regions = torch.rand(self.batch, 2, self.patches, generator=generator).softmax(-1).to(patches)
        images = replace(
            images,
            negatives=random(self.batch, 2, self.dim),
            regions=regions,
            region_texts=random(self.batch, 2, self.dim),
            views=random(self.batch, 7, self.dim),
            teacher=random(self.batch, 2, self.dim).detach(),
        )
        taught = random(self.texts, self.dim).detach()
        mask, phrases, ids = (x.to(self.device) for x in (mask, phrases[:, None], ids))
        return images, Texts(pooled, tokens, mask, phrases, ids, teacher=taught)


@dataclass(frozen=True)
class Step:
    """A forward and a backward pass that can be repeated on the same features.

    Attributes:
        images: The embedded images.
        texts: The embedded texts.
        forward: Computes one number: the loss, or the mean score or interaction.
        error: Computes the error of an estimate; None if nothing is estimated.
    """

    images: Images
    texts: Texts
    forward: Callable[[], Tensor]
    error: Callable[[], float] | None = None

    def clear(self) -> None:
        """Delete the gradients of the features. Those of the parameters are kept and accumulate."""
        for x in (*vars(self.images).values(), *vars(self.texts).values()):
            if isinstance(x, Tensor):
                x.grad = None

    def backward(self, value: Tensor) -> None:
        """Run the backward pass from the value of `forward`, if it requires gradients."""
        if value.requires_grad:
            value.backward()


@dataclass(frozen=True)
class Candidate(ABC):
    """One row of the table. It is plain data, so that another process can repeat the work.

    Attributes:
        name: The name that the user gave.
        by: The implementation (`patchword`, `plain` or `open_clip`) or the method.
    """

    name: str
    by: str

    @abstractmethod
    def step(self, setting: Setting, images: Images, texts: Texts) -> Step:
        """Return the work as a step that can be repeated."""


@dataclass(frozen=True)
class Implementation(Candidate):
    """The loss or the scores of an objective."""

    def step(self, setting: Setting, images: Images, texts: Texts) -> Step:
        """Return a step with a newly built objective."""
        torch.manual_seed(setting.seed)
        objective = build(self.name)
        objective.build(setting.dim)
        objective.to(setting.device, torch.float64 if setting.dtype == "float64" else torch.float32)
        kind, train = torch.device(setting.device).type, setting.work == "train"

        def forward() -> Tensor:
            with torch.autocast(kind, setting.torch_dtype, setting.is_half), torch.set_grad_enabled(train):
                if train:
                    return LOSSES[self.by](objective, images, texts)
                return objective.score(images, texts).mean()

        return Step(images, texts, forward)


@dataclass(frozen=True)
class Interactions(Candidate):
    """The interactions of all patches and words of each pair under late interaction, exact or sampled.

    Attributes:
        samples: The number of contexts of each estimate; None for exact interactions.
    """

    samples: int | None

    def step(self, setting: Setting, images: Images, texts: Texts) -> Step:
        """Return a step on the cosines of the features.

        The error is the root mean square error over real tokens, divided by the standard deviation of the exact values.
        """
        similarity = cosine(images.patches, texts.tokens)
        similarity = similarity.float() if setting.is_half else similarity

        def values() -> Tensor:
            if self.samples is None:
                return pair_interactions(similarity, texts.mask)
            generator = torch.Generator().manual_seed(setting.seed)
            return sampled_pair_interactions(similarity, texts.mask, samples=self.samples, generator=generator)

        def error() -> float:
            exact = pair_interactions(similarity, texts.mask)
            real = texts.mask[:, None].expand(exact.shape)
            return float((values() - exact)[real].square().mean().sqrt() / exact[real].std())

        return Step(images, texts, lambda: values().mean(), None if self.samples is None else error)


def candidates(names: Iterable[str], against: Iterable[str], setting: Setting) -> list[Implementation]:
    """Return the rows for some objectives, each followed by its alternatives; scores have no alternatives.

    Raises:
        UserError: If a name is not an objective, or the objective cannot be built for embeddings of this width.
    """
    found = []
    for name in dict.fromkeys(names):
        try:
            objective = build(name)
            objective.build(setting.dim)
        except UserError as error:
            raise UserError(f"--objectives {name}: {error}") from error
        found.append(Implementation(name, "patchword"))
        for by in against if setting.work == "train" else ():
            if knows(LOSSES[by], type(objective)) and (by != "open_clip" or peers.installed()):
                found.append(Implementation(name, by))
    return found


def knows(loss: Any, cls: type) -> bool:
    """Return whether the generic function `loss` has an implementation for the class `cls`."""
    return loss.dispatch(cls) is not loss.dispatch(object)
