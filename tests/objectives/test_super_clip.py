"""Tests of SuperCLIP against a loop and open questions of re-implementations.

They detect common mistakes: tokens that count twice, padding as a class, weights of one rank only, and counts that
change in validation or are lost with a checkpoint.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from patchword import Images, Texts
from patchword.errors import UserError
from patchword.objectives import CLIP, SuperCLIP
from tests.objectives.variants import DIM, VOCABULARY, pairs
from tests.ranks import on_ranks


def built(dtype: torch.dtype = torch.float64, **options: float) -> SuperCLIP:
    torch.manual_seed(0)
    objective = SuperCLIP(vocabulary=VOCABULARY, **options)
    objective.build(DIM)
    return objective.to(dtype)


class Loop:
    """Equations (a) to (d), one caption and one token at a time, with its own counts."""

    def __init__(self) -> None:
        self.captions, self.seen = 0, dict.fromkeys(range(VOCABULARY), 0)

    def __call__(self, objective: SuperCLIP, images: Images, texts: Texts) -> float:
        captions = [{token for token in ids if token >= 0} for ids in texts.ids.tolist()]
        for caption in captions:
            self.captions += 1
            for token in caption:
                self.seen[token] += 1
        w = {token: math.log((self.captions + 1) / (count + 1)) for token, count in self.seen.items()}
        each, total = len(captions) // len(images), 0.0
        for number, caption in enumerate(captions):
            patches = images.patches[number // each]
            v = objective.norm(sum(patches) / len(patches))
            logits = (objective.classifier.weight @ v + objective.classifier.bias).tolist()
            log_sum = math.log(sum(math.exp(z) for z in logits))
            norm = sum(w[token] for token in caption)
            total -= sum(w[token] / norm * (logits[token] - log_sum) for token in caption) if norm else 0
        return total / len(captions)


@pytest.mark.parametrize("each", [1, 2])
def test_equals_loop(each: int) -> None:
    """Three batches in a row, since the weights of tokens depend on the batches before; also two texts per image."""
    objective, loop = built(), Loop()
    for seed in range(3):
        images, texts = pairs(batch=4, seed=seed, dtype=torch.float64)
        images = images[::each]
        expected = loop(objective, images, texts)
        assert objective(images, texts)["classification"].item() == pytest.approx(expected, abs=1e-10)


def test_is_clip_plus_the_classification() -> None:
    """Without the classification, the loss and its gradient are CLIP's."""
    images, texts = pairs(dtype=torch.float64)
    terms = built(classification_weight=0.0)(images, texts)
    assert_close(terms["global"], CLIP().double()(images, texts)["global"])
    assert terms["classification"] == 0


def test_a_token_counts_once_per_caption() -> None:
    """A repeated word has the weight of one word. A count of words instead of captions would change the loss."""
    images, texts = pairs(batch=3, length=3, dtype=torch.float64)
    once = torch.tensor([[1, 2, -1], [3, -1, -1], [4, 5, 6]])
    twice = torch.tensor([[1, 2, 1], [3, 3, 3], [4, 5, 6]])
    assert_close(built()(images, replace(texts, ids=twice)), built()(images, replace(texts, ids=once)))


def test_a_token_of_all_captions_has_no_weight() -> None:
    """log((N + 1) / (N + 1)) = 0: the first and the last token of every caption teach nothing."""
    images, texts = pairs(batch=3, length=3, dtype=torch.float64)
    plain = torch.tensor([[1, 2, -1], [3, -1, -1], [4, 5, -1]])
    marked = torch.tensor([[1, 2, 9], [3, 9, -1], [9, 4, 5]])
    assert_close(built()(images, replace(texts, ids=marked)), built()(images, replace(texts, ids=plain)))


def test_rare_tokens_count_more() -> None:
    """The gradient of the classifier's bias is softmax minus target, so that the targets can be read from it."""
    images, texts = pairs(batch=3, length=2, dtype=torch.float64)
    objective = built(global_weight=0.0)
    ids = torch.tensor([[1, 2], [1, 3], [4, 5]])
    objective(images, replace(texts, ids=ids))["classification"].backward()
    p = objective.classifier(objective.norm(images.patches.mean(1))).softmax(-1).mean(0)
    target = p - objective.classifier.bias.grad
    common, rare = math.log(4 / 3), math.log(4 / 2)
    assert target[2].item() == pytest.approx(rare / (rare + common) / 3)
    assert target[1].item() == pytest.approx(2 * common / (rare + common) / 3)
    assert target[6:].abs().max() < 1e-12


def test_validation_counts_nothing() -> None:
    images, texts = pairs()
    objective = built(torch.float32).eval()
    objective(images, texts)
    assert objective.captions == 0
    objective.train()(images, texts)
    assert objective.captions == 5
    assert objective.captions_with.sum() == sum(len({*row} - {-1}) for row in texts.ids.tolist())


def test_counts_are_stored_and_stay_integers_in_half_precision() -> None:
    """In bfloat16 a count would stop at 256."""
    images, texts = pairs()
    objective = built(torch.float32)
    for _ in range(100):
        objective(images, texts)
    resumed = built(torch.bfloat16)
    resumed.load_state_dict(objective.state_dict())
    assert resumed.captions == 500
    assert torch.equal(resumed.captions_with, objective.captions_with)
    assert resumed.captions_with.dtype == torch.int64


def _count(rank: int) -> list[int]:
    images, texts = pairs(batch=4)
    half = slice(2 * rank, 2 * rank + 2)
    objective = built(torch.float32)
    objective(images[half], texts[half])
    return [int(objective.captions), *objective.captions_with.tolist()]


def test_all_ranks_are_counted() -> None:
    images, texts = pairs(batch=4)
    objective = built(torch.float32)
    objective(images, texts)
    expected = [4, *objective.captions_with.tolist()]
    assert on_ranks(_count) == [expected, expected]


def test_too_small_a_vocabulary_is_an_error() -> None:
    """The message names the option. torch's own error would name a position in a tensor."""
    images, texts = pairs()
    objective = SuperCLIP(vocabulary=3)
    objective.build(DIM)
    with pytest.raises(UserError, match=r"SuperCLIP's vocabulary is 3, but a token has the id \d+: increase it"):
        objective(images, texts)
    with pytest.raises(UserError, match="vocabulary must be 1 or more"):
        SuperCLIP(vocabulary=0)
