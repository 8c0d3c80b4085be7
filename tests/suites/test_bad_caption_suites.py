"""Tests the error messages for data that is not as published: file, place and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of its first import
import pytest

from patchword.cli import main
from patchword.errors import UserError
from patchword.suites import (
    FGOVD,
    MMVP,
    VALSE,
    BiVLC,
    CocoFaithfulness,
    CocoOrder,
    CocoRetrieval,
    DCIRetrieval,
    DocciRetrieval,
    Flickr30kRetrieval,
    IIWRetrieval,
    NegBenchMCQ,
    NegBenchRetrieval,
    ShareGPT4VRetrieval,
    SugarCrepe,
    SugarCrepePP,
    Suite,
    Urban1k,
    VGAttribution,
    VGRelation,
    Winoground,
)
from tests.suites import published_captions as published
from tests.suites.table_model import FRAMING


def coco(root: Path, change: Callable[[dict[str, Any]], None]) -> CocoRetrieval:
    """Change the first test image, images[1], in Karpathy's file."""
    path = published.karpathy_coco(root, 5) / "dataset_coco.json"
    content = json.loads(path.read_text())
    change(content["images"][1])
    path.write_text(json.dumps(content))
    return CocoRetrieval(str(root))


def replaced(path: Path, old: str, new: str) -> None:
    """Replace `old`, which must exist, by `new` in a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def no_file(root: Path) -> Suite:
    return CocoRetrieval(str(root))


def no_folder(root: Path) -> Suite:
    return Flickr30kRetrieval(str(root / "nowhere"))


def not_json(root: Path) -> Suite:
    (root / "dataset_flickr30k.json").write_text("{'images': []}")
    return Flickr30kRetrieval(str(root))


def no_key(root: Path) -> Suite:
    return coco(root, lambda image: image.pop("sentences"))


def wrong_type(root: Path) -> Suite:
    return coco(root, lambda image: image.update(filename=7))


def outside(root: Path) -> Suite:
    return coco(root, lambda image: image.update(filename="../../secret.jpg"))


def no_captions(root: Path) -> Suite:
    return coco(root, lambda image: image.update(sentences=[]))


def uneven_folds(root: Path) -> Suite:
    coco(root, lambda image: image.update(split="val"))
    return CocoRetrieval(str(root), "1k")


def no_number(root: Path) -> Suite:
    return CocoRetrieval(str(published.karpathy_coco(root)), captions_per_image=0)


def image_gone(root: Path) -> Suite:
    (published.karpathy_coco(root) / "val2014/COCO_val2014_000000000100.jpg").unlink()
    return CocoRetrieval(str(root))


def image_broken(root: Path) -> Suite:
    path = published.karpathy_coco(root) / "val2014/COCO_val2014_000000000100.jpg"
    path.write_bytes(path.read_bytes()[:200])
    return CocoRetrieval(str(root))


def val2017_without_annotation(root: Path) -> Suite:
    path = published.coco_val2017(root) / "annotations/captions_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 302]
    path.write_text(json.dumps(content))
    return CocoRetrieval(str(root), "val2017")


def broken_line(root: Path) -> Suite:
    replaced(published.docci(root) / "docci_descriptions.jsonlines", '"split": "test"', '"split": test')
    return DocciRetrieval(str(root))


def no_such_split(root: Path) -> Suite:
    return DocciRetrieval(str(published.docci(root)), "qual_test")


def no_caption_files(root: Path) -> Suite:
    return Urban1k(str(root))


def not_an_object(root: Path) -> Suite:
    published.sugarcrepe(root)
    (root / "swap_att.json").write_text("[]")
    return SugarCrepe(str(root))


def no_parquet(root: Path) -> Suite:
    return Winoground(str(root))


def broken_parquet(root: Path) -> Suite:
    (root / "test.parquet").write_bytes(b"PAR1 and nothing else")
    return BiVLC(str(root))


def no_column(root: Path) -> Suite:
    return BiVLC(str(published.winoground_parquet(root)))


def no_bytes(root: Path) -> Suite:
    import pyarrow
    from pyarrow import parquet

    published.bivlc(root)
    path = root / "data/test-00000-of-00002.parquet"
    table = parquet.read_table(path)
    column = table.schema.get_field_index("negative_image")
    empty = pyarrow.array([{"bytes": None, "path": "0.jpg"}] * len(table), table.schema.field(column).type)
    parquet.write_table(table.set_column(column, "negative_image", empty), path)
    return BiVLC(str(root))


def other_columns(root: Path) -> Suite:
    replaced(published.mmvp(root) / "Questions.csv", "Statement", "Question")
    return MMVP(str(root))


def half_a_pair(root: Path) -> Suite:
    path = published.mmvp(root) / "Questions.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    return MMVP(str(root))


def two_types(root: Path) -> Suite:
    replaced(published.mmvp(root) / "Questions.csv", "4,Orientation and Direction", "4,Texts")
    return MMVP(str(root))


def not_a_list(root: Path) -> Suite:
    (published.aro(root) / "visual_genome_relation.json").write_text('{"cases": []}')
    return VGRelation(str(root))


def region_outside(root: Path) -> Suite:
    replaced(published.aro(root) / "visual_genome_attribution.json", '"bbox_x": 2', '"bbox_x": 2000')
    return VGAttribution(str(root))


def region_without_end(root: Path) -> Suite:
    path = published.aro(root) / "visual_genome_relation.json"
    replaced(path, '"bbox_w": 14, "bbox_h": 16', '"bbox_w": 1000000, "bbox_h": 1000000')
    return VGRelation(str(root))


def no_tagger(root: Path) -> Suite:
    return CocoOrder(str(published.karpathy_coco(root)), "no_such_model")


def no_tagger_of_words(root: Path) -> Suite:
    return CocoFaithfulness(str(published.karpathy_coco(root)), tagger="no_such_model")


def no_negatives(root: Path) -> Suite:
    replaced(published.fgovd(root) / "h_attributes_llava.jsonl", '"neg_expression": [', '"neg_expression": [7, ')
    return FGOVD(str(root))


def no_box(root: Path) -> Suite:
    replaced(published.fgovd(root) / "h_attributes_llava.jsonl", "15.5]", "0]")
    return FGOVD(str(root))


def box_without_size(root: Path) -> Suite:
    replaced(published.fgovd(root) / "h_attributes_llava.jsonl", '"width": 40', '"width": "40"')
    return FGOVD(str(root), region="patches")


def first_sugarcrepe(root: Path) -> Suite:
    return SugarCrepePP(str(published.sugarcrepe(root)))


def no_votes(root: Path) -> Suite:
    replaced(published.valse(root) / "relations.json", '"mturk"', '"votes"')
    return VALSE(str(root))


def wrong_answer(root: Path) -> Suite:
    path = published.negbench(root) / "images/COCO_val_mcq_llama3.1_rephrased.csv"
    replaced(path, "000000000001.jpg,1", "000000000001.jpg,4")
    return NegBenchMCQ(str(root))


def wrong_template(root: Path) -> Suite:
    replaced(published.negbench(root) / "images/VOC2007_mcq_llama3.1_rephrased.csv", "hybrid", "both")
    return NegBenchMCQ(str(root), "voc2007")


def no_csv_column(root: Path) -> Suite:
    replaced(published.negbench(root) / "images/synthetic_retrieval_v1.csv", "filepath", "image_path")
    return NegBenchRetrieval(str(root), "synthetic_v1")


def short_row(root: Path) -> Suite:
    path = published.negbench(root) / "images/synthetic_retrieval_v1.csv"
    path.write_text(path.read_text() + "alone.png\n")
    return NegBenchRetrieval(str(root), "synthetic_v1")


def captions_that_are_code(root: Path) -> Suite:
    path = published.negbench(root) / "images/COCO_val_retrieval.csv"
    path.write_text("filepath,captions\n000000000000.jpg,\"__import__('os').getcwd()\"\n")
    return NegBenchRetrieval(str(root), "coco")


def no_annotation(root: Path) -> Suite:
    (published.dci(root) / "annotations/112951-data.json").unlink()
    return DCIRetrieval(str(root))


def no_iiw_caption(root: Path) -> Suite:
    replaced(published.iiw(root) / "IIW-400/data.jsonl", '"IIW"', '"IIW-P5B"')
    return IIWRetrieval(str(root))


def no_sentences(root: Path) -> Suite:
    return DocciRetrieval(str(published.docci(root)), captions="sentences")


def sentences_of_other_splits(root: Path) -> Suite:
    return DocciRetrieval(str(root), "train", "sentences")


def too_few_entries(root: Path) -> Suite:
    return ShareGPT4VRetrieval(str(published.sharegpt4v(root)))


def not_a_list_of_captions(root: Path) -> Suite:
    replaced(published.blip_coco(root) / "annotation/coco_karpathy_test.json", '"caption": [', '"caption": [7, ')
    return CocoRetrieval(str(root))


def two_captions_of_urban1k(root: Path) -> Suite:
    path = published.urban1k_list(root) / "annotations/annotations.json"
    replaced(path, '"2.jpg"', '"1.jpg"')
    return Urban1k(str(root))


MISTAKES: list[tuple[Callable[[Path], Suite], tuple[str, ...]]] = [
    (no_file, ("there is no file", "dataset_coco.json", "Karpathy")),
    (no_folder, ("there is no folder", "nowhere", "data.root")),
    (not_json, ("dataset_flickr30k.json", "JSON")),
    (no_key, ("dataset_coco.json, images[1]", "'sentences'", "published file")),
    (wrong_type, ("dataset_coco.json, images[1]", "filename", "str", "'7'")),
    (outside, ("dataset_coco.json, images[1]", "../../secret.jpg")),
    (no_captions, ("dataset_coco.json, images[1]", "no captions")),
    (uneven_folds, ("dataset_coco.json", "4 images", "'test'", "5 folds")),
    (no_number, ("captions_per_image", "1 or more", "null", "0")),
    (image_gone, ("dataset_coco.json, images[1]: there is no image", "COCO_val2014_000000000100.jpg")),
    (image_broken, ("dataset_coco.json, images[1]", "COCO_val2014_000000000100.jpg", "cannot be read")),
    (val2017_without_annotation, ("captions_val2017.json, images[2]", "no captions")),
    (broken_line, ("docci_descriptions.jsonlines, line 3", "JSON")),
    (no_such_split, ("docci_descriptions.jsonlines", "'qual_test'")),
    (no_caption_files, ("caption/*.txt", "data.root")),
    (not_an_object, ("swap_att.json", "object")),
    (no_parquet, ("Parquet", "data.root")),
    (broken_parquet, ("test.parquet", "Parquet")),
    (no_column, ("0000.parquet", "'caption'", "caption_0")),
    (no_bytes, ("test-00000-of-00002.parquet, row 0", "negative_image", "bytes")),
    (other_columns, ("Questions.csv", "Question ID, Type, Statement")),
    (half_a_pair, ("Questions.csv", "even number of rows")),
    (two_types, ("Questions.csv, question 3", "two types")),
    (not_a_list, ("visual_genome_relation.json", "list", "dict")),
    (region_outside, ("visual_genome_attribution.json, [0]", "(2000, 0, 2014, 16)", "outside")),
    (region_without_end, ("visual_genome_relation.json, [0]", "too large")),
    (no_negatives, ("h_attributes_llava.jsonl, line 1", "neg_expression", "list of captions")),
    (no_box, ("h_attributes_llava.jsonl, line 1", "bbox", "left, top, width and height")),
    (box_without_size, ("h_attributes_llava.jsonl, line 1", "width", "int")),
    (first_sugarcrepe, ("swap_obj.json", "list", "SugarCrepe++")),
    (no_votes, ("relations.json, 'relations_0'", "mturk")),
    (wrong_answer, ("rephrased.csv, row 2", "correct_answer", "from 0 to 3", "'4'")),
    (wrong_template, ("rephrased.csv, row 3", "positive, negative, hybrid", "'both'")),
    (no_csv_column, ("synthetic_retrieval_v1.csv", "filepath", "image_path, captions")),
    (short_row, ("synthetic_retrieval_v1.csv, row 5", "2 values")),
    (captions_that_are_code, ("COCO_val_retrieval.csv, row 1", "captions", "list of texts")),
    (no_annotation, ("splits.json", "112951-data.json")),
    (no_iiw_caption, ("IIW-400/data.jsonl, line 1", "'IIW'")),
    (no_sentences, ("annotations/test_annotations.json", "FLAIR")),
    (sentences_of_other_splits, ("data.captions", "data.split", "train")),
    (too_few_entries, ("share-captioner_coco_lcs_sam_1246k_1107.json", "1000 or more")),
    (not_a_list_of_captions, ("coco_karpathy_test.json, [0]", "caption", "list of texts")),
    (two_captions_of_urban1k, ("annotations.json", "1.jpg", "one caption")),
    (no_tagger, ("data.tagger", "no_such_model", "spacy download")),
    (no_tagger_of_words, ("data.tagger", "no_such_model", "spacy download")),
]


@pytest.mark.parametrize(("make", "expected"), MISTAKES, ids=[make.__name__ for make, _ in MISTAKES])
def test_a_mistake_gets_one_clear_message(
    make: Callable[[Path], Suite], expected: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as raised:
        make(tmp_path).read(FRAMING)[0]
    message = str(raised.value)
    assert "\n" not in message
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("command", "make", "options", "expected"),
    [
        ("test", no_key, (), "images[1]"),
        ("test", image_gone, ("--data.num_workers", "1"), "COCO_val2014_000000000100.jpg"),
        ("fit", image_gone, (), "patchword test"),
    ],
)
def test_at_the_command_line_there_is_no_traceback(
    command: str,
    make: Callable[[Path], Suite],
    options: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Messages appear before the first batch, in a worker that reads an image, and if a suite is used for training."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    files = ("--config", "configs/clip.yaml", "--config", "configs/suites/coco_5k.yaml", "--data.root", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main([command, *files, *options, "--trainer.enable_progress_bar", "false"])
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("patchword: error: ")]
    assert expected in line
