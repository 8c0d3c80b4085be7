"""Scenes are deterministic and have true captions, wrong negatives, and exact boxes and masks."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from patchword.data.scenes import EmojiScenes, SceneDataset
from patchword.data.scenes.captions import RELATIONS
from patchword.data.scenes.concepts import CONCEPTS, TRAINING_CONCEPTS, UNSEEN_COMBINATIONS, UNSEEN_CONCEPTS
from patchword.data.scenes.negatives import Vocabulary
from tests.data.shapes import SHAPES, draw

SPLITS = ("train", "val", "test", "unseen_combinations", "unseen_concepts")
KINDS = ("color", "noun", "exchange")


def shapes(length=200, **options):
    return SceneDataset(length, SHAPES, SHAPES, draw, **options)


def phrases(sample):
    return [sample.captions[0][p.start : p.end] for p in sample.phrases[0]]


def same(a, b):
    return (
        torch.equal(a.image, b.image)
        and (a.captions, a.negatives, a.id) == (b.captions, b.negatives, b.id)
        and [(p.start, p.end, p.box) for p in a.phrases[0]] == [(p.start, p.end, p.box) for p in b.phrases[0]]
        and all(torch.equal(p.mask, q.mask) for p, q in zip(a.phrases[0], b.phrases[0], strict=True))
    )


def test_scene_depends_on_index_alone():
    """A scene does not depend on the order of access or on other scenes."""
    one, other = shapes(20), shapes(20)
    backwards = [other[i] for i in reversed(range(20))][::-1]
    assert all(same(one[i], backwards[i]) for i in range(20))


@pytest.mark.parametrize("change", [{"stream": (1,)}, {"stream": (0, 1)}])
def test_streams_differ(change):
    assert not any(same(shapes()[i], shapes(**change)[i]) for i in range(5))


def test_same_scenes_whatever_the_workers():
    def first(samples):
        return samples

    data = EmojiScenes("train", 24)
    apart = [s for batch in DataLoader(data, 4, num_workers=2, collate_fn=first) for s in batch]
    assert all(same(a, data[i]) for i, a in enumerate(apart))


@pytest.mark.parametrize("split", SPLITS)
def test_split_shows_only_its_concepts(split):
    """Training never shows held-out concepts; every scene of an unseen split shows one."""
    featured = {"unseen_combinations": UNSEEN_COMBINATIONS, "unseen_concepts": UNSEEN_CONCEPTS}.get(split, [])
    featured = {concept.phrase for concept in featured}
    trained = {concept.phrase for concept in TRAINING_CONCEPTS}
    for sample in (EmojiScenes(split, 300)[i] for i in range(300)):
        shown = set(phrases(sample))
        assert shown <= trained | featured
        assert bool(shown & featured) == bool(featured)


def test_splits_differ():
    scenes = [EmojiScenes(split, 1)[0] for split in SPLITS]
    assert len({sample.image.numpy().tobytes() for sample in scenes}) == len(SPLITS)


def test_all_training_concepts_appear():
    data = EmojiScenes("train", 3000)
    seen = set()
    for i in range(3000):
        seen.update(phrases(data[i]))
    assert seen == {concept.phrase for concept in TRAINING_CONCEPTS}


@pytest.mark.parametrize("objects", [(1, 1), (2, 4), (8, 8)])
def test_every_object_is_mentioned_once(objects):
    """Spans select noun phrases with their article, in the order of the caption, without repeats."""
    known = {concept.phrase for concept in SHAPES}
    for sample in (shapes(objects=objects, overlap=0.3)[i] for i in range(60)):
        found = phrases(sample)
        assert objects[0] <= len(found) <= objects[1]
        assert len(set(found)) == len(found)
        assert set(found) <= known
        starts = [p.start for p in sample.phrases[0]]
        assert starts == sorted(starts)
        rest = sample.captions[0]
        for phrase in sample.phrases[0][::-1]:
            rest = rest[: phrase.start] + rest[phrase.end :]
        assert not any(re.search(rf"\b{c.noun}\b", rest) for c in SHAPES)


def test_no_plain_noun_beside_a_colored_one():
    """Next to "a red car", "a car" would be ambiguous."""
    for sample in (shapes(objects=(4, 6))[i] for i in range(200)):
        words = [phrase.split()[1:] for phrase in phrases(sample)]
        plain = {w[0] for w in words if len(w) == 1}
        assert not plain & {w[1] for w in words if len(w) == 2}


def test_repeats_make_the_color_matter():
    """Without scenes of one noun in two colors, a model could ignore color words."""
    nouns = [[phrase.split()[-1] for phrase in phrases(shapes(objects=(2, 2))[i])] for i in range(200)]
    assert sum(len(set(pair)) == 1 for pair in nouns) > 30


@pytest.mark.parametrize(("objects", "overlap"), [((2, 4), 0.0), ((2, 4), 0.05), ((8, 8), 0.3)])
def test_masks_are_disjoint_visible_and_inside_their_boxes(objects, overlap):
    data = shapes(objects=objects, overlap=overlap)
    for sample in (data[i] for i in range(60)):
        masks = torch.stack([p.mask for p in sample.phrases[0]])
        assert masks.shape[1:] == sample.image.shape[1:]
        assert masks.sum(0).max() <= 1
        for phrase in sample.phrases[0]:
            left, top, right, bottom = map(int, phrase.box)
            assert 0 <= left < right <= 64
            assert 0 <= top < bottom <= 64
            inside = phrase.mask[top:bottom, left:right].sum()
            assert inside == phrase.mask.sum()
            assert inside >= 0.6 * ((right - left) * (bottom - top) - 4)


def test_objects_are_drawn_where_their_masks_are():
    """The pixels under a mask have the color that the caption names."""
    colors = {concept.phrase: concept.tint for concept in SHAPES if concept.tint}
    for sample in (shapes()[i] for i in range(40)):
        for phrase, words in zip(sample.phrases[0], phrases(sample), strict=True):
            if words in colors:
                assert (sample.image[:, phrase.mask] == torch.tensor(colors[words])[:, None]).all()


def test_occlusion_happens_when_asked_for():
    data = shapes(objects=(8, 8), overlap=0.3)
    hidden = 0
    for sample in (data[i] for i in range(20)):
        areas = [(p.box[2] - p.box[0]) * (p.box[3] - p.box[1]) - 4 for p in sample.phrases[0]]
        hidden += sum(int(p.mask.sum()) < area for p, area in zip(sample.phrases[0], areas, strict=True))
    assert hidden > 10


def test_sizes_are_within_bounds():
    """With two to four objects, the longer side of each is 0.25 to 0.42 of the image."""
    data = shapes()
    sides = [max(p.box[2] - p.box[0], p.box[3] - p.box[1]) for i in range(200) for p in data[i].phrases[0]]
    assert max(sides) <= 0.42 * 64 + 0.5
    assert np.mean([side >= 0.25 * 64 - 0.5 for side in sides]) > 0.98


def test_relations_are_true():
    """The test recomputes relations from the boxes' centers and edges, without the code under test."""
    data = shapes(400, objects=(2, 5))
    found = []
    for sample in (data[i] for i in range(400)):
        for a, b in pairwise(sample.phrases[0]):
            link = sample.captions[0][a.end : b.start].strip()
            (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a.box, b.box
            if link in RELATIONS:
                found.append(link)
            if link == "to the left of":
                assert ax1 <= bx0
            elif link == "to the right of":
                assert bx1 <= ax0
            elif link == "above":
                assert ay1 <= by0
            elif link == "below":
                assert by1 <= ay0
            elif link == "next to":
                gap = max(0, ax0 - bx1, bx0 - ax1, ay0 - by1, by0 - ay1)
                assert gap <= 14
    assert set(found) == set(RELATIONS)


def test_an_object_stands_in_one_relation_at_most():
    """In "a above b below c" it is unclear what c is above."""
    data = shapes(200, objects=(3, 6))
    for sample in (data[i] for i in range(200)):
        spans = sample.phrases[0]
        related = [sample.captions[0][a.end : b.start].strip() in RELATIONS for a, b in pairwise(spans)]
        assert not any(a and b for a, b in pairwise(related))


@pytest.mark.parametrize("kind", KINDS)
def test_negative_is_false_in_the_detail_of_its_kind(kind):
    """A negative mentions something that the scene does not show, and differs only in colors or one noun."""
    data = shapes(objects=(3, 3), negatives=(kind,))
    known = {concept.phrase: concept for concept in SHAPES}
    count = 0
    for sample in (data[i] for i in range(200)):
        true = phrases(sample)
        for negative in sample.negatives:
            count += 1
            false = re.findall(r"\ban? (?:\w+ )?\w+\b", negative)
            false = [p if p in known else " ".join(p.split()[:2]) for p in false]
            false = [p for p in false if p in known]
            wrong = [(known[a], known[b]) for a, b in zip(true, false, strict=True) if a != b]
            assert len(wrong) == (2 if kind == "exchange" else 1)
            for was, is_now in wrong:
                assert is_now.phrase not in true
                same_part = was.color == is_now.color if kind == "noun" else was.noun == is_now.noun
                assert same_part
                if kind == "noun":
                    assert is_now.noun not in {known[phrase].noun for phrase in true}
            if kind == "exchange":
                assert sorted(re.findall(r"\w+", negative.replace("an ", "a "))) == sorted(
                    re.findall(r"\w+", sample.captions[0].replace("an ", "a "))
                )
    assert count > 50


def test_training_negatives_name_nothing_held_out():
    """A held-out combination in training negatives would teach the model that it is always wrong."""
    trained = {concept.phrase for concept in TRAINING_CONCEPTS}
    data = EmojiScenes("train", 300, negatives=KINDS)
    held_out = {c.phrase for c in CONCEPTS} - trained
    for i in range(300):
        for negative in data[i].negatives:
            assert not any(re.search(rf"\b{phrase}\b", negative) for phrase in held_out)


def test_articles_in_captions():
    """The article matches the exchanged noun or color."""
    data = EmojiScenes("test", 400, negatives=KINDS)
    for i in range(400):
        for text in [*data[i].captions, *data[i].negatives]:
            for article, word in re.findall(r"\b(an?) (\w+)", text):
                vowel = (word[0] in "aeiou" and word != "unicorn") or word == "hourglass"
                assert article == ("an" if vowel else "a"), text


def test_one_negative_of_each_kind_at_most():
    for sample in (shapes(negatives=KINDS)[i] for i in range(50)):
        assert len(sample.negatives) <= 3
    assert all(not shapes(negatives=())[i].negatives for i in range(5))


def test_scene_without_colors_still_has_a_wrong_noun():
    plain = [concept for concept in SHAPES if concept.color is None]
    data = SceneDataset(20, plain, plain, draw)
    assert all(len(data[i].negatives) == 1 for i in range(20))


def test_exchange_needs_two_colors_and_two_nouns():
    a, b = (c for c in SHAPES if c.noun == "tile" and c.color in ("red", "blue"))
    assert Vocabulary(SHAPES).falsify("exchange", [a, b], np.random.default_rng(0)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "at least one scene"),
        ({"image_size": 8}, "image_size must be from 32 to 4096"),
        ({"objects": (3, 2)}, "smallest and a largest"),
        ({"objects": (0, 2)}, "smallest and a largest"),
        ({"overlap": 1.5}, "between 0 and 1"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        shapes(**options)


def test_unknown_kind_of_negatives():
    """The message shows the unknown word, whether or not types are checked at run time."""
    with pytest.raises(Exception, match="verb"):
        shapes(negatives=("verb",))


def test_index_out_of_range():
    """Without the IndexError a for loop over the data set would never end."""
    with pytest.raises(IndexError):
        shapes(3)[3]
