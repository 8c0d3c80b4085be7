"""Tests retrieval against a naive ranker and torchmetrics."""

import math
from itertools import combinations

import pytest
import torch
from torch.nn.functional import pad
from torchmetrics.retrieval import RetrievalHitRate
from torchmetrics.utilities import dim_zero_cat

from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.metrics import Retrieval
from patchword.metrics import retrieval as module
from patchword.metrics.retrieval import own_retrieval, ranks, recalls
from patchword.metrics.stored import rows
from patchword.objective import Objective
from patchword.objectives import FILIP
from patchword.ops import cosine
from tests.metrics.examples import pairs


def pooled_score(images: Images, texts: Texts):
    return cosine(images.pooled, texts.pooled)


def token_score(images: Images, texts: Texts):
    """The mean over tokens of the score of the best patch; 0 for a text without tokens."""
    best = torch.einsum("ipd,tld->itlp", images.patches, texts.tokens).amax(-1)
    return (best * texts.mask).sum(-1) / texts.mask.sum(-1).clamp_min(1)


def naive_rank(scores, right):
    """The position of the first right candidate if wrong candidates that tie are ranked first."""
    order = sorted(range(len(scores)), key=lambda c: (-scores[c], c in right))
    return 1 + next(i for i, c in enumerate(order) if c in right)


@pytest.mark.parametrize("rows", [1, 2, 256])
@pytest.mark.parametrize("levels", [3, 1000])
def test_ranks_equal_a_naive_ranker(levels, rows, monkeypatch):
    """Ranks equal the loop for several captions per image, with many ties and with few, in parts of any size."""
    monkeypatch.setattr(module, "ROWS", rows)
    generator = torch.Generator().manual_seed(levels)
    captions = [1, 3, 2, 1, 4]
    own = torch.arange(5).repeat_interleave(torch.tensor(captions))
    scores = torch.randint(levels, (5, 11), generator=generator).float()
    image_rank, text_rank = ranks(scores, own)
    for i in range(5):
        assert image_rank[i] == naive_rank(scores[i].tolist(), {t for t in range(11) if own[t] == i})
    for t in range(11):
        assert text_rank[t] == naive_rank(scores[:, t].tolist(), {int(own[t])})


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_equals_torchmetrics(k):
    """Recalls equal RetrievalHitRate for one caption per image without ties."""
    images, texts, own = pairs(30, [1] * 30)
    metric = Retrieval(pooled_score)
    metric.update(images, texts, own, torch.arange(30))
    result, scores, right = metric.compute(), pooled_score(images, texts), torch.eye(30, dtype=torch.bool)
    query = torch.arange(30)[:, None].expand(30, 30)
    for name, matrix in ("image_to_text", scores), ("text_to_image", scores.T):
        expected = RetrievalHitRate(top_k=k)(matrix.flatten(), right.flatten(), query.flatten())
        assert result[f"{name}/r@{k}"] == pytest.approx(expected.item())


def test_texts_may_rank_images_by_a_score_of_their_own():
    """FILIP has two matrices: one ranks captions, the other ranks images."""
    images, texts, own = pairs(30, [1] * 30)
    both = Retrieval(lambda i, t: (pooled_score(i, t), -pooled_score(i, t)), block=7)
    one, other = Retrieval(pooled_score), Retrieval(lambda i, t: -pooled_score(i, t))
    for metric in (both, one, other):
        metric.update(images, texts, own, torch.arange(30))
    result, forward, backward = both.compute(), one.compute(), other.compute()
    assert {n: v for n, v in result.items() if n.startswith("image_to")}.items() <= forward.items()
    assert {n: v for n, v in result.items() if n.startswith("text_to")}.items() <= backward.items()
    assert forward["text_to_image/median_rank"] != backward["text_to_image/median_rank"]


def test_constant_scores_and_nan_find_nothing():
    """A collapsed model does not get perfect recalls."""
    own = torch.arange(4)
    for scores in (torch.zeros(4, 4), torch.full((4, 4), torch.nan)):
        image_rank, text_rank = ranks(scores, own)
        assert image_rank.tolist() == text_rank.tolist() == [4] * 4
    one = torch.eye(4)
    one[2, 3] = torch.nan
    assert ranks(one, own)[0].tolist() == [1, 1, 2, 1]


def test_scores_that_differ_by_rounding_are_a_tie():
    """Two images with the same caption are not found by it, independently of rounding errors."""
    own = torch.arange(3)
    scores = torch.tensor([[0.3, 0.3, 0.1], [0.2, 0.2, 0.1], [0.1, 0.1, 0.9]])
    for noise in (0, 2e-7, -2e-7):
        image_rank, text_rank = ranks(scores + noise * torch.tensor([1.0, -1.0, 1.0]), own)
        assert image_rank.tolist() == [2, 2, 1]
        assert text_rank.tolist() == [1, 2, 1]
        image_rank, _ = ranks(scores[[0, 2]] + noise * torch.tensor([1.0, -1.0, 1.0]), torch.tensor([0, 0, 1]))
        assert image_rank.tolist() == [1, 1]  # both captions are right


def test_median_and_chance():
    """Chance equals a count of all draws; the median of an even number is the mean of the middle two."""
    own = torch.tensor([0, 0, 0, 1, 2, 2, 2])
    result = recalls(torch.tensor([1, 2, 7]), torch.tensor([1, 2, 3, 3, 1, 1, 2]), own)
    assert (result["image_to_text/median_rank"], result["text_to_image/median_rank"]) == (2, 2)
    assert recalls(torch.tensor([1, 4]), torch.tensor([1, 2]), torch.arange(2))["image_to_text/median_rank"] == 2.5
    draws = list(combinations(range(7), 5))
    hits = [sum(bool({t for t in range(7) if own[t] == i} & set(draw)) for draw in draws) for i in range(3)]
    result = recalls(torch.ones(3).long(), torch.ones(7).long(), own)
    assert result["image_to_text/chance_r@5"] == pytest.approx(sum(hits) / 3 / len(draws))
    assert result["image_to_text/chance_r@10"] == result["text_to_image/chance_r@10"] == 1
    assert result["text_to_image/chance_r@1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("score", "tokens"), [(pooled_score, False), (token_score, True)])
def test_blocks_batches_and_repeats(score, tokens):
    """Blocks, differently padded batches and repeated samples do not change the result."""
    captions = [2, 1, 3, 1, 2, 1, 1]
    images, texts, own = pairs(7, captions)
    expected = recalls(*ranks(score(images, texts), own), own)
    metric = Retrieval(score, tokens=tokens, block=3)
    for chosen in ([4, 1, 0], [2], [0, 6, 3, 5]):  # sample 0 twice
        index = [t for i in chosen for t in (own == i).nonzero()[:, 0].tolist()]
        part, counts = texts[torch.tensor(index)], torch.tensor([captions[i] for i in chosen])
        tokens_padded = pad(part.tokens, (0, 0, 0, len(chosen)), value=99.0)
        part = Texts(part.pooled, tokens_padded, pad(part.mask, (0, len(chosen))))
        batch_image = torch.arange(len(chosen)).repeat_interleave(counts)
        metric.update(images[torch.tensor(chosen)], part, batch_image, torch.tensor(chosen))
    assert metric.compute() == pytest.approx(expected)


def test_pooled_only_keeps_no_tokens():
    """Patches of 5,000 images would need gigabytes that a global score never reads."""
    images, texts, own = pairs(3, [1, 1, 1])
    metric = Retrieval(pooled_score)
    metric.update(images, texts, own, torch.arange(3))
    assert sum(x.numel() for x in metric.patches + metric.text_tokens) == 0


class Measured(Objective):
    """Counts how often the similarities of FILIP are computed."""

    uses_local_features = True

    def __init__(self):
        super().__init__()
        self.filip, self.calls = FILIP(), 0

    def forward(self, images, texts):
        return self.filip(images, texts)

    def score(self, images, texts):
        return self.scores(images, texts)[0]

    def text_to_image_score(self, images, texts):
        return self.scores(images, texts)[1]

    def scores(self, images, texts):
        self.calls += 1
        return self.filip.similarities(images, texts)

    def align(self, images, texts):
        return self.filip.align(images, texts)


def test_two_scores_are_computed_together():
    """FILIP's late interaction takes most of a test's time: it runs once per pair of blocks, not once per score."""
    images, texts, own = pairs(7, [2, 1, 3, 1, 2, 1, 1])
    objective = Measured()
    metric = own_retrieval(objective)
    metric.block = 4
    metric.update(images, texts, own, torch.arange(7))
    found = metric.compute()
    assert objective.calls == 2 * 3
    expected = [ranks(score, own)[way] for way, score in enumerate(FILIP().similarities(images, texts))]
    assert found == recalls(*expected, own)


def test_scores_of_another_form_are_refused():
    """`scores` must be a pair; the message names the objective and what it returned."""
    images, texts, _ = pairs(3, [1, 1, 1])

    class Single(Measured):
        def scores(self, images, texts):
            return self.filip.similarities(images, texts)[0]

    with pytest.raises(UserError, match=r"Single: scores returned \[3, 3\]; expected the pair \(score, text_to_image"):
        Single().scores(images, texts)


def test_only_one_block_of_patches_is_copied(monkeypatch):
    """The patches of 5,000 images take gigabytes: batches are never concatenated, and each row is copied once."""
    images, texts, own = pairs(7, [1] * 7)
    metric = Retrieval(token_score, tokens=True, block=3)
    for some in ([0, 1, 2, 3], [4, 5, 6]):
        metric.update(images[torch.tensor(some)], texts[torch.tensor(some)], torch.arange(len(some)), own[some])
    copied = []

    def measured(batches, index):
        found = rows(batches, index)
        copied.append(found.shape)
        return found

    concatenated = []
    monkeypatch.setattr(module, "rows", measured)
    monkeypatch.setattr(module, "dim_zero_cat", lambda x: concatenated.append(x) or dim_zero_cat(x))
    metric.compute()
    assert [shape[0] for shape in copied] == [3, 3, 1]
    assert not any(x is large for x in concatenated for large in (metric.patches, metric.text_tokens))


@pytest.mark.parametrize("sizes", [[3], [2, 0, 3], [1, 1, 1, 4]])
def test_rows_of_batches_equal_those_of_their_concatenation(sizes):
    """Rows are found in the right batch, in any order, repeated, and next to empty batches."""
    batches = [torch.randn(size, 2) for size in sizes]
    whole = torch.cat(batches)
    index = torch.randint(len(whole), (9,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(rows(batches, index), whole[index])
    assert rows(batches, index[:0]).shape == (0, 2)


def test_nothing_and_images_without_captions():
    with pytest.warns(UserWarning, match="before the ``update``"):
        result = Retrieval(pooled_score).compute()
    assert result["images"] == 0
    assert math.isnan(result["image_to_text/r@1"])
    images, texts, _ = pairs(3, [1, 1, 1])
    with pytest.raises(ValueError, match="at least one caption for every image"):
        Retrieval(pooled_score).update(images, texts, torch.tensor([0, 0, 1]), torch.arange(3))


def test_not_a_number_ranks_as_a_tie_that_loses():
    """A wrong score that is NaN is ranked before every right answer, and a right answer that is NaN is last."""
    generator = torch.Generator().manual_seed(0)
    own = torch.arange(6)
    scores = torch.randint(4, (6, 6), generator=generator).float()
    scores[torch.rand(6, 6, generator=generator) < 0.3] = torch.nan
    image_rank, text_rank = ranks(scores, own)
    for ranked, matrix in (image_rank, scores), (text_rank, scores.T):
        for i, row in enumerate(matrix.tolist()):
            right = -math.inf if math.isnan(row[i]) else row[i]
            others = [math.inf if math.isnan(x) else x for x in row[:i] + row[i + 1 :]]
            assert ranked[i] == 1 + sum(x >= right for x in others)


def test_order_of_captions_does_not_matter():
    """Captions in any order are assigned to their images."""
    images, texts, own = pairs(5, [2, 1, 3, 1, 2])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    metric = Retrieval(token_score, tokens=True)
    metric.update(images, texts[order], own[order], torch.arange(5))
    assert metric.compute() == pytest.approx(recalls(*ranks(token_score(images, texts), own), own))
