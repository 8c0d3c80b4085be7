"""Tests K-Precision against a naive loop, and retrieval when scores tie."""

import math

import pytest
import torch

from patchword.features import Images, Texts
from patchword.metrics.k_precision import KPrecision, expected_precision, precisions, retrieved
from patchword.ops import cosine
from tests.metrics.examples import pairs


def pooled_score(images: Images, texts: Texts):
    return cosine(images.pooled, texts.pooled)


def random_words(captions: list[int], seed: int, least: int) -> dict[int, list[list[str]]]:
    """Each caption of each sample has `least` to 6 words out of ten letters; ids are 3, 6, 9 ..."""
    generator = torch.Generator().manual_seed(seed)
    words = {}
    for i, count in enumerate(captions):
        sizes = torch.randint(least, 7, (count,), generator=generator).tolist()
        words[3 * i + 3] = [
            ["abcdefghij"[k] for k in torch.randint(10, (size,), generator=generator).tolist()] for size in sizes
        ]
    return words


def test_k_precision_equals_a_naive_loop() -> None:
    """The metric equals the loop for unordered batches with repeats; captions without nouns are left out."""
    counts = [2, 1, 3, 2, 4, 1, 2]
    images, texts, own = pairs(7, counts)
    words, described = random_words(counts, 1, 1), random_words(counts, 2, 0)
    metric = KPrecision(pooled_score, words, described, block=3)
    ids = torch.tensor(sorted(words))
    for batch in ([5, 6], [2, 3, 4, 5], [0, 1]):
        mine = torch.isin(own, torch.tensor(batch)).nonzero()[:, 0]
        place = torch.tensor([batch.index(int(i)) for i in own[mine]])
        metric.update(images[torch.tensor(batch)], texts[mine], place, ids[batch])
    found = metric.compute()

    scores = pooled_score(images, texts)
    flat = {name: [c for i in sorted(of) for c in of[i]] for name, of in (("", words), ("_na", described))}
    for name, captions in flat.items():
        shares, chances = [], []
        for i, sample in enumerate(sorted(words)):
            truth = {word for caption in words[sample] for word in caption}
            top = captions[int(scores[i].argmax())]
            if top:
                shares.append(len([word for word in top if word in truth]) / len(top))
            chances += [len([w for w in c if w in truth]) / len(c) for c in captions if c]
        assert found[f"k_precision{name}"] == pytest.approx(sum(shares) / len(shares))
        assert found[f"chance_k_precision{name}"] == pytest.approx(sum(chances) / len(chances))
    assert (found["images"], found["captions"]) == (7, 15)
    assert len(shares) == found["images_na"]


def test_a_tie_retrieves_a_wrong_caption() -> None:
    """Constant scores and NaN do not get a high K-Precision."""
    own = torch.tensor([0, 0, 1])
    scores = torch.tensor([[0.5, 0.4, 0.3], [0.1, 0.7, 0.7]])
    assert retrieved(scores, own).tolist() == [0, 1]
    assert retrieved(torch.zeros(2, 3), own).tolist() == [2, 0]
    nan = torch.tensor([[0.5, 0.4, math.nan], [math.nan, 0.1, 0.9]])
    assert retrieved(nan, own).tolist() == [2, 0]


def test_words_that_repeat_count_each_time() -> None:
    assert precisions([["a", "a", "b"], []], [{"a"}, {"b"}]) == pytest.approx([2 / 3])
    assert expected_precision([["a", "a", "b"], []], [{"a"}, {"b"}]) == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert math.isnan(expected_precision([[]], [{"a"}]))
