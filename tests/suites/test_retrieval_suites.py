"""Tests that retrieval suites read the published files and count as papers do.

Images are identified by their colors, and scores come from a table, so all metrics can be derived by hand.
"""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import pytest
from torch import Tensor

from patchword.features import Images, Texts
from patchword.suites import (
    CocoRetrieval,
    DCIRetrieval,
    DocciRetrieval,
    Flickr30kRetrieval,
    IIWRetrieval,
    NegBenchRetrieval,
    ShareGPT4VRetrieval,
    Urban1k,
    sharegpt4v,
)
from patchword.suites.retrieval import RetrievalSuite
from tests.suites import published_captions as published
from tests.suites.table_model import FRAMING, Table, measure, model


def own(image: int, caption: str) -> float:
    """A model that is always right."""
    return float(caption.startswith(f"A red fish {image},"))


@pytest.fixture(autouse=True)
def small_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """ShareGPT4V is measured on 4 images instead of 1,000."""
    monkeypatch.setattr(sharegpt4v, "NUMBERS", {"1k": 4, "10k": 5})


def every_suite(root: Path) -> dict[str, tuple[RetrievalSuite, int, int]]:
    """Each suite with its fixture and the numbers of images and captions that are ranked together."""
    iiw, negbench = str(published.iiw(root / "iiw")), str(published.negbench(root / "negbench"))
    sentences = str(published.docci_sentences(root / "sentences"))
    coco, folder = str(published.karpathy_coco(root / "coco")), str(published.coco_val2017(root / "coco2017"))
    return {
        "coco_5k": (CocoRetrieval(coco), 10, 50),
        "coco_1k": (CocoRetrieval(coco, "1k"), 2, 10),
        "coco_val2017": (CocoRetrieval(folder, "val2017"), 4, 20),
        "flickr30k_test": (Flickr30kRetrieval(str(published.karpathy_flickr30k(root / "flickr"))), 5, 25),
        "docci_test": (DocciRetrieval(str(published.docci(root / "docci"))), 4, 4),
        "urban1k": (Urban1k(str(published.urban1k(root / "urban"))), 4, 4),
        "docci_test_sentences": (DocciRetrieval(sentences, captions="sentences"), 4, 10),
        "dci_all": (DCIRetrieval(str(published.dci(root / "dci"))), 4, 4),
        "iiw_long": (IIWRetrieval(iiw), 3, 3),
        "iiw_sentences": (IIWRetrieval(iiw, "sentences"), 3, 6),
        "negbench_retrieval_coco_negated": (NegBenchRetrieval(negbench), 4, 20),
        "negbench_retrieval_synthetic_v2": (NegBenchRetrieval(negbench, "synthetic_v2"), 4, 4),
        "sharegpt4v_1k": (ShareGPT4VRetrieval(str(published.sharegpt4v(root / "share"))), 4, 4),
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
            first = caption.partition("\n")[0]
            return own(image, caption) if first != published.caption(1, 0) else float(image == 0)

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


def test_an_empty_caption_of_the_list_of_urban1k_is_not_blamed_on_a_caption_file(tmp_path: Path) -> None:
    path = published.urban1k_list(tmp_path) / "annotations/annotations.json"
    listed = json.loads(path.read_text())
    listed["annotations"][2]["caption"] = ""
    path.write_text(json.dumps(listed))
    with pytest.warns(UserWarning, match=r"1 of 4 captions are empty: \S+annotations\.json, annotations\[2\]\. They"):
        assert len(Urban1k(str(tmp_path)).records()) == 4


def checksums(suite: RetrievalSuite) -> list[int]:
    """The checksum of each sample."""
    data = suite.read(FRAMING)
    return [data[i].sum for i in range(len(suite.records()))]


def test_the_same_data_in_another_layout_has_the_same_checksum(tmp_path: Path) -> None:
    """Karpathy's and BLIP's files, and Urban1k's captions as files and as a list, are the same data."""
    make = published
    for one, other in (
        (CocoRetrieval(str(make.karpathy_coco(tmp_path / "a"))), CocoRetrieval(str(make.blip_coco(tmp_path / "b")))),
        (
            Flickr30kRetrieval(str(make.karpathy_flickr30k(tmp_path / "c"))),
            Flickr30kRetrieval(str(make.blip_flickr30k(tmp_path / "d"))),
        ),
        (Urban1k(str(make.urban1k(tmp_path / "e", 12))), Urban1k(str(make.urban1k_list(tmp_path / "f", 12)))),
    ):
        assert [record.captions for record in one.records()] == [record.captions for record in other.records()]
        assert checksums(one) == checksums(other)
        assert len({*checksums(one)}) == len(one.records())


def test_images_are_found_where_people_keep_them(tmp_path: Path) -> None:
    """COCO is kept in `val2014/` or `images/val2014/`, elsewhere, or as COCO 2017 with other names; each is read."""
    root = published.karpathy_coco(tmp_path / "coco")
    expected = checksums(CocoRetrieval(str(root)))
    for place, images in (
        ("images/val2014", None),
        ("elsewhere/val2014", "elsewhere"),
        ("elsewhere/images/val2014", "elsewhere"),
        ("flat", "flat"),
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / "val2014", root / place)
        found = checksums(CocoRetrieval(str(root), images=None if images is None else str(root / images)))
        assert found == expected, place
        shutil.move(root / place, root / "val2014")
    for number, path in enumerate(sorted((root / "val2014").iterdir())):
        (root / "flat2017" / "train2017").mkdir(parents=True, exist_ok=True)
        (root / "flat2017" / "val2017").mkdir(parents=True, exist_ok=True)
        name = path.name.rpartition("_")[2]
        path.rename(root / "flat2017" / ("train2017" if number % 2 else "val2017") / name)
    assert checksums(CocoRetrieval(str(root), images=str(root / "flat2017"))) == expected


def test_dci_takes_a_split_and_a_caption(tmp_path: Path) -> None:
    """`all` has the three splits in their order; `full` begins with the short caption; the outer folder will do."""
    root = published.dci(tmp_path / "densely_captioned_images")
    full, extra = published.caption(3, 0), f"{published.caption(3, 1)} It swims."
    for folder in (root, tmp_path):
        assert [one.captions for one in DCIRetrieval(str(folder), "test").records()] == [(f"{full}\n{extra}",)]
    assert [one.captions for one in DCIRetrieval(str(root), "test", "extra").records()] == [(extra,)]
    assert [len(DCIRetrieval(str(root), split).records()) for split in ("all", "train", "valid")] == [4, 2, 1]


def test_sharegpt4v_takes_the_first_of_the_list(tmp_path: Path) -> None:
    """1k is the beginning of 10k; images are also found under SA-1B's folders, and flat."""
    root = published.sharegpt4v(tmp_path)
    short, long = (ShareGPT4VRetrieval(str(root), split).records() for split in ("1k", "10k"))
    assert short == long[:4]
    assert len(long) == 5
    expected = checksums(ShareGPT4VRetrieval(str(root)))
    (root / "sam/images/sa_3.jpg").rename(root / "sam/sa_3.jpg")
    (root / "sam/images/sa_2.jpg").rename(root / "sa_2.jpg")
    assert checksums(ShareGPT4VRetrieval(str(root))) == expected
