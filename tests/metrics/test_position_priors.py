"""Tests the mean maps of training phrases against masks of pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from patchword.data.scenes.datamodule import Scenes
from patchword.errors import UserError
from patchword.maps.phrases import SOURCES, Area
from patchword.metrics.baselines import Baselines
from patchword.metrics.evaluation import Evaluation, PhraseMaps
from patchword.metrics.position_priors import FEWEST, last_word, position_priors, training_priors
from patchword.metrics.targets import Targets
from patchword.objectives import CLIP
from tests import tiny
from tests.metrics.examples import scenes


def random_phrases(count):
    """Phrases with one to three boxes; two of three words are frequent."""
    rng = np.random.default_rng(0)
    words = ["a red cup", "The old Cup!", "the blue book", f"a rare thing {count}"]
    found = []
    for n in range(count):
        low = rng.random((1 + n % 3, 2)) * 0.7
        boxes = np.concatenate([low, low + 0.05 + rng.random(low.shape) * 0.25], -1)
        found.append((words[n % 3] if n < count - 2 else words[3], [tuple(box) for box in boxes.tolist()]))
    return found


def mask(boxes, side=24 * 40):
    """The mean mask of boxes on the grid, from pixels."""
    at = (np.arange(side) + 0.5) / side
    share = [
        np.outer((top <= at) & (at < bottom), (left <= at) & (at < right)).reshape(24, 40, 24, 40).mean((1, 3))
        for left, top, right, bottom in boxes
    ]
    return np.minimum(sum(share), 1).ravel()


def test_equals_the_mean_of_masks():
    """The mean map is that of all phrases; a word's map is that of the phrases that end with it in any case."""
    phrases = random_phrases(40)
    found = position_priors(phrases)
    masks = np.stack([mask(boxes) for _, boxes in phrases])
    cups = [n for n, (text, _) in enumerate(phrases) if "up" in text]
    assert found.maps("mean_prior", ["x", "y"]).shape == (2, 576)
    np.testing.assert_allclose(found.maps("mean_prior", ["a cup"])[0], masks.mean(0), atol=0.01)
    np.testing.assert_allclose(found.maps("class_prior", ["my CUP"])[0], masks[cups].mean(0), atol=0.01)
    assert found.phrases == 40


def test_rare_and_unseen_words_have_the_mean_map():
    """A word needs five phrases for a map of its own."""
    phrases = random_phrases(40) + [("a wheel", [(0.0, 0.0, 0.1, 0.1)])] * (FEWEST - 1)
    found = position_priors(phrases)
    for text in ("a rare thing 40", "an unseen word", "", "a wheel"):
        assert torch.equal(found.maps("class_prior", [text])[0], found.mean)
    more = position_priors([*phrases, phrases[-1]])
    assert not torch.equal(more.maps("class_prior", ["a wheel"])[0], more.mean)


def test_phrases_without_boxes_give_no_priors():
    """Then the priors are absent instead of uniform."""
    assert position_priors([("a cup", [])]) is None


def test_a_training_split_that_cannot_be_read():
    """A test on another machine has no training data; it runs without the priors."""

    def missing():
        raise UserError("there is no train.json")
        yield

    assert training_priors(missing()) is None


@pytest.mark.parametrize(("phrase", "word"), [("two young men", "men"), ("a man's T-shirt.", "t-shirt"), ("...", "")])
def test_last_word(phrase, word):
    """Classes ignore case and punctuation."""
    assert last_word(phrase) == word


def test_boxes_of_scenes_are_those_of_their_samples():
    """The layouts are computed without drawing; they must remain those of the training scenes."""
    data = Scenes(train_size=4, val_size=1, test_size=1, image_size=64)
    found = list(data.training_boxes())
    expected = []
    for index in range(4):
        sample = data.split("train")[index]
        expected += [(sample.captions[0][p.start : p.end], [tuple(x / 64 for x in p.box)]) for p in sample.phrases[0]]
    assert sorted(found) == sorted(expected)


def test_evaluation_measures_the_priors():
    """Priors are sources of maps like the others: a perfect class map has an average precision of nearly one."""
    batch = scenes(4, phrases=1)
    height, width = batch.phrase_mask.shape[1:]
    batch.captions = [f"thing {'abcd'[n]}" for n in range(4)]
    spans = [(0, 7)] * len(batch.phrase_caption)
    batch.phrase_span = torch.tensor(spans)
    box = batch.phrase_box / torch.tensor([width, height, width, height])
    texts = [batch.captions[int(n)] for n in batch.phrase_caption]
    phrases = [(text, [tuple(one)]) for text, one in zip(texts, box.tolist(), strict=True)]
    baselines = Baselines(lambda: phrases * FEWEST)
    evaluation = Evaluation(tiny.module(CLIP()).encoder, CLIP(), "all", "content", baselines)
    kept = torch.ones(len(texts), dtype=torch.bool)
    shapes = torch.tensor([[3, 4]] * len(texts))
    phrases = PhraseMaps(dict.fromkeys(SOURCES, torch.zeros(len(texts), 12)), kept, (3, 4), shapes)
    evaluation._update_grounding(batch, phrases, Area(slice(None), (3, 4), (3, 4)))
    found = {name: metric.compute() for name, metric in evaluation.grounding.items()}
    assert {*found} == {*SOURCES, "mean_prior", "class_prior"}
    assert found["class_prior"]["pointing_game_box"] == 1
    assert found["class_prior"]["average_precision"] > found["mean_prior"]["average_precision"]


def test_baselines_are_measured_once():
    """A run's further validations take the scores of baselines from memory, unless the phrases or regions change."""
    baselines, batch = Baselines(), scenes(4)
    kept = torch.ones(len(batch.phrase_caption), dtype=torch.bool)
    zeros, ones = torch.zeros(len(kept), 12), torch.ones(len(kept), 12).cumsum(-1)
    first = baselines.scores("chance", zeros, (3, 4), Targets.of_batch(batch, kept))
    assert torch.equal(baselines.scores("chance", ones, (3, 4), Targets.of_batch(batch, kept)), first)
    for other in (replace(batch, phrase_box=batch.phrase_box + 1), replace(batch, captions=["x" * 40] * 4)):
        assert not torch.equal(baselines.scores("chance", ones, (3, 4), Targets.of_batch(other, kept)), first)
    assert not torch.equal(baselines.scores("other", ones, (3, 4), Targets.of_batch(batch, kept)), first)
