"""What is compared: the objectives, their plain formulas and open_clip's losses, on the same features."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from patchword.bench import peers, plain
from patchword.errors import InputError
from patchword.features import Images, Texts
from patchword.named import OURS, build
from patchword.objective import Objective
from patchword.ops import cosine
from patchword.shapley import pair_interactions, sampled_pair_interactions


def own_loss(objective: Objective, images: Images, texts: Texts) -> Tensor:
    """The objective's own loss, its terms summed."""
    return torch.stack(list(objective(images, texts).values())).sum()


LOSSES: dict[str, Callable[[Objective, Images, Texts], Tensor]] = {
    "patchword": own_loss,
    "plain": plain.loss,
    "open_clip": peers.loss,
}


@dataclass(frozen=True)
class Setting:
    """What everything in one table is measured at.

    Attributes:
        work: `train` is a forward and a backward pass of the loss, `score` the matrix of images and texts,
            `interactions` those of every patch and word of a pair.
        batch: Images; pairs but for scores.
        texts: Texts; as many as images but for scores.
        patches: P.
        tokens: L, the longest caption.
        dim: D.
        dtype: The features' type; half precision runs under autocast.
        device: A torch device.
        threads: Threads of the CPU.
        seed: Of the features.
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
        """`dtype` as torch knows it."""
        return getattr(torch, self.dtype)

    def features(self) -> tuple[Images, Texts]:
        """Random embeddings, un-normalised, the same at every call.

        Their products have a standard deviation of 1.
        The patches lie on the squarest grid that holds them. Captions have between a quarter of L and L tokens, the
        first one L, in phrases of three. In training the embeddings ask for gradients.
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
        images = Images(
            random(self.batch, self.dim),
            random(self.batch, self.patches, self.dim),
            (rows, self.patches // rows),
        )
        texts = Texts(
            random(self.texts, self.dim),
            random(self.texts, self.tokens, self.dim),
            mask.to(self.device),
            phrases.to(self.device),
        )
        return images, texts


@dataclass(frozen=True)
class Candidate(ABC):
    """One row of the table; plain data, so that another process can do the same.

    Attributes:
        name: What the user calls it.
        by: Whose implementation, or which method.
    """

    name: str
    by: str

    @abstractmethod
    def step(self, setting: Setting, images: Images, texts: Texts) -> Step:
        """The work, ready to be done again and again."""


class Step(ABC):
    """A forward and a backward pass on the same features each time."""

    def __init__(self, setting: Setting, images: Images, texts: Texts) -> None:
        self.setting = setting
        self.images, self.texts = images, texts

    def clear(self) -> None:
        """Drop the features' gradients of the last run. The parameters' stay, and are added to."""
        for x in (self.images.pooled, self.images.patches, self.texts.pooled, self.texts.tokens):
            x.grad = None

    @abstractmethod
    def forward(self) -> Tensor:
        """One number, the loss or a mean."""

    def backward(self, value: Tensor) -> None:
        """The backward pass from what `forward` returned, if it wants one."""
        if value.requires_grad:
            value.backward()

    def error(self) -> float | None:
        """How far an estimate is from the truth; None where nothing is estimated."""
        return None


@dataclass(frozen=True)
class Implementation(Candidate):
    """An objective's loss, or its scores.

    Attributes:
        path: Where its class, or a function that builds it, is imported from.
    """

    path: str

    def step(self, setting: Setting, images: Images, texts: Texts) -> Step:
        """Of an objective built anew."""
        torch.manual_seed(setting.seed)
        objective = build(self.path)
        objective.setup(setting.dim)
        objective.to(setting.device, torch.float64 if setting.dtype == "float64" else torch.float32)
        return _Loss(setting, images, texts, objective, LOSSES[self.by])


class _Loss(Step):
    def __init__(
        self,
        setting: Setting,
        images: Images,
        texts: Texts,
        objective: Objective,
        loss: Callable[[Objective, Images, Texts], Tensor],
    ) -> None:
        super().__init__(setting, images, texts)
        self.objective, self.loss = objective, loss

    def forward(self) -> Tensor:
        with contextlib.ExitStack() as stack:
            if self.setting.dtype in ("bfloat16", "float16"):
                kind = torch.device(self.setting.device).type
                stack.enter_context(torch.autocast(kind, self.setting.torch_dtype))
            if self.setting.work == "train":
                return self.loss(self.objective, self.images, self.texts)
            stack.enter_context(torch.no_grad())
            return self.objective.score(self.images, self.texts).mean()


@dataclass(frozen=True)
class Interactions(Candidate):
    """Interactions of all patches and words of each pair under late interaction, exact or sampled.

    Attributes:
        samples: Contexts that each is estimated from; None for the exact ones.
    """

    samples: int | None

    def step(self, setting: Setting, images: Images, texts: Texts) -> Step:
        """On the cosines of the features."""
        return _Interactions(setting, images, texts, self.samples)


class _Interactions(Step):
    def __init__(self, setting: Setting, images: Images, texts: Texts, samples: int | None) -> None:
        super().__init__(setting, images, texts)
        self.similarity = cosine(images.patches, texts.tokens)
        if setting.dtype in ("bfloat16", "float16"):
            self.similarity = self.similarity.float()
        self.samples = samples

    def values(self, samples: int | None) -> Tensor:
        if samples is None:
            return pair_interactions(self.similarity, self.texts.mask)
        generator = torch.Generator().manual_seed(self.setting.seed)
        return sampled_pair_interactions(self.similarity, self.texts.mask, samples=samples, generator=generator)

    def forward(self) -> Tensor:
        return self.values(self.samples).mean()

    def error(self) -> float | None:
        """The root mean square over real pairs, as a part of the exact values' standard deviation."""
        if self.samples is None:
            return None
        exact, sampled = self.values(None), self.values(self.samples)
        real = self.texts.mask[:, None].expand(exact.shape)
        return float((sampled - exact)[real].square().mean().sqrt() / exact[real].std())


def candidates(names: Iterable[str], against: Iterable[str], setting: Setting) -> list[Implementation]:
    """The rows for the objectives `names`, each followed by its alternatives.

    Args:
        names: Names of our objectives, or where others are imported from.
        against: Which alternatives are wanted where they exist; scores have none.
        setting: What they are measured at.

    Raises:
        InputError: If a name means no objective, or one that cannot be built or set up for embeddings of this width.
    """
    found = []
    for name in dict.fromkeys(names):
        path = OURS.get(name, name)
        try:
            objective = build(path)
            objective.setup(setting.dim)
        except InputError as error:
            raise InputError(f"--objectives {name}: {error}") from error
        found.append(Implementation(name, "patchword", path))
        for by in against if setting.work == "train" else ():
            if knows(LOSSES[by], type(objective)) and (by != "open_clip" or peers.installed()):
                found.append(Implementation(name, by, path))
    return found


def knows(loss: Any, cls: type) -> bool:
    """Whether the generic function `loss` has something for objects of class `cls`."""
    return loss.dispatch(cls) is not loss.dispatch(object)
