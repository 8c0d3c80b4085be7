"""Guards the compositional suites: published files as they are, strict comparisons, chance as it is derived.

The images' colours say which image it is and the scores stand in a table, so that each number is known by hand.
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
    """Each suite on its fixture."""
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
    """The numbers that are neither counts nor chance: those that the suite defines, and no others."""
    counts = ("questions", "relations", "attribute_pairs")
    named = {n: v for n, v in found.items() if "chance_" not in n and n.rpartition("/")[2] not in counts}
    assert set(named) == set(suite.definitions)
    for name in named:
        group, _, last = name.rpartition("/")
        assert (f"{group}/chance_{last}" if group else f"chance_{last}") in found
    return named


def test_a_right_model_is_right_and_ties_and_nan_are_wrong(suites: dict[str, MatchingSuite]) -> None:
    """Every number of every suite is 1 for the one and 0 for the others; each has a definition and a chance."""
    for name, suite in suites.items():
        assert name.startswith(suite.key)
        assert set(shares(measure(suite, model(own)), suite).values()) == {1.0}
        for flat in (lambda image, caption: 0.5, lambda image, caption: float("nan")):
            assert set(shares(measure(suite, model(flat)), suite).values()) == {0.0}


def test_a_difference_by_rounding_is_a_tie(suites: dict[str, MatchingSuite]) -> None:
    """A bag of words must not win by the order of additions."""

    def nearly(image: int, caption: str) -> float:
        return 1 + 1e-7 * own(image, caption)

    for suite in suites.values():
        assert set(shares(measure(suite, model(nearly)), suite).values()) == {0.0}


def test_neither_batches_nor_repeated_samples_matter(suites: dict[str, MatchingSuite]) -> None:
    """Distributed samplers repeat samples and hand them out in any order."""

    def rule(image: int, caption: str) -> float:
        return zlib.crc32(f"{image} {caption}".encode()) % 997

    for suite in suites.values():
        questions = len(suite.questions())
        once = measure(suite, model(rule), 1)
        assert once["questions"] == questions
        assert once == measure(suite, model(rule), questions)
        assert once == measure(suite, model(rule), 3, [*range(1, questions), 0, 1])


class Backwards(Table):
    """Texts rank images the wrong way round."""

    def text_score(self, images: Images, texts: Texts) -> Tensor:
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
    """Question 0: a model that always likes image 1 better still tells captions apart (text score only).

    Question 1: one that likes a caption better still tells images apart (image score only). Question 2: both.
    Question 3: each is right for one of two only, so that none counts.
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
    """Five questions: add, replace, swap, add, replace; the model fails on those of replace, in one direction."""

    def rule(image: int, caption: str) -> float:
        return own(image, caption) + 5 * (image in (2, 8))  # positive images of replace draw both captions

    found = measure(suites["bivlc"], model(rule))
    assert [found[name] for name in ("i2t", "t2i", "group")] == pytest.approx([1, 3 / 5, 3 / 5])
    assert [found[f"{kind}/t2i"] for kind in ("add", "replace", "swap")] == [1, 0, 1]
    assert [found[f"{kind}/questions"] for kind in ("add", "replace", "swap")] == [2, 2, 1]
    each = ("ipos2t", "ineg2t", "tpos2i", "tneg2i")  # the authors' names of what the three numbers are made of
    assert [found[f"replace/{name}"] for name in each] == [1, 1, 1, 0]
    assert [found[name] for name in each] == pytest.approx([1, 1, 1, 3 / 5])
    assert {found[f"chance_{name}"] for name in each} == {1 / 2}


def test_sugarcrepe_means_are_over_categories(suites: dict[str, MatchingSuite]) -> None:
    """One category of replace's three is wrong, so that replace has 2/3 and all seven have 6/7."""
    number = published.CATEGORIES.index("replace_rel")

    def fails(image: int, caption: str) -> float:
        return -own(image, caption) if f"view {number}" in caption else own(image, caption)

    found = measure(suites["sugarcrepe"], model(fails))
    assert found["replace_rel/accuracy"] == 0
    assert found["replace/accuracy"] == pytest.approx(2 / 3)
    assert found["mean/accuracy"] == pytest.approx(6 / 7)
    assert found["swap/accuracy"] == found["add/accuracy"] == 1


def test_mmvp_is_the_mean_over_patterns(suites: dict[str, MatchingSuite]) -> None:
    """One pair of two wrong in the one pattern, none in the other: 1/2 and 1, so 3/4 (and not 2/3)."""

    def rule(image: int, caption: str) -> float:
        return -own(image, caption) if image == 0 else own(image, caption)

    found = measure(suites["mmvp"], model(rule))
    assert found["texts/questions"] == 1
    assert found["orientation_and_direction/pairs"] == pytest.approx(1 / 2)
    assert found["mean/pairs"] == pytest.approx(3 / 4)


def test_aro_sees_the_region_and_leaves_out_what_the_authors_leave_out(suites: dict[str, MatchingSuite]) -> None:
    """The image's other half is white: without the cut the colour would be wrong, and so every answer above.

    Relations: eating (two cases, one wrong), near (left out of the mean), to the left of (right).
    Attributes: a pair with 25 cases, and one with a single case, which is left out of the mean.
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
