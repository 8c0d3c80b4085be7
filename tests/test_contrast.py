"""Tests of losses over all pairs: tiles and ranks do not change them, and memory is limited to that of a tile."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid
from torch.testing import assert_close

from patchword import Images, Texts, contrast, distributed
from patchword.bench.measure import give_back, reset_peak, resident
from patchword.contrast import LogitScale, info_nce, log_sum_exps, sigmoid_loss, tiled, triplet_loss
from patchword.objectives import FILIP
from patchword.ops import cosine
from tests.objectives.variants import pairs
from tests.ranks import on_ranks


def plain_info_nce(images: Tensor, texts: Tensor) -> Tensor:
    logits, own = 5.0 * cosine(images, texts), torch.arange(len(images))
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def plain_sigmoid(images: Tensor, texts: Tensor) -> Tensor:
    logits, sign = 5.0 * cosine(images, texts) - 2.0, 2 * torch.eye(len(images)) - 1
    return -logsigmoid(sign * logits).sum() / len(images)


def from_log_sum_exps(images: Tensor, texts: Tensor, pair_size: int | None = None) -> Tensor:
    over_texts, over_images = log_sum_exps(cosine, images, texts, 5.0, pair_size)
    own = 5.0 * torch.cosine_similarity(images, texts)
    return ((over_texts + over_images) / 2 - own[:, None]).mean()


def of_largest(images: Tensor, texts: Tensor, pair_size: int | None = None) -> Tensor:
    return contrast.largest(cosine, images, texts, 3, pair_size).logsumexp(1).mean()


def plain_of_largest(images: Tensor, texts: Tensor) -> Tensor:
    return cosine(images, texts).sort(1, descending=True).values[:, :3].logsumexp(1).mean()


def plain_triplet(images: Tensor, texts: Tensor) -> Tensor:
    s = cosine(images, texts)
    total = s.new_zeros(())
    for side in (s, s.T):
        for i, row in enumerate(side):
            wrong = torch.stack([row[j] for j in range(len(row)) if j != i])
            total = total + (0.5 + wrong.max() - row[i]).clamp_min(0) / len(side)
    return total


LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "info_nce": (lambda *x, **k: info_nce(cosine, *x, 5.0, **k), plain_info_nce),
    "log_sum_exps": (from_log_sum_exps, plain_info_nce),
    "largest": (of_largest, plain_of_largest),
    "triplet": (lambda *x, **k: triplet_loss(cosine, *x, 0.5, **k), plain_triplet),
    "sigmoid": (lambda *x, **k: sigmoid_loss(cosine, *x, 5.0, -2.0, **k), plain_sigmoid),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("budget", [1, 3, 5, 7, 12, 1000])
def test_tiles_change_neither_loss_nor_gradient(monkeypatch: pytest.MonkeyPatch, loss: str, budget: int) -> None:
    """Tiles are one pair, part of a row, some rows, or the complete matrix."""
    tiles, plain = LOSSES[loss]
    torch.manual_seed(0)
    x, y = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    monkeypatch.setattr(contrast, "BUDGET", budget)
    found, expected = tiles(x, y), plain(x, y)
    assert_close(found, expected)
    assert_close(torch.autograd.grad(found, [x, y]), torch.autograd.grad(expected, [x, y]))


@pytest.mark.parametrize("budget", [1, 7, 1000])
def test_log_sum_exps_of_several_texts(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    """Each of an image's texts competes with the texts of other images, and its images are all images."""
    monkeypatch.setattr(contrast, "BUDGET", budget)
    torch.manual_seed(0)
    x, y = torch.randn(4, 8), torch.randn(12, 8)
    over_texts, over_images = log_sum_exps(cosine, x, y, 5.0)
    z = 5.0 * cosine(x, y)
    for i in range(4):
        for j in range(3):
            candidates = [z[i, t] for t in range(12) if t == 3 * i + j or t // 3 != i]
            assert_close(over_texts[i, j], torch.stack(candidates).logsumexp(0))
            assert_close(over_images[i, j], z[:, 3 * i + j].logsumexp(0))


@pytest.mark.parametrize("budget", [1, 7, 1000])
def test_largest_scores_of_few_texts_are_all(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    """They are sorted, and there can be fewer texts in a tile, or in all, than are asked for."""
    monkeypatch.setattr(contrast, "BUDGET", budget)
    torch.manual_seed(0)
    x, y = torch.randn(4, 8), torch.randn(4, 8)
    assert_close(contrast.largest(cosine, x, y, 9), cosine(x, y).sort(1, descending=True).values)
    assert_close(contrast.largest(cosine, x, y, 2), cosine(x, y).sort(1, descending=True).values[:, :2])


@pytest.mark.parametrize("budget", [1, 7, 1000])
def test_hardest_negatives_of_several_texts(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    """An image's other texts are no negatives, also if tiles separate them; without other images the loss is 0."""
    monkeypatch.setattr(contrast, "BUDGET", budget)
    torch.manual_seed(0)
    x, y = torch.randn(4, 8), torch.randn(12, 8)
    s, expected = cosine(x, y), torch.zeros(())
    for t in range(12):
        i = t // 3
        wrong_text = max(s[i, j] for j in range(12) if j // 3 != i)
        wrong_image = max(s[h, t] for h in range(4) if h != i)
        expected = expected + ((0.5 + wrong_text - s[i, t]).relu() + (0.5 + wrong_image - s[i, t]).relu()) / 12
    assert_close(triplet_loss(cosine, x, y, 0.5), expected)
    assert triplet_loss(cosine, x[:1], y[:3], 0.5) == 0


def several(k: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The plain sigmoid loss with `k` own texts for each image."""

    def loss(images: Tensor, texts: Tensor) -> Tensor:
        logits = 5.0 * cosine(images, texts) - 2.0
        total = logits.new_zeros(())
        for i in range(len(images)):
            for j in range(len(texts)):
                total = total - logsigmoid(logits[i, j] if j // k == i else -logits[i, j])
        return total / len(images)

    return loss


@pytest.mark.parametrize("budget", [1, 3, 5, 7, 12, 1000])
def test_several_texts_of_an_image_are_all_its_own(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    """The result is the same if tiles separate the texts of one image."""
    torch.manual_seed(0)
    x, y = torch.randn(4, 8, requires_grad=True), torch.randn(12, 8, requires_grad=True)
    monkeypatch.setattr(contrast, "BUDGET", budget)
    found, expected = sigmoid_loss(cosine, x, y, 5.0, -2.0), several(3)(x, y)
    assert_close(found, expected)
    assert_close(torch.autograd.grad(found, [x, y]), torch.autograd.grad(expected, [x, y]))


def test_texts_that_cannot_be_shared_out_are_refused() -> None:
    """The number of texts must be a multiple of the number of images."""
    with pytest.raises(ValueError, match=r"5 texts .* 3 images"):
        sigmoid_loss(cosine, torch.randn(3, 8), torch.randn(5, 8), 5.0, -2.0)


def _several_on_rank(rank: int, how: distributed.Exchange) -> list[Tensor]:
    """The loss and the gradients of this rank's three images with two texts each, in tiles of five pairs."""
    torch.manual_seed(0)
    x = torch.randn(6, 8)[3 * rank : 3 * rank + 3].clone().requires_grad_()
    y = torch.randn(12, 8)[6 * rank : 6 * rank + 6].clone().requires_grad_()
    before, contrast.BUDGET = contrast.BUDGET, 5
    with distributed.exchange(how):
        value = sigmoid_loss(cosine, x, y, 5.0, -2.0)
        found = torch.autograd.grad(value, [x, y])
    contrast.BUDGET = before
    return [distributed.gather(value.detach()[None]).mean(), *(distributed.gather(g / 2) for g in found)]


@pytest.mark.parametrize("how", ["all_gather", "ring"])
def test_several_texts_on_two_ranks_equal_the_whole_on_one(how: distributed.Exchange) -> None:
    """The texts of the second rank start after all texts of the first one."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 8, requires_grad=True), torch.randn(12, 8, requires_grad=True)
    expected = several(2)(x, y)
    for value, dx, dy in on_ranks(_several_on_rank, how):
        assert_close(value, expected.detach())
        assert_close((dx, dy), torch.autograd.grad(expected, [x, y], retain_graph=True))


def _on_rank(rank: int, loss: str) -> list[Tensor]:
    """The mean loss over ranks, and the gradients of all ranks' halves of ten pairs, in tiles of three pairs."""
    torch.manual_seed(0)
    mine = slice(5 * rank, 5 * rank + 5)
    x, y = (torch.randn(10, 8)[mine].clone().requires_grad_() for _ in range(2))
    before, contrast.BUDGET = contrast.BUDGET, 3
    value = LOSSES[loss][0](x, y)
    found = torch.autograd.grad(value, [x, y])
    contrast.BUDGET = before
    return [distributed.gather(value.detach()[None]).mean(), *(distributed.gather(g / 2) for g in found)]


@pytest.mark.parametrize("loss", LOSSES)
def test_tiles_on_two_ranks_equal_the_whole_on_one(loss: str) -> None:
    """The own pairs of the second rank are not on the main diagonal, and tiles must find them."""
    torch.manual_seed(0)
    x, y = torch.randn(10, 8, requires_grad=True), torch.randn(10, 8, requires_grad=True)
    expected = LOSSES[loss][1](x, y)
    for value, dx, dy in on_ranks(_on_rank, loss):
        assert_close(value, expected.detach())
        assert_close((dx, dy), torch.autograd.grad(expected, [x, y], retain_graph=True))


def test_tiles_of_features_reach_every_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splitting images and texts, including phrases, is the same as indexing them."""
    images, texts = pairs()
    texts = replace(texts, phrases=torch.arange(40).view(5, 2, 4))

    def sees(images: Images, texts: Texts) -> Tensor:
        assert texts.phrases is not None
        per_text = texts.tokens.sum((1, 2)) + texts.phrases.sum((1, 2)) + texts.ids.sum(1) + texts.mask.sum(1)
        return images.patches.sum((1, 2))[:, None] * per_text + images.pooled @ texts.pooled.T

    whole = tiled(sees, images, texts, 1)
    monkeypatch.setattr(contrast, "BUDGET", 30)
    assert_close(tiled(sees, images[:3], texts, 10), whole[:3])


def test_no_tile_holds_more_than_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """In both passes, the score function never gets more pairs than the budget allows.

    The backward pass scores each tile again, except for the last one.
    """
    sizes = []

    def score(x: Tensor, y: Tensor) -> Tensor:
        sizes.append(len(x) * len(y))
        return cosine(x, y)

    monkeypatch.setattr(contrast, "BUDGET", 100)
    x, y = torch.randn(16, 4, requires_grad=True), torch.randn(16, 4, requires_grad=True)
    info_nce(score, x, y, 5.0, pair_size=4).backward()
    assert max(sizes) <= 25
    assert sum(sizes) == 2 * 16 * 16 - sizes[0]


def test_tiles_fit_the_budget_without_a_pair_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default a tile has at most as many products as the budget.

    There are P L products per pair of `Images` and `Texts`, and P per pair of patches and a vector. The README's
    objective uses this default.
    """
    sizes = []
    monkeypatch.setattr(contrast, "BUDGET", 100)
    images, texts = pairs()  # 6 patches, 4 tokens

    def score(images: Images, texts: Texts) -> Tensor:
        sizes.append(24 * len(images) * len(texts))
        return (images.patches @ texts.tokens.flatten(0, 1).T).unflatten(-1, texts.mask.shape).amax((1, 3))

    def pooled(patches: Tensor, texts: Tensor) -> Tensor:
        sizes.append(6 * len(patches) * len(texts))
        return (patches @ texts.T).amax(1)

    info_nce(score, images, texts, 5.0)
    sigmoid_loss(score, images, texts, 5.0, -5.0)
    tiled(score, images, texts)
    info_nce(pooled, images.patches, texts.pooled, 5.0)
    assert max(sizes) <= 100
    assert sum(sizes) == (3 * 24 + 6) * 25


def test_scale_is_kept_in_its_range() -> None:
    """The scale stays within its limits after a step."""
    scale = LogitScale(0.07)
    with torch.no_grad():
        scale.log.fill_(9.0)
    scale.clamp_()
    assert scale().item() == pytest.approx(100)
    assert not LogitScale(0.07, learned=False).log.requires_grad
    with pytest.raises(ValueError, match="temperature must lie in"):
        LogitScale(0.001)


def _peak(rank: int, how: distributed.Exchange) -> float:
    """Peak memory in MiB of FILIP's loss and its backward pass on this rank, with texts of 8 MiB on every rank."""
    give_back()
    images = Images(torch.randn(32, 1024), torch.randn(32, 4, 1024).requires_grad_(), (2, 2))
    texts = Texts(torch.randn(32, 1024), torch.randn(32, 64, 1024).requires_grad_(), torch.ones(32, 64).bool())
    objective = FILIP()
    for _ in range(2):
        texts.tokens.grad = images.patches.grad = None
        before = reset_peak()
        with distributed.exchange(how):
            objective(images, texts)["local"].backward()
        peak = resident()
        assert before is not None
        assert peak is not None
    return (peak - before) / 2**20


@pytest.mark.skipif(reset_peak() is None, reason="this system does not report the peak memory of a process")
def test_memory_of_a_ring_does_not_grow_with_the_ranks() -> None:
    """A third rank does not increase the memory of a ring. With gathering it adds its texts and their gradients."""
    grown = {how: max(on_ranks(_peak, how, ranks=3)) - max(on_ranks(_peak, how)) for how in ("all_gather", "ring")}
    assert grown["ring"] < 3
    assert grown["all_gather"] > 12
