"""Tests phrase grounding on Flickr30k Entities and RefCOCO: layouts, phrases, boxes, excluded phrases."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from patchword import AlignmentModule
from patchword.data.pixels import Preprocessing
from patchword.data.published.entities import read_sentence
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objectives import CLIP
from patchword.suites import Flickr30kEntities, RefCOCO, RefCOCOg, RefCOCOPlus
from patchword.suites.files import Framing
from patchword.suites.grounding import GroundingBatch, PhraseGrounding
from patchword.suites.refcoco import read_plain_pickle
from tests import tiny
from tests.suites import published_regions as published
from tests.suites.table_model import measure

STRETCH = Framing(Preprocessing("stretch"), 64)


@pytest.fixture(scope="module")
def entities(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(published.flickr30k_entities(tmp_path_factory.mktemp("entities")))


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(published.refcoco(tmp_path_factory.mktemp("refer")))


@pytest.fixture(scope="module")
def clip() -> AlignmentModule:
    return tiny.module(CLIP()).eval()


def test_sentences() -> None:
    """The markup is removed, spans refer to the remaining text, and a phrase has one or more types."""
    text, phrases = read_sentence(published.CAPTIONS[1], "here")
    assert text == "The book lies in a street with each other ."
    assert [(text[a:b], chain, types) for a, b, chain, types in phrases] == [
        ("The book", "5", ("clothing", "other")),
        ("a street", "4", ("scene",)),
        ("each other", "0", ("notvisual",)),
    ]


def test_images_of_flickr30k_entities(entities: str) -> None:
    """Boxes count from 0, right and bottom exclusive; scenes and non-visual phrases are counted, not measured."""
    suite = Flickr30kEntities(entities)
    images = suite.images()
    assert suite.key == "flickr30k_entities_test"
    assert [image.id for image in images] == [1007129816, 1007129817, 1007129818]
    first = images[0]
    assert first.captions[0] == "Two red cups near a blue book ."
    assert [first.captions[r.caption][r.start : r.end] for r in first.regions] == [
        "Two red cups",
        "a blue book",
        "The book",
    ]
    assert [r.groups for r in first.regions] == [("people",), ("other",), ("clothing", "other")]
    assert first.regions[0].boxes == ((0, 0, 20, 15), (60, 0, 80, 15))
    assert first.regions[2].boxes == ((20, 30, 60, 60),)
    assert first.unboxed == 2
    assert len(Flickr30kEntities(entities, "val").images()) == 1


def test_batches_hold_boxes_of_the_view(entities: str) -> None:
    """80 x 60 pixels become 64 x 64; a batch has the phrases of all captions and all their boxes."""
    suite = Flickr30kEntities(entities)
    data = suite.read(STRETCH)
    batch = suite.collate([data[0], data[1]])
    assert batch.phrase_caption.tolist() == [0, 0, 1, 2, 2, 3]
    assert batch.box_phrase.tolist() == [0, 0, 1, 2, 3, 3, 4, 5]
    torch.testing.assert_close(batch.boxes[:3], torch.tensor([[0, 0, 16, 16], [48, 0, 64, 16], [16, 32, 48, 64.0]]))
    assert batch.phrase_box[0].tolist() == [0, 0, 64, 16]
    assert batch.phrase_mask is None
    assert batch.left_out.tolist() == [[2, 0], [2, 0]]
    assert batch.groups[2].tolist() == [False, True, False, False, False, False, False, True]
    moved = batch.to("cpu")
    assert isinstance(moved, GroundingBatch)
    assert len(moved) == 2


class Dot(CLIP):
    """An objective whose maps are dot products."""

    def align(self, images: Images, texts: Texts) -> Tensor:
        return texts.tokens @ images.patches.mT


class Corner:
    """A model whose maps are 1 in the top left quarter for captions that contain `words`.

    Args:
        words: The text that a caption must contain.
    """

    phrase_query = "span"
    map_sources = ("align", "cosine", "dot")
    token_selection = "all"

    def __init__(self, base: AlignmentModule, words: str) -> None:
        self.encoder, self.objective, self.words = base.encoder, Dot(), words
        self.base = base
        self.captions: list[str] = []

    def __call__(self, batch: GroundingBatch) -> tuple[Images, Texts, Any]:
        texts, tokens = self.base.encode_texts(batch.captions)
        sees = torch.tensor([self.words in caption for caption in batch.captions])
        seen = sees[:, None, None].float().expand(-1, texts.mask.shape[1], 1)
        texts = Texts(texts.pooled[:, :1], seen.clone(), tokens.mask)
        patches = torch.zeros(len(batch), 64, 1)
        patches[:, [row * 8 + column for row in range(2) for column in range(2)]] = 1
        return Images(patches.mean(1), patches, (8, 8)), texts, tokens


def test_numbers_known_by_hand(entities: str, clip: AlignmentModule) -> None:
    """Maps on the first of two cups hit the pointing game and ANY, not MERGED; flat maps hit in proportion to area."""
    found = measure(Flickr30kEntities(entities), Corner(clip, "cups"))
    area = {"cups": 2 * 16 * 16 / 64**2, "book": 32 * 32 / 64**2}
    place = "grounding/span/align"
    assert found[f"{place}/pointing_game"] == pytest.approx((1 + 0 + area["book"]) / 3)
    assert found[f"{place}/pointing_game_people"] == 1
    assert found[f"{place}/pointing_game_clothing"] == pytest.approx(area["book"])
    assert found[f"{place}/pointing_game_other"] == pytest.approx(area["book"] / 2)
    assert f"{place}/pointing_game_animals" not in found
    assert found[f"{place}/r@1_any"] == pytest.approx(1 / 3)
    assert found[f"{place}/r@1_merged"] == 0
    assert found[f"{place}/chance_pointing_game"] == pytest.approx((area["cups"] + 2 * area["book"]) / 3)
    assert found[f"{place}/chance_r@1_any"] == found["grounding/span/chance/r@1_any"]
    counts = {"images": 3, "phrases": 9, "cut_phrases": 0, "unboxed_phrases": 6, "unseen_phrases": 0}
    assert {name: found[name] for name in counts} == counts


def test_every_number_is_defined(entities: str, coco: str, clip: AlignmentModule) -> None:
    """The names of definitions contain the model's query."""
    for suite in (Flickr30kEntities(entities), RefCOCO(coco)):
        found = measure(suite, clip)
        counts = {"images", "phrases", "cut_phrases", "unboxed_phrases", "unseen_phrases"}
        names = {name for name in found if "chance_" not in name} - counts
        assert names <= set(suite.definitions)
        assert {name for name in set(suite.definitions) - names if "pointing_game_" not in name} == set()


def test_a_crop_leaves_phrases_out(entities: str, clip: AlignmentModule) -> None:
    """The center crop of a wide image excludes the cups in both corners: they are counted, not measured."""
    suite = Flickr30kEntities(entities)
    crop = suite.read(Framing(Preprocessing("crop", fraction=0.5), 64))
    batch = suite.collate([crop[i] for i in range(3)])
    evaluation = suite.evaluation(clip)
    with torch.no_grad():
        evaluation.update(batch)
    found = evaluation.compute()
    assert (found["phrases"], found["unseen_phrases"], found["unboxed_phrases"]) == (6, 3, 6)


def by_batches(suite: PhraseGrounding, module: Any) -> None:
    found = measure(suite, module, batch=3)
    assert measure(suite, module, batch=1) == pytest.approx(found)
    assert measure(suite, module, batch=2, order=[0, 1, 0, 1, 1]) == pytest.approx(
        measure(suite, module, batch=1, order=[0, 1])
    )


def test_batches_and_repeats_do_not_matter(entities: str, coco: str, clip: AlignmentModule) -> None:
    by_batches(Flickr30kEntities(entities), clip)
    by_batches(RefCOCO(coco), clip)


def test_images_of_refcoco(coco: str, tmp_path: Path) -> None:
    """All expressions of an image are read as processed sentences, and sizes and boxes from instances.json."""
    suite = RefCOCO(coco)
    first, second = suite.images()
    assert suite.key == "refcoco_unc_val"
    assert (first.id, second.id) == (581857, 581858)
    assert first.captions == ("red cup", "the blue book", "a book on the right")
    assert [(r.start, r.end, r.boxes) for r in first.regions] == [
        (0, 7, ((0, 0, 20.5, 15.25),)),
        (0, 13, ((20, 30, 60, 60),)),
        (0, 19, ((20, 30, 60, 60),)),
    ]
    assert [len(image.captions) for image in RefCOCO(coco, "testA").images()] == [1, 1]
    for kind, name, split_by in ((RefCOCOPlus, "refcoco+", "unc"), (RefCOCOg, "refcocog", "umd")):
        root = published.refcoco(tmp_path / name, name, split_by)
        suite = kind(str(root))
        assert len(suite.images()) == 2
        assert suite.key == f"{name}_{split_by}_val"
    moved = RefCOCO(coco, images=str(Path(coco) / "images/mscoco/images/train2014"))
    assert moved.images() == RefCOCO(coco).images()


def test_refcoco_by_hand(coco: str, clip: AlignmentModule) -> None:
    """There is one box per expression; only "red cup" is in the quarter that the model highlights."""
    found = measure(RefCOCO(coco), Corner(clip, "cup"))
    assert found["grounding/span/align/acc@0.5"] == pytest.approx(1 / 3)
    assert "grounding/span/align/r@1_merged" not in found
    assert found["phrases"] == 6


class WithRegions(Dot):
    """An objective that proposes the top left quarter of 8 x 8 patches' rows and columns, and the complete image."""

    def propose_regions(self, images: Images) -> tuple[Tensor, Tensor]:
        corner, whole = torch.zeros(8, 8, dtype=torch.bool), torch.ones(8, 8, dtype=torch.bool)
        corner[:2, :2] = True
        regions = torch.stack([corner, whole]).flatten(1).expand(len(images), -1, -1)
        return regions, torch.zeros(regions.shape[:2])


def test_refcoco_by_regions(coco: str, clip: AlignmentModule, tmp_path: Path) -> None:
    """The map of "red cup" is on its box; other maps are flat, so that all candidates tie, and the choice is wrong."""
    truth = RefCOCO(coco, candidates="ground_truth")
    found = measure(truth, Corner(clip, "cup"))
    place = "grounding/span/align"
    assert found[f"{place}/acc@0.5_of_ground_truth"] == pytest.approx(1 / 3)
    assert found[f"{place}/chance_acc@0.5_of_ground_truth"] == pytest.approx(1 / 3)  # three boxes in each image
    assert found["grounding/span/center_prior/acc@0.5_of_ground_truth"] == pytest.approx(2 / 3)  # the book
    assert 0 <= found["grounding/span/chance/acc@0.5_of_ground_truth"] <= 1
    assert (found["candidates"], found["images_without_candidates"]) == (6, 0)
    assert {name for name in found if "/" in name and "chance_" not in name} == {*truth.definitions}
    assert "candidates" not in RefCOCO(coco).protocol()
    assert truth.protocol()["candidates"] == "ground_truth"

    path = tmp_path / "proposals.json"
    rows = [{"image_id": 581857, "bbox": [0, 0, 20, 15]}, {"image_id": 581857, "bbox": [40, 30, 40, 30], "score": 0.5}]
    path.write_text(json.dumps(rows))
    proposals = RefCOCO(coco, candidates=str(path))
    found = measure(proposals, Corner(clip, "cup"))
    assert found[f"{place}/acc@0.5_of_proposals"] == pytest.approx(1 / 6)  # only the first image has proposals
    assert found[f"{place}/chance_acc@0.5_of_proposals"] == pytest.approx(1 / 2 / 6)
    assert (found["candidates"], found["images_without_candidates"]) == (2, 1)
    assert proposals.protocol()["candidates"] == "proposals"

    model = Corner(clip, "cup")
    model.objective = WithRegions()
    found = measure(RefCOCO(coco, candidates="regions"), model)
    assert found[f"{place}/acc@0.5_of_regions"] == pytest.approx(1 / 3)
    assert found[f"{place}/chance_acc@0.5_of_regions"] == pytest.approx(1 / 6)
    assert found["candidates"] == 4
    by_batches(truth, clip)
    by_batches(proposals, clip)


def test_candidates_are_a_part_of_the_checksum(coco: str, tmp_path: Path) -> None:
    """Runs with different proposals do not have the same data."""
    sums = set()
    for width in (10, 20):
        path = tmp_path / f"{width}.json"
        path.write_text(json.dumps([{"image_id": 581857, "bbox": [0, 0, width, 15]}]))
        sums.add(RefCOCO(coco, candidates=str(path)).read(STRETCH)[0].total)
    sums.add(RefCOCO(coco).read(STRETCH)[0].total)
    assert len(sums) == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "must be a list of proposals"),
        ([{"image_id": 581857}], r"\[0\] has no 'bbox'"),
        ([{"bbox": [0, 0, 1, 1]}], r"\[0\] has no 'image_id'"),
        ([{"image_id": 581857, "bbox": [0, 0, 1]}], r"\[0\]: bbox must be left, top, width and height"),
        ([{"image_id": 581857, "bbox": [0, 0, 0, 5]}], r"\[0\]: the width and height of a proposal must be above 0"),
        ([{"image_id": 581857, "bbox": [0, 0, 90, 5]}], r"\[0\]: the box from \(0, 0\) to \(90, 5\) leaves its image"),
        ([{"image_id": 3, "bbox": [0, 0, 1, 1]}], r"\[0\]: .*instances\.json has no image 3"),
    ],
)
def test_wrong_proposals(coco: str, tmp_path: Path, rows: Any, message: str) -> None:
    """The message names the file, the row and the fix."""
    path = tmp_path / "proposals.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=rf"proposals\.json.*{message}"):
        RefCOCO(coco, candidates=str(path)).images()


def test_no_proposals(coco: str, clip: AlignmentModule) -> None:
    """A missing file, and an objective that proposes no regions."""
    with pytest.raises(UserError, match="must be ground_truth or regions or a file of proposals, but there is no"):
        RefCOCO(coco, candidates="x.json").images()
    with pytest.raises(UserError, match="CLIP proposes none"):
        measure(RefCOCO(coco, candidates="regions"), clip)


class Code:
    """The code that pickle executes on loading."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.path),))

    def __init__(self, path: Path) -> None:
        self.path = str(path)


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    """No code in a pickle runs; a plain pickle is read for every protocol."""
    with (tmp_path / "bad.p").open("wb") as file:
        pickle.dump([{"split": "val"}, Code(tmp_path / "ran")], file)
    with pytest.raises(UserError, match="No code was executed"):
        read_plain_pickle(tmp_path / "bad.p")
    assert not (tmp_path / "ran").exists()
    plain = [{"a": [1, 2.5, "é", None, True, (1,)]}]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "plain.p").write_bytes(pickle.dumps(plain, protocol))
        assert read_plain_pickle(tmp_path / "plain.p") == plain
