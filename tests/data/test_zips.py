"""Zipped images with the addresses that `datasets` gives them in tables of image folders."""

import json
import os
import zipfile
from pathlib import Path
from random import Random

import datasets
import pytest

from patchword.data.pixels import Preprocessing
from patchword.data.tables.image_text import ImageText
from patchword.data.tables.rows import BrokenSample, Columns, RowReader
from patchword.errors import UserError
from tests.data import formats

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def zipped(path, numbers=range(3)):
    """Write images with their metadata to a zip file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        rows = [{"file_name": f"{n}.jpg", "caption": f"caption {n}"} for n in numbers]
        file.writestr("metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        for n in numbers:
            file.writestr(f"{n}.jpg", formats.jpeg(n))
    return path


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_zipped_images(tmp_path, monkeypatch, streaming):
    """Each image has its caption, no image counts as broken, and a changed archive changes the fingerprint."""
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = zipped(tmp_path / "set" / "a.zip")
    stream = {"streaming": True, "steps_per_epoch": 3} if streaming else {}
    module = ImageText(
        str(path.parent), "train", resize_mode="crop", image_size=16, batch_size=1, max_broken=0, **stream
    )
    module.setup("fit")
    batches = [*module.train_dataloader()]
    found = {round(float(batch.images[0, 0].float().mean()) / 10): batch.captions for batch in batches}
    assert found == {n: [f"caption {n}"] for n in range(3)}
    if not streaming:
        before = module.fingerprint("train")
        os.utime(path, (1, 1))
        assert module.fingerprint("train") != before


def test_mistakes(tmp_path):
    """A missing member and a broken archive are broken samples; an archive outside of the folder is an error."""
    root = tmp_path / "root"
    zipped(root / "a.zip")
    zipped(tmp_path / "secret.zip")
    (root / "no.zip").write_bytes(b"PK")

    def read(address):
        reader = RowReader(Columns("image", ["caption"], None), Path(root), Preprocessing("crop"), 4)
        return reader.train({"image": address, "caption": "a"}, 0, "row 0", Random(0))

    assert read(f"zip://2.jpg::{root}/a.zip").captions == ["a"]
    for address, reason in {
        f"zip://7.jpg::{root}/a.zip": "there is no 7.jpg in",
        f"zip://1.jpg::{root}/b.zip": "there is no image",
        f"zip://1.jpg::{root}/no.zip": "cannot be read",
    }.items():
        with pytest.raises(BrokenSample, match=reason):
            read(address)
    with pytest.raises(UserError, match="leads out of the folder"):
        read(f"zip://1.jpg::{tmp_path}/secret.zip")
    with pytest.raises(UserError, match="unpack them"):
        read("zip://1.jpg::hf://datasets/a/b@main/a.zip")
