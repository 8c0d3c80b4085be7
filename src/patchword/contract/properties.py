"""The contract of every objective: one function for each property, which says what was found and what was expected.

A property gets a function that builds the objective for vectors of `sample.DIM` numbers in a dtype. Every call must
return the same parameters, and every forward pass must start from the same random state and buffers. If the objective
lacks a property, its function raises an AssertionError or a UserError of one line. `patchword check` and the tests of
all objectives call these functions, and `check` prints the first lines of their docstrings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck

from patchword.answers import require_answers
from patchword.contract import sample
from patchword.contract.sample import DIM, alone, first_tokens, padded
from patchword.contract.values import both_scores, budget, inputs, losses, require, require_same, scores, terms
from patchword.features import Images, Texts, map_tensors
from patchword.objective import Objective

Build = Callable[[torch.dtype], Objective]
NAN = float("nan")


def answers(build: Build) -> None:
    """Terms are finite scalars, score is [I, T], align is [B, L, P] with zeros for padding only."""
    objective, (images, texts) = build(torch.float32), sample.pairs()
    require_answers(objective, images, texts)
    rows = objective.align(images, texts).abs().sum(-1)
    require(not rows[~texts.mask].any(), "align is not 0 where texts.mask is False (masked_fill it)")
    require(bool(rows[texts.mask].all()), "align is 0 for every patch of a token that is no padding")


def padding(build: Build) -> None:
    """More padding of captions, filled with NaN, changes no loss, gradient, score or map.

    In float32, products of another shape round differently, which moves GLoRIA's gradients by 1.6e-6 of the largest
    one. Here everything is in float64.
    """
    objective, (images, texts) = build(torch.float64), sample.pairs(dtype=torch.float64)
    longer = texts.padded(7)
    tokens = longer.tokens.detach().masked_fill(~longer.mask[..., None], NAN).requires_grad_()
    before = losses(objective, images, texts) | scores(objective, images, texts)
    longer = replace(longer, tokens=tokens)
    after = losses(objective, images, longer) | scores(objective, images, longer)
    gradient = after["the gradient of texts.tokens"]
    require(not gradient[~longer.mask].any(), "the padding of captions has a gradient")
    cut = {"align": after["align"][:, :4], "the gradient of texts.tokens": gradient[:, :4]}
    require_same(after | cut, before, "with more padding of captions")


def patch_padding(build: Build) -> None:
    """Scores and maps of padded images of several shapes are those of each image without padding."""
    objective, (images, texts) = build(torch.float64), sample.pairs(grid=(3, 4), dtype=torch.float64)
    wide = padded(images, (5, 6))
    assert wide.mask is not None
    together = scores(objective, wide, texts)
    require(not together["align"].masked_fill(wide.mask[:, None], 0).any(), "align is not 0 where images.mask is False")
    for i in range(len(images)):
        one = alone(wide, i)
        found = {name: value[i] for name, value in together.items()}
        found["align"] = found["align"][:, wide.mask[i]]
        expected = {name: score(one, texts)[0] for name, score in both_scores(objective)}
        expected["align"] = objective.align(one, texts[i : i + 1])[0]
        require_same(found, expected, "of an image with padding")


def patch_padding_loss(build: Build) -> None:
    """The loss and its gradients do not depend on the padding of patches, whatever it holds."""
    objective, (images, texts) = build(torch.float64), sample.pairs(grid=(3, 4), dtype=torch.float64)
    row, _ = sample.pairs(
        grid=(1, 4), dtype=torch.float64
    )  # few enough patches that all cosines of a token are negative
    for narrow, wide in (
        (row, padded(row, (5, 6), shapes=[(1, 4)] * 5)),
        (padded(images, (3, 4)), padded(images, (5, 6), 7.0)),
    ):
        assert wide.mask is not None
        own = torch.ones(5, 4, dtype=torch.bool) if narrow.mask is None else narrow.mask
        before, after = losses(objective, narrow, texts), losses(objective, wide, texts)
        name = "the gradient of images.patches"
        require(not after[name][~wide.mask].any(), "the padding of patches has a gradient")
        cut = {name: after[name][wide.mask]}
        require_same(after | cut, before | {name: before[name][own]}, "with more padding of patches")


def patch_order(build: Build) -> None:
    """The order of patches changes no score, and in maps only the order of columns."""
    objective, (images, texts) = build(torch.float32), sample.pairs()
    shuffled, order = _shuffled(images)
    found, expected = scores(objective, shuffled, texts), scores(objective, images, texts)
    require_same(found, expected | {"align": expected["align"][..., order]}, "with the patches in another order")


def patch_order_loss(build: Build) -> None:
    """The loss does not depend on the order of patches, as that of regions or positions would."""
    objective, (images, texts) = build(torch.float32), sample.pairs()
    found, expected = terms(objective, _shuffled(images)[0], texts), terms(objective, images, texts)
    require_same(found, expected, "with the patches in another order")


def batch_order(build: Build) -> None:
    """The loss of the same pairs in another order is the same, and each pair keeps its map."""
    objective, (images, texts) = build(torch.float32), sample.pairs()
    order = torch.tensor([3, 0, 4, 1, 2])
    found = terms(objective, images[order], texts[order])
    found["align"] = objective.align(images[order], texts[order])
    expected = terms(objective, images, texts) | {"align": objective.align(images, texts)[order]}
    require_same(found, expected, "with the pairs in another order")


def independent_pairs(build: Build) -> None:
    """The score and the map of a pair need no other pair, so that retrieval can be computed in blocks."""
    objective, (images, texts) = build(torch.float32), sample.pairs()
    together = scores(objective, images, texts)
    for i in range(len(images)):
        one = images[i : i + 1]
        for t in range(len(texts)):
            found = {name: together[name][i, t] for name, _ in both_scores(objective)}
            expected = {name: score(one, texts[t : t + 1])[0, 0] for name, score in both_scores(objective)}
            require_same(found, expected, "of a pair in a batch (not alone)")
        alone_map = {"align": objective.align(one, texts[i : i + 1])[0]}
        require_same({"align": together["align"][i]}, alone_map, "of a pair in a batch (not alone)")


def scores_together(build: Build) -> None:
    """The pair that `scores` returns is `score` and `text_to_image_score`."""
    objective, (images, texts) = build(torch.float32), sample.pairs()
    alone = {name: method(images, texts) for name, method in both_scores(objective)}
    require_same(dict(zip(alone, objective.scores(images, texts), strict=True)), alone, "in scores")


def local_features(build: Build) -> None:
    """The score uses patches or tokens if, and only if, uses_local_features says so.

    It decides whether retrieval keeps every token of a data set or one vector per sample.
    """
    objective, (images, texts) = build(torch.float32), sample.pairs()
    other_images, other_texts = sample.pairs(seed=1)
    changed = replace(images, patches=other_images.patches), replace(texts, tokens=other_texts.tokens)
    uses = not torch.equal(objective.score(*changed), objective.score(images, texts))
    said = objective.uses_local_features
    require(uses == said, f"score uses {'' if uses else 'no '}patches or tokens; expected uses_local_features = {uses}")


def tiles(build: Build) -> None:
    """The loss, its gradients and scores are the same if a batch is scored in small parts."""
    objective = build(torch.float64)
    for numbers, mask in ((1, False), (40, False), (300, False), (40, True)):
        images, texts = sample.pairs(dtype=torch.float64)
        images = padded(images, (4, 5)) if mask else images
        expected = losses(objective, images, texts) | {"score": objective.score(images[:3], texts)}
        with budget(numbers):
            found = losses(objective, images, texts) | {"score": objective.score(images[:3], texts)}
        require_same(found, expected, f"in tiles of {numbers} numbers")


def gradients_are_exact(build: Build, complete: bool = False) -> None:
    """Gradients equal finite differences, in one random direction of each input.

    With `complete`, in each entry. No image has fewer hard negatives than another, because a small number in place of
    padding is a hard negative.
    """
    objective, (images, texts) = build(torch.float64), sample.pairs(2, (1, 3), dtype=torch.float64)
    assert images.region_texts is not None
    images = replace(images, negatives=images.region_texts.detach().roll(1, 0)[:, :1].requires_grad_())
    torch.manual_seed(0)
    for name, leaf in inputs(images, texts).items():

        def loss(x: Tensor, name: str = name) -> Tensor:
            side, _, part = name.partition(".")
            changed: dict[str, Any] = {part: x}
            pair = (replace(images, **changed), texts) if side == "images" else (images, replace(texts, **changed))
            return torch.stack(list(objective(*pair).values())).sum()

        try:
            gradcheck(loss, leaf, fast_mode=not complete)
        except GradcheckError as error:
            numbers = " ".join(str(error).partition("\n\n")[0].rpartition(",\n")[2].split())
            raise AssertionError(f"the gradient of {name} is not that of finite differences: {numbers:.300}") from None


def autocast(build: Build) -> None:
    """Under autocast, bfloat16 features give the float32 results of their float32 copies."""
    objective, (images, texts) = build(torch.float32), sample.pairs()
    images, texts = _as(torch.bfloat16, images), _as(torch.bfloat16, texts)
    wide = _as(torch.float32, images), _as(torch.float32, texts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = terms(objective, images, texts) | scores(objective, images, texts)
    for name, value in found.items():
        require(value.dtype == torch.float32, f"{name} is {value.dtype} under autocast; expected torch.float32")
    require_same(found, terms(objective, *wide) | scores(objective, *wide), "under autocast")


EDGES: dict[str, Callable[[Images, Texts], tuple[Images, Texts]]] = {
    "constant images": lambda i, t: (replace(i, patches=i.patches[:, :1].expand_as(i.patches)), t),
    "zero images": lambda i, t: (replace(i, pooled=i.pooled * 0, patches=i.patches * 0), t),
    "one token each": lambda i, t: (i, replace(t, mask=torch.arange(4).expand(5, 4) < 1)),
    "an empty caption": lambda i, t: (i, replace(t, mask=t.mask & (torch.arange(5) != 2)[:, None])),
    "only empty captions": lambda i, t: (i, replace(t, mask=torch.zeros_like(t.mask))),
    "no token at all": lambda i, t: (i, first_tokens(t, 0)),
    "zero texts": lambda i, t: (i, replace(t, pooled=t.pooled * 0, tokens=t.tokens * 0)),
    "a batch of one": lambda i, t: (i[:1], t[:1]),
    "one patch": lambda i, t: (replace(i, patches=i.patches[:, :1], grid=(1, 1), regions=i.regions[..., :1]), t),  # type: ignore[index]
    "images of several shapes": lambda i, t: (padded(i, (4, 5)), t),
    "identical pairs": lambda i, t: (i[torch.zeros(5, dtype=torch.long)], t[torch.zeros(5, dtype=torch.long)]),
    "huge embeddings": lambda i, t: (replace(i, pooled=i.pooled * 1e4, patches=i.patches * 1e4), t),
}


def degenerate_input(build: Build) -> None:
    """The loss, scores, maps and gradients are finite on constant and zero images, empty captions and the like."""
    for edge, change in EDGES.items():
        objective, (images, texts) = build(torch.float32), change(*sample.pairs())
        found = losses(objective, images, texts) | scores(objective, images, texts)
        shape = [len(images), texts.mask.shape[1], images.patches.shape[1]]
        require(list(found["align"].shape) == shape, f"align is {list(found['align'].shape)}; expected {shape}")
        for name, value in found.items():
            require(bool(value.isfinite().all()), f"{edge}: {name} is not finite")
            bounded = not name.startswith("the gradient") or float(value.detach().abs().sum()) < 1e6
            require(
                bounded, f"{edge}: {name} has a sum of {float(value.detach().abs().sum()):.1e}; expected less than 1e6"
            )


def repeatable(build: Build) -> None:
    """The same input has the same loss and gradients, bit by bit."""
    objective, (images, texts) = build(torch.float32), sample.pairs()
    first, second = losses(objective, images, texts), losses(objective, images, texts)
    for name, value in first.items():
        require(torch.equal(value, second[name]), f"{name} differs in a second pass")


def rebuilt(build: Build) -> None:
    """The constructor call that a checkpoint stores builds the same objective again."""
    objective, (images, texts) = build(torch.float32), sample.pairs()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objective", type=Objective)
    again = parser.instantiate(parser.parse_object({"objective": objective.spec})).objective
    require(again.spec == objective.spec, f"the constructor call {objective.spec} is rebuilt as {again.spec}")
    again.build(DIM)
    again.load_state_dict(objective.state_dict())
    expected = terms(objective, images, texts)
    torch.manual_seed(0)
    require_same(terms(again, images, texts), expected, "of the objective that a checkpoint rebuilds")


def _shuffled(images: Images) -> tuple[Images, Tensor]:
    assert images.regions is not None
    order = torch.randperm(images.patches.shape[1], generator=torch.Generator().manual_seed(1))
    return replace(images, patches=images.patches[:, order], regions=images.regions[..., order]), order


def _as(dtype: torch.dtype, side: Any) -> Any:
    return map_tensors(side, lambda x: x.to(dtype) if x.is_floating_point() else x)


PROPERTIES: tuple[Callable[[Build], None], ...] = (
    *(answers, padding, patch_padding, patch_padding_loss, patch_order, patch_order_loss, batch_order),
    *(independent_pairs, scores_together, local_features, tiles, gradients_are_exact, autocast, degenerate_input),
    *(repeatable, rebuilt),
)
