"""What is compared: the objectives, their plain formulas and open_clip's losses, on the same features."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import patchword.objectives
from patchword.bench import peers, plain
from patchword.errors import InputError
from patchword.features import Images, Texts
from patchword.objective import Objective

By = Literal["patchword", "plain", "open_clip"]


def own_loss(objective: Objective, images: Images, texts: Texts) -> Tensor:
    """The objective's own loss, its terms summed."""
    return torch.stack(list(objective(images, texts).values())).sum()


LOSSES: dict[By, Callable[[Objective, Images, Texts], Tensor]] = {
    "patchword": own_loss,
    "plain": plain.loss,
    "open_clip": peers.loss,
}


@dataclass(frozen=True)
class Setting:
    """What everything in one table is measured at.

    Attributes:
        work: `train` is a forward and a backward pass of the loss, `score` the matrix of images and texts.
        batch: Images; pairs in training.
        texts: Texts; as many as images in training.
        patches: P.
        tokens: L, the longest caption.
        dim: D.
        dtype: The features' type; half precision runs under autocast.
        device: A torch device.
        threads: Threads of the CPU.
        seed: Of the features.
    """

    work: Literal["train", "score"]
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
        """Random embeddings, un-normalised as encoders make them, the same at every call.

        The patches lie on the squarest grid that holds them. Captions have between a quarter of L and L tokens, the
        first one L, in phrases of three. In training the embeddings ask for gradients.
        """
        generator = torch.Generator().manual_seed(self.seed)

        def random(*shape: int) -> Tensor:
            x = torch.randn(*shape, generator=generator).to(self.device, self.torch_dtype)
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
class Candidate:
    """One row of the table; plain data, so that another process can build the same.

    Attributes:
        name: The objective as the user named it.
        path: Where its class, or a function that builds it, is imported from.
        by: Whose implementation of its loss.
    """

    name: str
    path: str
    by: By


class Step:
    """A candidate with its features, ready to be run again and again."""

    def __init__(self, candidate: Candidate, setting: Setting, features: tuple[Images, Texts]) -> None:
        torch.manual_seed(setting.seed)
        self.objective = build(candidate.path)
        self.objective.setup(setting.dim)
        self.objective.to(setting.device, torch.float64 if setting.dtype == "float64" else torch.float32)
        self.loss = LOSSES[candidate.by]
        self.setting = setting
        self.images, self.texts = features

    def clear(self) -> None:
        """Drop the features' gradients of the last run. The parameters' stay, and are added to."""
        for x in (self.images.pooled, self.images.patches, self.texts.pooled, self.texts.tokens):
            x.grad = None

    def forward(self) -> Tensor:
        """The loss, or the mean score."""
        with contextlib.ExitStack() as stack:
            if self.setting.dtype in ("bfloat16", "float16"):
                kind = torch.device(self.setting.device).type
                stack.enter_context(torch.autocast(kind, self.setting.torch_dtype))
            if self.setting.work == "train":
                return self.loss(self.objective, self.images, self.texts)
            stack.enter_context(torch.no_grad())
            return self.objective.score(self.images, self.texts).mean()

    def backward(self, value: Tensor) -> None:
        """The backward pass from what `forward` returned; nothing where scores are measured."""
        if self.setting.work == "train":
            value.backward()


def candidates(names: Iterable[str], against: Iterable[By], setting: Setting) -> list[Candidate]:
    """The rows for the objectives `names`, each followed by its alternatives.

    Args:
        names: Names of our objectives, or where others are imported from.
        against: Which alternatives are wanted where they exist; scores have none.
        setting: What they are measured at.

    Raises:
        InputError: If a name means no objective, or one that cannot be built or set up for embeddings of this width.
    """
    found = []
    for name in names:
        path = OURS.get(name, name)
        try:
            objective = build(path)
            objective.setup(setting.dim)
        except InputError as error:
            raise InputError(f"--objectives {name}: {error}") from error
        found.append(Candidate(name, path, "patchword"))
        for by in against if setting.work == "train" else ():
            if knows(LOSSES[by], type(objective)) and (by != "open_clip" or peers.installed()):
                found.append(Candidate(name, path, by))
    return found


def build(path: str) -> Objective:
    """The objective whose class, or a function that builds it, is imported from `path`."""
    module, _, name = path.rpartition(".")
    if not module:
        close = difflib.get_close_matches(path.lower(), {n.lower() for n in OURS}, n=1)
        ours = [n for n in OURS if n.lower() in close]
        hint = f"did you mean {ours[0]}?" if ours else f"choose from {', '.join(OURS)}, or say my_module.MyObjective"
        raise InputError(f"there is no objective '{path}'; {hint}")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot be imported: {error}") from error
    try:
        objective = make()
    except TypeError as error:
        raise InputError(f"{error}; name a function without arguments that builds it") from error
    if not isinstance(objective, Objective):
        raise InputError(f"makes {type(objective).__name__}, which is no patchword.Objective")
    return objective


def knows(loss: Any, cls: type) -> bool:
    """Whether the generic function `loss` has something for objects of class `cls`."""
    return loss.dispatch(cls) is not loss.dispatch(object)


OURS = {name: f"patchword.objectives.{name}" for name in patchword.objectives.__all__}
