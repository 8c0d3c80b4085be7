"""The contract of every objective: the properties that the trainer, the metrics and the maps rely on."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
from jsonargparse import ArgumentParser
from torch.testing import assert_close

from patchword import Images, Objective, Texts, contrast, distributed
from patchword.features import map_tensors
from patchword.provenance.spec import class_path
from tests.objectives import variants
from tests.objectives.variants import DIM, SPATIAL, STOPPED, VARIANTS, alone, build, gradients, padded
from tests.ranks import on_ranks

pytestmark = pytest.mark.parametrize("variant", VARIANTS)
PATCHES = 20
# On 4 x 5 patches the boxes of a region head cover up to 2 x 3 patches. On a smaller grid most would be single patches.
pairs = partial(variants.pairs, grid=(4, 5))
ESTIMATORS = ("region_network.", "pair_network.")  # parameters of LOUPE's neural estimator


def total(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms.values())).sum()


def test_answers_have_the_documented_form(variant: str) -> None:
    """Terms are finite scalars that can be summed, `score` is [I, T] for I != T, `align` is [B, L, P]."""
    objective, (images, texts) = build(variant), pairs()
    terms = objective(images, texts)
    assert terms
    assert all(term.shape == () and term.isfinite() for term in terms.values())
    assert objective.score(images[:3], texts).shape == (3, 5)
    assert objective.text_to_image_score(images[:3], texts).shape == (3, 5)
    rows = objective.align(images, texts)
    assert rows.shape == (5, 4, PATCHES)
    assert (rows[~texts.mask] == 0).all()
    assert rows[texts.mask].abs().sum(-1).gt(0).all()


def test_padding_changes_nothing_whatever_it_holds(variant: str) -> None:
    """Longer padding, filled with NaN, does not change loss, gradients, scores or maps.

    The test runs in float64. In float32, products of another shape round differently, which moves GLoRIA's gradients by
    1.6e-6 of the largest one.
    """
    objective, (images, texts) = build(variant, torch.float64), pairs(dtype=torch.float64)
    garbage = torch.full((5, 3, DIM), float("nan"), dtype=torch.float64)
    tokens = torch.cat([texts.tokens.detach().masked_fill(~texts.mask[..., None], float("nan")), garbage], 1)
    mask = torch.cat([texts.mask, torch.zeros(5, 3, dtype=torch.bool)], 1)
    padded = replace(texts.padded(7), tokens=tokens.requires_grad_(), mask=mask)
    assert_close(objective(images, padded), objective(images, texts))
    assert_close(objective.score(images, padded), objective.score(images, texts))
    assert_close(objective.text_to_image_score(images, padded), objective.text_to_image_score(images, texts))
    assert_close(objective.align(images, padded)[:, :4], objective.align(images, texts))
    before, after = gradients(objective, images, texts), gradients(objective, images, padded)
    assert (after["texts.tokens"][~mask] == 0).all()
    after["texts.tokens"] = after["texts.tokens"][:, :4]
    assert_close(after, before)


def test_padded_patches_change_nothing_whatever_they_hold(variant: str) -> None:
    """Images of one shape have the same loss, gradients, scores and maps on a larger grid that is filled with NaN.

    Contexts that are drawn at random depend on the number of patches. The losses of LOUPE with such contexts differ.
    """
    objective, (images, texts) = build(variant, torch.float64), variants.pairs(grid=(3, 4), dtype=torch.float64)
    own = torch.zeros(5, 6, dtype=torch.bool)
    own[:3, :4] = True

    def on_grid(x: torch.Tensor, value: float) -> torch.Tensor:
        return x.new_full((*x.shape[:-1], 30), value).masked_scatter(own.flatten(), x.detach())

    patches = on_grid(images.patches.mT, float("nan")).mT.contiguous().requires_grad_()
    mask, regions = own.flatten().expand(5, -1), on_grid(images.regions, 0.0)
    larger = replace(images, patches=patches, grid=(5, 6), mask=mask, regions=regions)
    assert_close(objective.score(larger, texts), objective.score(images, texts))
    assert_close(objective.text_to_image_score(larger, texts), objective.text_to_image_score(images, texts))
    maps = objective.align(larger, texts)
    assert_close(maps[..., own.flatten()], objective.align(images, texts))
    assert (maps[..., ~own.flatten()] == 0).all()
    if variant.startswith("LOUPE-estimator"):
        return
    assert_close(objective(larger, texts), objective(images, texts))
    before, after = gradients(objective, images, texts), gradients(objective, larger, texts)
    assert (after["images.patches"][:, ~own.flatten()] == 0).all()
    after["images.patches"] = after["images.patches"][:, own.flatten()]
    assert_close(after, before)


def test_images_of_several_shapes_are_those_alone(variant: str) -> None:
    """Scores and maps are those of each image without padding, and no loss or gradient depends on the padding."""
    objective, (images, texts) = build(variant, torch.float64), variants.pairs(grid=(3, 4), dtype=torch.float64)
    some, more = padded(images, (3, 4)), padded(images, (5, 6), 7.0)
    scores, maps = objective.score(more, texts), objective.align(more, texts)
    text_scores = objective.text_to_image_score(more, texts)
    for i in range(5):
        one = alone(some, i)
        assert_close(objective.score(one, texts)[0], scores[i])
        assert_close(objective.text_to_image_score(one, texts)[0], text_scores[i])
        assert_close(objective.align(one, texts[i : i + 1])[0], maps[i][:, more.mask[i]])
    if variant.startswith("LOUPE-estimator"):
        return
    assert_close(objective(more, texts), objective(some, texts))
    before, after = gradients(objective, some, texts), gradients(objective, more, texts)
    (wide, mask), (narrow, own) = (after.pop("images.patches"), more.mask), (before.pop("images.patches"), some.mask)
    assert_close(wide[mask], narrow[own])
    assert not wide[~mask].any()
    assert_close(after, before)


def test_order_of_patches_moves_only_the_columns_of_the_map(variant: str) -> None:
    objective, (images, texts) = build(variant), pairs()
    order = torch.randperm(PATCHES, generator=torch.Generator().manual_seed(1))
    shuffled = replace(images, patches=images.patches[:, order], regions=images.regions[..., order])
    if variant.startswith(SPATIAL):
        assert not torch.equal(total(objective(shuffled, texts)), total(objective(images, texts)))
    else:
        assert_close(objective(shuffled, texts), objective(images, texts))
    assert_close(objective.score(shuffled, texts), objective.score(images, texts))
    assert_close(objective.align(shuffled, texts), objective.align(images, texts)[..., order])


def test_order_of_the_batch_is_irrelevant(variant: str) -> None:
    """The loss of a permuted batch is the same, and each pair keeps its map."""
    objective, (images, texts) = build(variant), pairs()
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_close(objective(images[order], texts[order]), objective(images, texts))
    assert_close(objective.align(images[order], texts[order]), objective.align(images, texts)[order])


def test_score_and_map_of_a_pair_need_no_other_pair(variant: str) -> None:
    """Retrieval can therefore be computed in blocks."""
    objective, (images, texts) = build(variant), pairs()
    scores, rows = objective.score(images, texts), objective.align(images, texts)
    text_scores = objective.text_to_image_score(images, texts)
    for i in range(5):
        for t in range(5):
            assert_close(objective.score(images[i : i + 1], texts[t : t + 1])[0, 0], scores[i, t])
            assert_close(objective.text_to_image_score(images[i : i + 1], texts[t : t + 1])[0, 0], text_scores[i, t])
        assert_close(objective.align(images[i : i + 1], texts[i : i + 1])[0], rows[i])


def test_score_needs_patches_and_tokens_only_if_it_says_so(variant: str) -> None:
    """`uses_local_features` decides whether retrieval keeps every token of a data set or one vector per sample."""
    objective, (images, texts) = build(variant), pairs()
    (other_images, other_texts) = pairs(seed=1)
    images_, texts_ = replace(images, patches=other_images.patches), replace(texts, tokens=other_texts.tokens)
    same = torch.equal(objective.score(images_, texts_), objective.score(images, texts))
    assert same != objective.uses_local_features


@pytest.mark.parametrize(("budget", "mask"), [(1, False), (40, False), (300, False), (40, True)])
def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch, variant: str, budget: int, mask: bool) -> None:
    """Loss, gradients and scores are the same if a batch is scored one pair, part of a row or some rows at a time."""
    objective, (images, texts) = build(variant, torch.float64), pairs(dtype=torch.float64)
    if mask:
        images = padded(images, (4, 5))
    expected = gradients(objective, images, texts) | objective(images, texts)
    scores = objective.score(images[:3], texts)
    monkeypatch.setattr(contrast, "BUDGET", budget)
    assert_close(gradients(objective, images, texts) | objective(images, texts), expected)
    assert_close(objective.score(images[:3], texts), scores)


def test_learns_four_free_pairs(variant: str) -> None:
    """Thirty Adam steps on free embeddings reduce the loss by at least 30 %: the gradient points downhill.

    LOUPE's estimator networks have a smaller learning rate. With 0.05 their own loss rises even if the embeddings are
    fixed, from 0.6 to 5 after thirty steps, and exceeds the sum of the other terms.
    """
    objective, (images, texts) = build(variant), pairs(batch=4)
    leaves = [images.pooled, images.patches, images.views, texts.pooled, texts.tokens]
    networks = [p for name, p in objective.named_parameters() if name.startswith(ESTIMATORS)]
    leaves += [p for name, p in objective.named_parameters() if not name.startswith(ESTIMATORS)]
    optimizer = torch.optim.Adam([{"params": leaves, "lr": 0.05}, {"params": networks, "lr": 0.01}])
    losses = []
    for _ in range(31):
        loss = total(objective(images, texts))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("complete", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_gradients_equal_finite_differences(variant: str, complete: bool) -> None:
    """The Jacobian is compared in one random direction, and with default options in every entry if `complete`.

    No image has fewer hard negatives than another, because a small number in place of padding is a hard negative.
    """
    objective, (images, texts) = build(variant, torch.float64), variants.pairs(2, (1, 3), 4, dtype=torch.float64)
    images = replace(images, negatives=images.region_texts.detach().roll(1, 0)[:, :1].requires_grad_())

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        pooled, patches, negatives, region_texts, views, text, tokens = tensors
        changed = replace(images, pooled=pooled, patches=patches, negatives=negatives, region_texts=region_texts)
        changed = replace(changed, views=views)
        return total(objective(changed, replace(texts, pooled=text, tokens=tokens)))

    inputs = (images.pooled, images.patches, images.negatives, images.region_texts, images.views)
    inputs += (texts.pooled, texts.tokens)
    if variant.startswith(STOPPED):
        pytest.skip("a stopped gradient differs from finite differences on purpose")
    if complete and "-" in variant:
        pytest.skip("one direction for options that are not the default")
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=not complete)


def test_computes_in_full_precision_under_autocast(variant: str) -> None:
    """bf16 inputs under autocast give the same float32 results as their float32 copies without autocast."""
    objective, (images, texts) = build(variant), pairs()
    images, texts = (_as(torch.bfloat16, side) for side in (images, texts))
    wide_images, wide_texts = (_as(torch.float32, side) for side in (images, texts))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms, scores = objective(images, texts), objective.score(images, texts)
        rows = objective.align(images, texts)
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert_close(terms, objective(wide_images, wide_texts))
    assert_close(scores, objective.score(wide_images, wide_texts))
    assert_close(rows, objective.align(wide_images, wide_texts))


def _as(dtype: torch.dtype, side: Images | Texts) -> Images | Texts:
    return map_tensors(side, lambda x: x.to(dtype) if x.is_floating_point() else x)


EDGES = {
    "constant image": lambda i, t: (replace(i, patches=i.patches[:, :1].expand(-1, PATCHES, -1)), t),
    "zero image": lambda i, t: (replace(i, pooled=i.pooled * 0, patches=i.patches * 0), t),
    "one token each": lambda i, t: (i, replace(t, mask=torch.arange(4).expand(5, 4) < 1)),
    "an empty caption": lambda i, t: (i, replace(t, mask=t.mask & (torch.arange(5) != 2)[:, None])),
    "only empty captions": lambda i, t: (i, replace(t, mask=torch.zeros_like(t.mask))),
    "no token at all": lambda i, t: (i, replace(t, tokens=t.tokens[:, :0], mask=t.mask[:, :0], ids=t.ids[:, :0])),
    "zero text": lambda i, t: (i, replace(t, pooled=t.pooled * 0, tokens=t.tokens * 0)),
    "a batch of one": lambda i, t: (i[:1], t[:1]),
    "one patch": lambda i, t: (replace(i, patches=i.patches[:, :1], grid=(1, 1), regions=i.regions[..., :1]), t),
    "images of several shapes": lambda i, t: (padded(i, (4, 5)), t),
    "identical pairs": lambda i, t: (i[torch.zeros(5, dtype=torch.long)], t[torch.zeros(5, dtype=torch.long)]),
    "huge embeddings": lambda i, t: (replace(i, pooled=i.pooled * 1e4, patches=i.patches * 1e4), t),
}


@pytest.mark.parametrize("edge", EDGES)
def test_survives(variant: str, edge: str) -> None:
    """Degenerate inputs give a finite loss and finite, bounded gradients."""
    objective, (images, texts) = build(variant), pairs()
    images, texts = EDGES[edge](images, texts)
    assert total(objective(images, texts)).isfinite()
    assert objective.align(images, texts).isfinite().all()
    assert objective.align(images, texts).shape == (len(images), texts.mask.shape[1], images.patches.shape[1])
    assert objective.score(images, texts).isfinite().all()
    assert objective.text_to_image_score(images, texts).isfinite().all()
    for name, gradient in gradients(objective, images, texts).items():
        assert gradient.isfinite().all(), name
        assert gradient.abs().sum() < 1e6, name


def test_is_rebuilt_from_its_spec(variant: str) -> None:
    """The constructor call that a checkpoint stores builds the same objective again."""
    objective = build(variant)
    assert objective.spec["class_path"] == class_path(type(objective))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objective", type=Objective)
    again = parser.instantiate(parser.parse_object({"objective": objective.spec})).objective
    torch.manual_seed(0)
    again.build(DIM)
    again.load_state_dict(objective.state_dict())
    assert again.spec == objective.spec
    images, texts = pairs()
    torch.manual_seed(0)
    assert_close(again(images, texts), objective(images, texts))


def test_same_input_same_bits(variant: str) -> None:
    objective, (images, texts) = build(variant), pairs()
    first, second = gradients(objective, images, texts), gradients(objective, images, texts)
    assert all(torch.equal(first[name], second[name]) for name in first)


def _later_ranks_shorter(texts: Texts) -> Texts:
    """The texts with all captions except the first two shortened, so that ranks have different numbers of tokens."""
    mask = texts.mask.clone()
    mask[2:, 3:] = False
    mask[3, 1:] = False
    assert mask[:2].sum() != mask[2:4].sum()
    return replace(texts, mask=mask, ids=texts.ids.masked_fill(~mask, -1))


def _rank_gradients(rank: int, variant: str, how: distributed.Exchange, mask: bool = False) -> dict[str, torch.Tensor]:
    """The gradients that DDP would leave on this rank: those of its own slice, and the averaged ones of parameters.

    With `mask`, the images differ in shape and are padded.
    """
    images, texts = pairs(batch=2 * dist.get_world_size(), dtype=torch.float64)
    images = padded(images, (4, 5)) if mask else images
    texts = _later_ranks_shorter(texts)
    mine = slice(2 * rank, 2 * rank + 2)
    length = 4 if rank == 0 else 3  # rank 0 has the longest caption; the other ranks have less padding
    images, texts = (map_tensors(side[mine], lambda x: x.detach()) for side in (images, texts))
    texts = replace(texts, tokens=texts.tokens[:, :length], mask=texts.mask[:, :length], ids=texts.ids[:, :length])
    for x in (images.pooled, images.patches, images.negatives, images.region_texts, images.views):
        x.requires_grad_()
    for x in (texts.pooled, texts.tokens):
        x.requires_grad_()
    objective = build(variant, torch.float64)
    with distributed.exchange(how):
        found = gradients(objective, images, texts)
        found["loss"] = total(objective(images, texts)).detach()
    found["texts.tokens"] = torch.nn.functional.pad(found["texts.tokens"], (0, 0, 0, 4 - length))
    inputs = ("images.", "texts.")
    return {
        n: distributed.gather(x / dist.get_world_size())
        if n.startswith(inputs)
        else distributed.gather(x[None]).mean(0)
        for n, x in found.items()
    }


@pytest.mark.parametrize("how", ["all_gather", "ring"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_equal_one(variant: str, ranks: int, how: distributed.Exchange) -> None:
    """N processes with two pairs each give the loss and all gradients of one process with 2N pairs.

    The captions of the first rank are padded to a greater length than those of the others.
    """
    images, texts = pairs(batch=2 * ranks, dtype=torch.float64)
    texts = _later_ranks_shorter(texts)
    one = build(variant, torch.float64)
    expected = gradients(one, images, texts) | {"loss": total(one(images, texts)).detach()}
    for found in on_ranks(_rank_gradients, variant, how, ranks=ranks):
        assert_close(found, expected)


def test_ring_in_tiles_equals_one(variant: str) -> None:
    """The ring also equals one process if the texts of a rank do not fit into one tile and are sent in parts.

    The images of this test differ in shape and are padded.
    """
    images, texts = pairs(batch=4, dtype=torch.float64)
    images, texts = padded(images, (4, 5)), _later_ranks_shorter(texts)
    one = build(variant, torch.float64)
    expected = gradients(one, images, texts) | {"loss": total(one(images, texts)).detach()}
    assert_close(on_ranks(_rank_gradients_in_tiles, variant)[1], expected)


def _rank_gradients_in_tiles(rank: int, variant: str) -> dict[str, torch.Tensor]:
    before, contrast.BUDGET = contrast.BUDGET, 1
    found = _rank_gradients(rank, variant, "ring", mask=True)
    contrast.BUDGET = before
    return found
