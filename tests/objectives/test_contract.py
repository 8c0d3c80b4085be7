"""One contract for every objective: what the trainer, the metrics and the maps rely on."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from jsonargparse import ArgumentParser
from torch.testing import assert_close

from patchword import Images, Objective, Texts, contrast, distributed
from patchword.spec import class_path
from tests.objectives.variants import DIM, SPATIAL, STOPPED, VARIANTS, build, gradients, pairs
from tests.ranks import on_ranks

pytestmark = pytest.mark.parametrize("variant", VARIANTS)


def total(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms.values())).sum()


def test_answers_have_the_documented_form(variant: str) -> None:
    """Terms are finite scalars that sum to a number, `score` is [I, T] for I != T, `align` is [B, L, P]."""
    objective, (images, texts) = build(variant), pairs()
    terms = objective(images, texts)
    assert terms
    assert all(term.shape == () and term.isfinite() for term in terms.values())
    assert objective.score(images[:3], texts).shape == (3, 5)
    assert objective.text_score(images[:3], texts).shape == (3, 5)
    rows = objective.align(images, texts)
    assert rows.shape == (5, 4, 6)
    assert (rows[~texts.mask] == 0).all()
    assert rows[texts.mask].abs().sum(-1).gt(0).all()


def test_padding_changes_nothing_whatever_it_holds(variant: str) -> None:
    """Longer padding, filled with NaN, leaves loss, gradients, scores and maps as they were."""
    objective, (images, texts) = build(variant), pairs()
    garbage = torch.full((5, 3, DIM), float("nan"))
    tokens = torch.cat([texts.tokens.detach().masked_fill(~texts.mask[..., None], float("nan")), garbage], 1)
    mask = torch.cat([texts.mask, torch.zeros(5, 3, dtype=torch.bool)], 1)
    padded = Texts(texts.pooled, tokens.requires_grad_(), mask)
    assert_close(objective(images, padded), objective(images, texts))
    assert_close(objective.score(images, padded), objective.score(images, texts))
    assert_close(objective.text_score(images, padded), objective.text_score(images, texts))
    assert_close(objective.align(images, padded)[:, :4], objective.align(images, texts))
    before, after = gradients(objective, images, texts), gradients(objective, images, padded)
    assert (after["texts.tokens"][~mask] == 0).all()
    after["texts.tokens"] = after["texts.tokens"][:, :4]
    assert_close(after, before)


def test_order_of_patches_moves_only_the_columns_of_the_map(variant: str) -> None:
    objective, (images, texts) = build(variant), pairs()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    shuffled = replace(images, patches=images.patches[:, order])
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
    """This is what allows retrieval to be computed in blocks."""
    objective, (images, texts) = build(variant), pairs()
    scores, rows = objective.score(images, texts), objective.align(images, texts)
    text_scores = objective.text_score(images, texts)
    for i in range(5):
        for t in range(5):
            assert_close(objective.score(images[i : i + 1], texts[t : t + 1])[0, 0], scores[i, t])
            assert_close(objective.text_score(images[i : i + 1], texts[t : t + 1])[0, 0], text_scores[i, t])
        assert_close(objective.align(images[i : i + 1], texts[i : i + 1])[0], rows[i])


def test_score_needs_patches_and_tokens_only_if_it_says_so(variant: str) -> None:
    """What decides whether retrieval keeps every token of a data set or one vector per sample."""
    objective, (images, texts) = build(variant), pairs()
    (other_images, other_texts) = pairs(seed=1)
    images_, texts_ = replace(images, patches=other_images.patches), replace(texts, tokens=other_texts.tokens)
    same = torch.equal(objective.score(images_, texts_), objective.score(images, texts))
    assert same != objective.local_score


@pytest.mark.parametrize("budget", [1, 40, 300])
def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch, variant: str, budget: int) -> None:
    """A batch that is scored in parts, one pair, parts of a row or uneven rows at a time: loss, gradients, scores."""
    objective, (images, texts) = build(variant, torch.float64), pairs(dtype=torch.float64)
    expected = gradients(objective, images, texts) | objective(images, texts)
    scores = objective.score(images[:3], texts)
    monkeypatch.setattr(contrast, "BUDGET", budget)
    assert_close(gradients(objective, images, texts) | objective(images, texts), expected)
    assert_close(objective.score(images[:3], texts), scores)


def test_learns_four_free_pairs(variant: str) -> None:
    """Thirty Adam steps on free embeddings cut the loss by at least 30 %: the gradient points downhill."""
    objective, (images, texts) = build(variant), pairs(batch=4)
    leaves = [images.pooled, images.patches, texts.pooled, texts.tokens, *objective.parameters()]
    optimizer = torch.optim.Adam(leaves, lr=0.05)
    losses = []
    for _ in range(31):
        loss = total(objective(images, texts))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_gradients_equal_finite_differences(variant: str) -> None:
    """Every entry of the Jacobian with default options; with others one random direction of it."""
    objective, (images, texts) = build(variant, torch.float64), pairs(batch=3, dtype=torch.float64)

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        pooled, patches, text, tokens = tensors
        return total(objective(Images(pooled, patches, images.grid), Texts(text, tokens, texts.mask)))

    inputs = (images.pooled, images.patches, texts.pooled, texts.tokens)
    if variant.startswith(STOPPED):
        pytest.skip("a stopped gradient differs from finite differences on purpose")
    assert torch.autograd.gradcheck(loss, inputs, fast_mode="-" in variant)


def test_computes_in_full_precision_under_autocast(variant: str) -> None:
    """bf16 inputs under autocast give what their float32 copies give without it, in float32."""
    objective, (images, texts) = build(variant), pairs()
    images = Images(images.pooled.bfloat16(), images.patches.bfloat16(), images.grid)
    texts = Texts(texts.pooled.bfloat16(), texts.tokens.bfloat16(), texts.mask)
    wide_images = Images(images.pooled.float(), images.patches.float(), images.grid)
    wide_texts = Texts(texts.pooled.float(), texts.tokens.float(), texts.mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms, scores = objective(images, texts), objective.score(images, texts)
        rows = objective.align(images, texts)
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert_close(terms, objective(wide_images, wide_texts))
    assert_close(scores, objective.score(wide_images, wide_texts))
    assert_close(rows, objective.align(wide_images, wide_texts))


EDGES = {
    "constant image": lambda i, t: (replace(i, patches=i.patches[:, :1].expand(-1, 6, -1)), t),
    "zero image": lambda i, t: (Images(i.pooled * 0, i.patches * 0, i.grid), t),
    "one token each": lambda i, t: (i, replace(t, mask=torch.arange(4).expand(5, 4) < 1)),
    "an empty caption": lambda i, t: (i, replace(t, mask=t.mask & (torch.arange(5) != 2)[:, None])),
    "only empty captions": lambda i, t: (i, replace(t, mask=torch.zeros_like(t.mask))),
    "zero text": lambda i, t: (i, Texts(t.pooled * 0, t.tokens * 0, t.mask)),
    "a batch of one": lambda i, t: (i[:1], t[:1]),
    "one patch": lambda i, t: (Images(i.pooled, i.patches[:, :1], (1, 1)), t),
    "identical pairs": lambda i, t: (i[torch.zeros(5, dtype=torch.long)], t[torch.zeros(5, dtype=torch.long)]),
    "huge embeddings": lambda i, t: (Images(i.pooled * 1e4, i.patches * 1e4, i.grid), t),
}


@pytest.mark.parametrize("edge", EDGES)
def test_survives(variant: str, edge: str) -> None:
    """Degenerate input gives a finite loss and finite, bounded gradients."""
    objective, (images, texts) = build(variant), pairs()
    images, texts = EDGES[edge](images, texts)
    assert total(objective(images, texts)).isfinite()
    assert objective.align(images, texts).isfinite().all()
    for name, gradient in gradients(objective, images, texts).items():
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() < 1e6, name


def test_is_rebuilt_from_its_spec(variant: str) -> None:
    """The constructor call that a checkpoint stores builds the same objective, as a configuration file would."""
    objective = build(variant)
    assert objective.spec["class_path"] == class_path(type(objective))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objective", type=Objective)
    again = parser.instantiate(parser.parse_object({"objective": objective.spec})).objective
    torch.manual_seed(0)
    again.setup(DIM)
    again.load_state_dict(objective.state_dict())
    assert again.spec == objective.spec
    images, texts = pairs()
    torch.manual_seed(0)
    assert_close(again(images, texts), objective(images, texts))


def test_same_input_same_bits(variant: str) -> None:
    objective, (images, texts) = build(variant), pairs()
    first, second = gradients(objective, images, texts), gradients(objective, images, texts)
    assert all(torch.equal(first[name], second[name]) for name in first)


def _later_ranks_shorter(mask: torch.Tensor) -> torch.Tensor:
    """The mask, all but two captions shortened to fit a shorter padding: the ranks' numbers of tokens differ."""
    mask = mask.clone()
    mask[2:, 3:] = False
    mask[3, 1:] = False
    assert mask[:2].sum() != mask[2:4].sum()
    return mask


def _rank_gradients(rank: int, variant: str, how: distributed.Exchange) -> dict[str, torch.Tensor]:
    """What DDP would leave on this rank: its own slice's gradients, parameters' averaged."""
    images, texts = pairs(batch=2 * dist.get_world_size(), dtype=torch.float64)
    texts = replace(texts, mask=_later_ranks_shorter(texts.mask))
    mine = slice(2 * rank, 2 * rank + 2)
    length = 4 if rank == 0 else 3  # rank 0 holds the longest caption, the others are padded less
    images = Images(*(x[mine].detach().requires_grad_() for x in (images.pooled, images.patches)), images.grid)
    tokens = texts.tokens[mine, :length].detach().requires_grad_()
    texts = Texts(texts.pooled[mine].detach().requires_grad_(), tokens, texts.mask[mine, :length])
    objective = build(variant, torch.float64)
    with distributed.exchange(how):
        found = gradients(objective, images, texts)
        found["loss"] = total(objective(images, texts)).detach()
    found["texts.tokens"] = torch.nn.functional.pad(found["texts.tokens"], (0, 0, 0, 4 - length))
    inputs = ("images.pooled", "images.patches", "texts.pooled", "texts.tokens")
    return {
        n: distributed.gather(x / dist.get_world_size()) if n in inputs else distributed.gather(x[None]).mean(0)
        for n, x in found.items()
    }


@pytest.mark.parametrize("how", ["gather", "ring"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_equal_one(variant: str, ranks: int, how: distributed.Exchange) -> None:
    """N processes with two pairs each give the loss and all gradients of one process with 2N.

    The captions of all but the first rank are padded less than those of the first.
    """
    images, texts = pairs(batch=2 * ranks, dtype=torch.float64)
    texts = replace(texts, mask=_later_ranks_shorter(texts.mask))
    one = build(variant, torch.float64)
    expected = gradients(one, images, texts) | {"loss": total(one(images, texts)).detach()}
    for found in on_ranks(_rank_gradients, variant, how, ranks=ranks):
        assert_close(found, expected)


def test_ring_in_tiles_equals_one(variant: str) -> None:
    """The same where a rank's share does not fit in one tile, so that parts of it travel on their own."""
    images, texts = pairs(batch=4, dtype=torch.float64)
    texts = replace(texts, mask=_later_ranks_shorter(texts.mask))
    one = build(variant, torch.float64)
    expected = gradients(one, images, texts) | {"loss": total(one(images, texts)).detach()}
    assert_close(on_ranks(_rank_gradients_in_tiles, variant)[1], expected)


def _rank_gradients_in_tiles(rank: int, variant: str) -> dict[str, torch.Tensor]:
    before, contrast.BUDGET = contrast.BUDGET, 1
    found = _rank_gradients(rank, variant, "ring")
    contrast.BUDGET = before
    return found
