"""Tests that retrieval suites read the published files and count as papers do.

Images are identified by their colors, and scores come from a table, so all metrics can be derived by hand.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from torch import Tensor

from patchword.features import Images, Texts
from patchword.suites import CocoRetrieval, DocciRetrieval, Flickr30kRetrieval, Urban1k
from patchword.suites.retrieval import RetrievalSuite
from tests.suites import published_captions as published
from tests.suites.table_model import Table, measure, model


def own(image: int, caption: str) -> float:
    """A model that is always right."""
    return float(caption.startswith(f"A red fish {image},"))


def every_suite(root: Path) -> dict[str, tuple[RetrievalSuite, int, int]]:
    """Each suite with its fixture and the numbers of images and captions that are ranked together."""
    coco, folder = str(published.karpathy_coco(root / "coco")), str(published.coco_val2017(root / "coco2017"))
    return {
        "coco_5k": (CocoRetrieval(coco), 10, 50),
        "coco_1k": (CocoRetrieval(coco, "1k"), 2, 10),
        "coco_val2017": (CocoRetrieval(folder, "val2017"), 4, 20),
        "flickr30k_test": (Flickr30kRetrieval(str(published.karpathy_flickr30k(root / "flickr"))), 5, 25),
        "docci_test": (DocciRetrieval(str(published.docci(root / "docci"))), 4, 4),
        "urban1k": (Urban1k(str(published.urban1k(root / "urban"))), 4, 4),
    }


def test_every_suite_finds_its_images_and_captions(tmp_path: Path) -> None:
    """A right model finds all; a model that is wrong for one caption misses only this one; all metrics are defined."""
    for key, (suite, images, captions) in every_suite(tmp_path).items():
        right = measure(suite, model(own))
        assert suite.key == key
        assert (right["retrieval/images"], right["retrieval/captions"]) == (images, captions)
        assert right["retrieval/rsum"] == pytest.approx(600)
        assert right["retrieval/cut_captions"] == 0
        assert right["retrieval/text_to_image/chance_r@1"] == pytest.approx(1 / images)
        counts = {"retrieval/images", "retrieval/captions", "retrieval/cut_captions", "retrieval/empty_captions"}
        measured = {name for name in right if "chance" not in name}
        assert measured - counts == set(suite.definitions)

        def but_one(image: int, caption: str) -> float:
            return own(image, caption) if caption != published.caption(1, 0) else float(image == 0)

        wrong = measure(suite, model(but_one))
        folds = 5 if key == "coco_1k" else 1
        assert wrong["retrieval/text_to_image/r@1"] == pytest.approx(1 - 1 / captions / folds)


def test_captions_per_image(tmp_path: Path) -> None:
    """The first five captions of each image give 25,000 captions on COCO, all captions 25,010."""
    root = str(published.karpathy_coco(tmp_path))
    for number, captions in (5, 50), (1, 10), (None, 55):
        found = measure(CocoRetrieval(root, captions_per_image=number), model(own))
        assert found["retrieval/captions"] == captions
    assert CocoRetrieval(root).records()[3].captions == tuple(published.caption(3, n) for n in range(5))


def test_the_1k_protocol_is_the_mean_over_five_folds(tmp_path: Path) -> None:
    """The two images of a fold compete only with each other; the model confuses images 0 and 1, and 2 and 4."""
    root = str(published.karpathy_coco(tmp_path))
    swapped = {0: 1, 1: 0, 2: 4, 4: 2}

    def confused(image: int, caption: str) -> float:
        return own(swapped.get(image, image), caption)

    folds, whole = (measure(CocoRetrieval(root, split), model(confused)) for split in ("1k", "5k"))
    assert whole["retrieval/image_to_text/r@1"] == pytest.approx(6 / 10)
    # In the fold of images 2 and 3, image 2 finds no caption: its own captions tie with those of image 3.
    assert folds["retrieval/image_to_text/r@1"] == pytest.approx((0 + 1 / 2 + 1 / 2 + 1 + 1) / 5)


def test_neither_batches_nor_repeated_samples_matter(tmp_path: Path) -> None:
    """Distributed samplers repeat and reorder samples."""
    for suite, _, _ in every_suite(tmp_path).values():
        records = len(suite.records())

        def rule(image: int, caption: str) -> float:
            return zlib.crc32(f"{image} {caption}".encode()) % 997 + 200 * own(image, caption)

        once = measure(suite, model(rule), 1)
        assert once == measure(suite, model(rule), records)
        order = [*range(1, records), 0, 1]
        assert once == measure(suite, model(rule), 3, order)


def test_ties_find_nothing_and_cut_captions_are_counted(tmp_path: Path) -> None:
    """Constant scores have recall 0; captions that the tokenizer truncated are counted."""
    root = published.docci(tmp_path)
    flat = measure(DocciRetrieval(str(root)), model(lambda image, caption: 0.0))
    assert flat["retrieval/image_to_text/r@1"] == flat["retrieval/text_to_image/r@1"] == 0
    file = root / "docci_descriptions.jsonlines"
    file.write_text(file.read_text().replace("A red fish 2", "A red fish 2 that is cut"))
    assert measure(DocciRetrieval(str(root)), model(own))["retrieval/cut_captions"] == 1


class Backwards(Table):
    """An objective that ranks images by negated scores."""

    def text_to_image_score(self, images: Images, texts: Texts) -> Tensor:
        return -self.score(images, texts)


def test_captions_choose_images_by_the_text_score(tmp_path: Path) -> None:
    """FILIP has two matrices: one for images that choose captions, one for captions that choose images."""
    found = measure(DocciRetrieval(str(published.docci(tmp_path))), model(own, Backwards))
    assert (found["retrieval/image_to_text/r@1"], found["retrieval/text_to_image/r@1"]) == (1, 0)


def test_an_empty_caption_of_urban1k_counts(tmp_path: Path) -> None:
    """The published 592.txt very likely begins with an empty line: the empty caption counts, with a warning."""
    (published.urban1k(tmp_path) / "caption/3.txt").write_text("\nlater\n")
    with pytest.warns(UserWarning, match=r"1 of 4 captions are empty, .*3\.txt"):
        found = measure(Urban1k(str(tmp_path)), model(own))
    assert (found["retrieval/captions"], found["retrieval/empty_captions"]) == (4, 1)
    assert found["retrieval/text_to_image/r@1"] == pytest.approx(3 / 4)
