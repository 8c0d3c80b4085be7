"""Tests the compositional suites: published files, strict comparisons, and chance levels.

Images are identified by their colors, and scores come from a table, so all metrics can be derived by hand.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from patchword.callbacks.suite_table import suite_table
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.suites import (
    FGOVD,
    MMVP,
    VALSE,
    BiVLC,
    NegBenchMCQ,
    SugarCrepe,
    SugarCrepePP,
    VGAttribution,
    VGRelation,
    Winoground,
)
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
        "fgovd_hard": FGOVD(str(published.fgovd(root / "fgovd"))),
        "negbench_mcq_coco": NegBenchMCQ(str(published.negbench(root / "negbench"))),
        "negbench_mcq_synthetic": NegBenchMCQ(str(root / "negbench"), "synthetic"),
        "valse": VALSE(str(published.valse(root / "valse"))),
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


def test_fgovd_sees_the_box_and_counts_its_captions(suites: dict[str, MatchingSuite]) -> None:
    """The other half of the image is white. One box has two wrong captions, two have three: chance is not 1/4."""

    def rule(image: int, caption: str) -> float:
        return own(image, caption) if image else float("view 1" in caption)

    found = measure(suites["fgovd_hard"], model(rule))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["chance_accuracy"] == pytest.approx((1 / 3 + 1 / 4 + 1 / 4) / 3)


def test_counts_of_categories_are_shown_with_their_names(suites: dict[str, MatchingSuite]) -> None:
    """SugarCrepe has eight counts of questions: without names, nobody can tell which is which. One group has none."""
    for name, expected in (
        ("sugarcrepe", "21 questions, 0 ties; add_obj: 3 questions, 0 ties; add_att: 3"),
        ("fgovd_hard", "3 qu"),
    ):
        shown = Console(width=1000, record=True, file=io.StringIO())
        shown.print(suite_table(suites[name], measure(suites[name], model(own))))
        assert f"\n{expected}" in shown.export_text()


def test_fgovd_has_images_of_both_folders_of_coco(tmp_path: Path) -> None:
    """1,470 of the 3,545 published boxes of `hard` lie in images of `train2017/`; `--data.images` has both folders."""
    path = published.fgovd(tmp_path / "fgovd") / "h_attributes_llava.jsonl"
    path.write_text(path.read_text().replace("val2017/000000000001", "train2017/000000000001"))
    (tmp_path / "fgovd/val2017").rename(tmp_path / "val2017")
    (tmp_path / "train2017").mkdir()
    (tmp_path / "val2017/000000000001.jpg").rename(tmp_path / "train2017/000000000001.jpg")
    suite = FGOVD(str(tmp_path / "fgovd"), images=str(tmp_path))
    assert measure(suite, model(own))["accuracy"] == 1
    (tmp_path / "train2017/000000000001.jpg").unlink()
    with pytest.raises(UserError, match=r"line 2: there is no image .*train2017/000000000001\.jpg"):
        measure(suite, model(own))


def test_a_caption_that_is_among_the_wrong_ones_is_a_tie(tmp_path: Path) -> None:
    """Four published boxes of `medium` have their own caption among the wrong ones: no model can be right."""
    path = published.fgovd(tmp_path) / "m_attributes_llava.jsonl"
    path.write_text(path.read_text().replace("Not A red fish 1, view 0.", "A red fish 1, view 0."))
    found = measure(FGOVD(str(tmp_path), "medium"), model(own))
    assert (found["accuracy"], found["ties"]) == (pytest.approx(2 / 3), 1)


class Patches(Table):
    """An objective whose patches are the colors of four columns, and whose texts are colors."""

    def encode_images(self, pixels: Tensor) -> Images:
        patches = torch.stack([part.double().mean((2, 3)) for part in pixels.split(2, dim=3)], 1)
        return Images(patches.new_full((len(pixels), 3), torch.nan), patches, (1, 4))

    def encode_texts(self, captions: list[str]) -> tuple[Texts, Any]:
        texts, tokens = super().encode_texts(captions)
        color = [(int(c.split()[-3].rstrip(",")) * published.STEP, 60, 120) for c in captions]
        wrong = torch.tensor([[caption.startswith("Not")] for caption in captions])
        pooled = torch.where(wrong, torch.full((1, 3), 250.0), torch.tensor(color)).double()
        return replace(texts, pooled=pooled, tokens=pooled[:, None]), tokens


def test_fgovd_can_average_the_patches_of_a_box(tmp_path: Path) -> None:
    """The mean of the box's patches has its color. A box on the white half finds the wrong captions instead."""
    root = published.fgovd(tmp_path)
    assert measure(FGOVD(str(root), region="patches"), model(own, Patches))["accuracy"] == 1
    path = root / "h_attributes_llava.jsonl"
    path.write_text(path.read_text().replace("[2.0,", "[24.0,"))
    assert measure(FGOVD(str(root), region="patches"), model(own, Patches))["accuracy"] == 0
    assert FGOVD(str(root), region="patches").definitions != FGOVD(str(root)).definitions
    with pytest.raises(UserError, match=r"data\.resize_mode stretch"):
        FGOVD(str(root), region="patches", resize_mode="crop")


def test_valse_asks_what_annotators_found_valid(tmp_path: Path) -> None:
    """One of three foils is not valid; the mean is over pieces."""
    root = published.valse(tmp_path)

    def rule(image: int, caption: str) -> float:
        return -own(image, caption) if image == 0 and "view 10" in caption else own(image, caption)

    found = measure(VALSE(str(root)), model(rule))
    assert (found["questions"], found["foil_it/questions"]) == (22, 2)
    assert (found["foil_it/accuracy"], found["existence/accuracy"]) == (1 / 2, 1)
    assert found["mean/accuracy"] == pytest.approx((10 + 1 / 2) / 11)
    assert VALSE(str(root), valid=False).protocol() != VALSE(str(root)).protocol()
    assert len(VALSE(str(root), valid=False).records()) == 33


def test_negbench_moves_the_right_caption_to_the_front(suites: dict[str, MatchingSuite]) -> None:
    """Each type has its own accuracy. Images 0 and 3 are positive, 1 is negative, 2 is hybrid."""

    def rule(image: int, caption: str) -> float:
        return -own(image, caption) if image in (2, 3) else own(image, caption)

    found = measure(suites["negbench_mcq_coco"], model(rule))
    assert found["accuracy"] == 2 / 4
    assert [found[f"{kind}/accuracy"] for kind in ("positive", "negative", "hybrid")] == [1 / 2, 1, 0]
    assert [found[f"{kind}/questions"] for kind in ("positive", "negative", "hybrid")] == [2, 1, 1]
    assert found["chance_accuracy"] == 1 / 4


class Meanings(Table):
    """Texts that are directions in a plane, and the scores of a table. The angle of a text is a rule, too."""

    angle: Callable[[str], float]

    def encode_texts(self, captions: list[str]) -> tuple[Texts, Any]:
        texts, tokens = super().encode_texts(captions)
        angles = torch.tensor([type(self).angle(caption) for caption in captions])
        number = texts.pooled[:, None].expand(-1, -1, 2)
        pooled = torch.stack([angles.cos(), angles.sin()], -1)
        return replace(texts, pooled=pooled, tokens=number, mask=torch.ones_like(texts.mask)), tokens

    def score(self, images: Images, texts: Texts) -> Tensor:
        return super().score(images, replace(texts, pooled=texts.tokens[:, 0]))


def meaning(caption: str) -> float:
    """The right angle of a text: the second caption is near the first."""
    return 0.5 if caption.startswith("Not") else 0.1 * caption.endswith("words.")


def plus_plus(suite: SugarCrepePP, rule: Rule, angle: Callable[[str], float]) -> dict[str, float]:
    kind = type("Own", (Meanings,), {"angle": staticmethod(angle)})
    return measure(suite, model(rule, kind))


def test_sugarcrepe_pp_needs_both_captions(tmp_path: Path) -> None:
    """ITT is right if both captions win; TOT does not see the image. One of five categories fails in one of each."""
    suite = SugarCrepePP(str(published.sugarcrepe_pp(tmp_path)))
    right = plus_plus(suite, own, meaning)
    named = {n: v for n, v in right.items() if "chance_" not in n and n.rpartition("/")[2] in ("itt", "tot")}
    assert {*named.values()} == {1.0}
    assert {n for n in right if "chance_" not in n and not n.endswith(("questions", "ties"))} == {*suite.definitions}
    assert all(f"{n.rpartition('/')[0]}/chance_{n.rpartition('/')[2]}" in right for n in suite.definitions)
    assert (right["questions"], right["swap_obj/questions"]) == (15, 3)
    assert (right["mean/chance_itt"], right["mean/chance_itt_caption"], right["mean/chance_tot"]) == (
        1 / 3,
        1 / 2,
        1 / 3,
    )

    def rule(image: int, caption: str) -> float:
        fails = image == 0 and "view 1" in caption and caption.endswith("words.")
        return -1.0 if fails else own(image, caption)

    found = plus_plus(suite, rule, lambda caption: 0.5 - meaning(caption) if "view 2" in caption else meaning(caption))
    assert [found[f"swap_att/{task}"] for task in ("itt", "itt_caption", "itt_caption2", "tot")] == pytest.approx(
        [2 / 3, 1, 2 / 3, 1]
    )
    assert (found["replace_obj/itt"], found["replace_obj/tot"]) == (1, 1)  # a mirror keeps the distances
    assert found["mean/itt"] == pytest.approx((4 + 2 / 3) / 5)
    far = plus_plus(suite, own, lambda caption: 0.4 if caption.endswith("words.") else meaning(caption))
    assert (far["mean/itt"], far["mean/tot"]) == (1, 0)


def test_sugarcrepe_pp_counts_ties_as_wrong(tmp_path: Path) -> None:
    """Constant scores and equal embeddings are right nowhere, and both kinds of ties are counted. NaN is wrong."""
    suite = SugarCrepePP(str(published.sugarcrepe_pp(tmp_path)))
    flat = plus_plus(suite, lambda image, caption: 0.5, lambda caption: 0.0)
    assert {flat[name] for name in suite.definitions} == {0.0}
    assert (flat["ties"], flat["text_ties"], flat["swap_obj/ties"]) == (15, 15, 3)
    nan = plus_plus(suite, lambda image, caption: float("nan"), lambda caption: float("nan"))
    assert {nan[name] for name in suite.definitions} == {0.0}
    assert measure(suite, model(own, type("Own", (Meanings,), {"angle": staticmethod(meaning)})), 15) == plus_plus(
        suite, own, meaning
    )
