"""Tests the compositional suites: published files, strict comparisons, and chance levels.

Images are identified by their colors, and scores come from a table, so all metrics can be derived by hand.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import pytest
from torch import Tensor

from patchword.features import Images, Texts
from patchword.suites import MMVP, BiVLC, SugarCrepe, VGAttribution, VGRelation, Winoground
from patchword.suites.matching import MatchingSuite
from tests.suites import published_captions as published
from tests.suites.table_model import Table, measure, model

Rule = Callable[[int, str], float]


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, MatchingSuite]:
    """Each suite with its fixture."""
    root = tmp_path_factory.mktemp("data")
    crepe = str(published.sugarcrepe(root / "sugarcrepe"))
    aro = str(published.aro(root / "aro"))
    return {
        "sugarcrepe": SugarCrepe(crepe),
        "winoground": Winoground(str(published.winoground(root / "winoground"))),
        "winoground_parquet": Winoground(str(published.winoground_parquet(root / "winoground_parquet"))),
        "bivlc": BiVLC(str(published.bivlc(root / "bivlc"))),
        "mmvp": MMVP(str(published.mmvp(root / "mmvp"))),
        "aro_vg_relation": VGRelation(aro),
        "aro_vg_attribution": VGAttribution(aro),
    }


def own(image: int, caption: str) -> float:
    """A model that is always right."""
    return float(caption.removeprefix("a photo of ").startswith(f"A red fish {image},"))


def shares(found: dict[str, float], suite: MatchingSuite) -> dict[str, float]:
    """The metrics that are neither counts nor chance levels; they must be exactly those that the suite defines."""
    counts = ("questions", "ties", "relations", "attribute_pairs")
    named = {n: v for n, v in found.items() if "chance_" not in n and n.rpartition("/")[2] not in counts}
    assert set(named) == set(suite.definitions)
    for name in named:
        group, _, last = name.rpartition("/")
        assert (f"{group}/chance_{last}" if group else f"chance_{last}") in found
    return named


def test_a_right_model_is_right_and_ties_and_nan_are_wrong(suites: dict[str, MatchingSuite]) -> None:
    """All metrics are 1 for the right model and 0 for the others; each has a definition and a chance level."""
    for name, suite in suites.items():
        assert name.startswith(suite.key)
        assert set(shares(measure(suite, model(own)), suite).values()) == {1.0}
        for flat in (lambda image, caption: 0.5, lambda image, caption: float("nan")):
            assert set(shares(measure(suite, model(flat)), suite).values()) == {0.0}


def test_a_difference_by_rounding_is_a_tie(suites: dict[str, MatchingSuite]) -> None:
    """A bag of words must not be right because of the order of additions."""

    def nearly(image: int, caption: str) -> float:
        return 1 + 1e-7 * own(image, caption)

    for suite in suites.values():
        assert set(shares(measure(suite, model(nearly)), suite).values()) == {0.0}


def test_neither_batches_nor_repeated_samples_matter(suites: dict[str, MatchingSuite]) -> None:
    """Distributed samplers repeat and reorder samples."""

    def rule(image: int, caption: str) -> float:
        return zlib.crc32(f"{image} {caption}".encode()) % 997

    for suite in suites.values():
        questions = len(suite.records())
        once = measure(suite, model(rule), 1)
        assert once["questions"] == questions
        assert once == measure(suite, model(rule), questions)
        assert once == measure(suite, model(rule), 3, [*range(1, questions), 0, 1])


class Backwards(Table):
    """An objective that ranks images by negated scores."""

    def text_to_image_score(self, images: Images, texts: Texts) -> Tensor:
        return -self.score(images, texts)


def test_captions_choose_images_by_the_text_score(suites: dict[str, MatchingSuite]) -> None:
    """FILIP has two matrices: one for images that choose captions, one for captions that choose images."""
    found = measure(suites["winoground"], model(own, Backwards))
    assert (found["text_score"], found["image_score"], found["group_score"]) == (1, 0, 0)
    found = measure(suites["mmvp"], model(own, Backwards))  # statements choose images
    assert found["mean/pairs"] == found["orientation_and_direction/pairs"] == found["texts/pairs"] == 0
    found = measure(suites["sugarcrepe"], model(own, Backwards))  # images choose captions
    assert found["mean/accuracy"] == 1


def test_winoground_tells_text_from_image_score(suites: dict[str, MatchingSuite]) -> None:
    """Question 0: a model that always prefers image 1 still separates captions (text score only).

    Question 1: a model that always prefers one caption still separates images (image score only). Question 2: both
    scores. Question 3: each direction is right for only one of two, so neither score counts.
    """
    table = {
        (0, 0): 2,
        (0, 1): 1,
        (1, 0): 5,
        (1, 1): 6,
        (2, 2): 2,
        (2, 3): 5,
        (3, 2): 1,
        (3, 3): 6,
        (4, 4): 3,
        (4, 5): 1,
        (5, 4): 1,
        (5, 5): 2,
        (6, 6): 9,
        (6, 7): 1,
        (7, 6): 3,
        (7, 7): 2,
    }

    def rule(image: int, caption: str) -> float:
        return float(table[image, int(caption.split()[3].rstrip(","))])

    expected = {"text_score": 2 / 4, "image_score": 3 / 4, "group_score": 1 / 4}
    for name in ("winoground", "winoground_parquet"):
        found = measure(suites[name], model(rule))
        assert {key: found[key] for key in expected} == pytest.approx(expected)
        chances = [found[f"chance_{key}"] for key in expected]
        assert chances == pytest.approx([1 / 4, 1 / 4, 1 / 6])


def test_bivlc_counts_each_type(suites: dict[str, MatchingSuite]) -> None:
    """The five questions are add, replace, swap, add, replace; the model fails on replace in one direction."""

    def rule(image: int, caption: str) -> float:
        return own(image, caption) + 5 * (image in (2, 8))  # positive images of replace attract both captions

    found = measure(suites["bivlc"], model(rule))
    assert [found[name] for name in ("i2t", "t2i", "group")] == pytest.approx([1, 3 / 5, 3 / 5])
    assert [found[f"{kind}/t2i"] for kind in ("add", "replace", "swap")] == [1, 0, 1]
    assert [found[f"{kind}/questions"] for kind in ("add", "replace", "swap")] == [2, 2, 1]
    each = ("ipos2t", "ineg2t", "tpos2i", "tneg2i")  # the authors' names of the components
    assert [found[f"replace/{name}"] for name in each] == [1, 1, 1, 0]
    assert [found[name] for name in each] == pytest.approx([1, 1, 1, 3 / 5])
    assert {found[f"chance_{name}"] for name in each} == {1 / 2}


def test_sugarcrepe_means_are_over_categories(suites: dict[str, MatchingSuite]) -> None:
    """One of replace's three categories is wrong, so replace has 2/3 and the mean of all seven is 6/7."""
    number = published.CATEGORIES.index("replace_rel")

    def fails(image: int, caption: str) -> float:
        return -own(image, caption) if f"view {number}" in caption else own(image, caption)

    found = measure(suites["sugarcrepe"], model(fails))
    assert found["replace_rel/accuracy"] == 0
    assert found["replace/accuracy"] == pytest.approx(2 / 3)
    assert found["mean/accuracy"] == pytest.approx(6 / 7)
    assert found["swap/accuracy"] == found["add/accuracy"] == 1


def test_mmvp_is_the_mean_over_patterns(suites: dict[str, MatchingSuite]) -> None:
    """One of two pairs is wrong in one pattern, none in the other: the mean of 1/2 and 1 is 3/4, not 2/3."""

    def rule(image: int, caption: str) -> float:
        return -own(image, caption) if image == 0 else own(image, caption)

    found = measure(suites["mmvp"], model(rule))
    assert found["texts/questions"] == 1
    assert found["orientation_and_direction/pairs"] == pytest.approx(1 / 2)
    assert found["mean/pairs"] == pytest.approx(3 / 4)


def test_aro_sees_the_region_and_leaves_out_what_the_authors_leave_out(suites: dict[str, MatchingSuite]) -> None:
    """The other half of the image is white: without the crop the color and all answers would be wrong.

    The relations are eating (two cases, one wrong), near (left out of the mean) and to the left of (right).
    The attributes are one pair with 25 cases and one pair with a single case, which is left out of the mean.
    """

    def rule(image: int, caption: str) -> float:
        return -own(image, caption) if image in (1, 2) else own(image, caption)

    found = measure(suites["aro_vg_relation"], model(rule))
    assert found["accuracy"] == pytest.approx(2 / 4)
    assert found["macro_accuracy"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["relations"] == 2
    found = measure(suites["aro_vg_attribution"], model(rule))
    wrong = sum(i % 4 in (1, 2) for i in range(25))
    assert found["macro_accuracy"] == pytest.approx(1 - wrong / 25)
    assert found["accuracy"] == pytest.approx(1 - (wrong + 1) / 26)
    assert found["attribute_pairs"] == 1
