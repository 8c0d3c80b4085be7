"""What an objective computes, by name, and the comparison of two such results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from patchword import contrast
from patchword.features import Images, Texts
from patchword.objective import Objective

Values = dict[str, Tensor]


def gradients(objective: nn.Module, images: Images, texts: Texts) -> Values:
    """The gradient of the summed terms with respect to every input and parameter; zero for unused ones.

    `objective` can be any module that returns terms.
    """
    leaves = inputs(images, texts) | {n: p for n, p in objective.named_parameters() if p.requires_grad}
    loss = torch.stack(list(objective(images, texts).values())).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(leaves.items(), found, strict=True)}


def inputs(images: Images, texts: Texts) -> Values:
    """The inputs that have gradients."""
    found = {f"images.{n}": getattr(images, n) for n in ("pooled", "patches", "negatives", "region_texts", "views")}
    found |= {"texts.pooled": texts.pooled, "texts.tokens": texts.tokens}
    return {name: x for name, x in found.items() if x is not None}


def terms(objective: Objective, images: Images, texts: Texts) -> Values:
    """The loss terms, without gradients."""
    return {f"the loss term {name!r}": value.detach() for name, value in objective(images, texts).items()}


def losses(objective: Objective, images: Images, texts: Texts) -> Values:
    """The loss terms and all gradients."""
    found = {f"the gradient of {name}": value for name, value in gradients(objective, images, texts).items()}
    return terms(objective, images, texts) | found


def both_scores(objective: Objective) -> tuple[tuple[str, Callable[[Images, Texts], Tensor]], ...]:
    """The two scores with their names."""
    return ("score", objective.score), ("text_to_image_score", objective.text_to_image_score)


def scores(objective: Objective, images: Images, texts: Texts) -> Values:
    """The scores and maps."""
    found = {name: score(images, texts) for name, score in both_scores(objective)}
    return found | {"align": objective.align(images, texts)}


@contextmanager
def budget(numbers: int) -> Iterator[None]:
    """Inside this context, a tile of a loss over all pairs may compute this many numbers."""
    before, contrast.BUDGET = contrast.BUDGET, numbers
    try:
        yield
    finally:
        contrast.BUDGET = before


def require(right: bool | Tensor, message: str) -> None:
    """Raise an AssertionError with the message unless `right` is true."""
    if not right:
        raise AssertionError(message)


def require_same(found: Values, expected: Values, when: str) -> None:
    """Check that values are the same up to rounding.

    Raises:
        AssertionError: Names the first value that differs, and says by how much.
    """
    require(found.keys() == expected.keys(), f"{when}: there is {[*found]}; expected {[*expected]}")
    for name, right in expected.items():
        value = found[name]
        try:
            assert_close(value, right)
        except AssertionError:
            if value.shape != right.shape:
                what = f"has the shape {list(value.shape)}; expected {list(right.shape)}"
            elif value.ndim == 0:
                what = f"is {value.item():.6g}; expected {right.item():.6g}"
            else:
                what = f"differs by up to {float((value - right).detach().abs().max()):.2g}"
            raise AssertionError(f"{name} {when} {what}") from None
