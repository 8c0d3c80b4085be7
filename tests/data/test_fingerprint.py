"""A fingerprint changes with a split's samples and with nothing else: features are kept under it."""

import os

import numpy as np
import pytest
from PIL import Image

from patchword.data.datamodule import Scenes
from patchword.data.folder import CaptionFolder
from patchword.data.shards import CaptionShards
from patchword.errors import InputError
from tests.data.test_folder import metadata, row
from tests.data.test_shards import pack, sample


def test_scenes():
    """Batches and processes change nothing; the seed changes the training scenes alone."""
    scenes = {"image_size": 32, "train_size": 8, "val_size": 8, "test_size": 8}
    one = Scenes(**scenes)
    same = Scenes(**scenes, batch_size=3, num_workers=1, remember=False)
    for split in ("train", "val", "test", "unseen_concepts"):
        assert one.fingerprint(split) == same.fingerprint(split)
    assert len({one.fingerprint(split) for split in ("train", "val", "test", "unseen_concepts")}) == 4
    other = Scenes(**scenes | {"train_size": 9}, seed=1)
    assert one.fingerprint("train") != other.fingerprint("train") != Scenes(**scenes, seed=1).fingerprint("train")
    assert one.fingerprint("val") == other.fingerprint("val")
    assert one.fingerprint("val") != Scenes(**scenes, objects=(2, 3)).fingerprint("val")


def folder(root, **options):
    """A CaptionFolder of `root`, which has been written before."""
    return CaptionFolder(str(root), **{"image_size": 20, "batch_size": 1} | options)


def test_folder(tmp_path):
    """Captions, images, their times and the size of the crops count; the place of the folder does not."""
    root = tmp_path / "a"
    (root / "test").mkdir(parents=True)
    Image.fromarray(np.zeros((24, 24, 3), dtype=np.uint8)).save(root / "test" / "a.png")
    metadata(root / "test", row())
    before = folder(root).fingerprint("test")
    root = root.rename(tmp_path / "b")
    assert folder(root, batch_size=2, num_workers=1).fingerprint("test") == before
    assert folder(root, image_size=21).fingerprint("test") != before
    os.utime(root / "test" / "a.png", ns=(1, 1))
    touched = folder(root).fingerprint("test")
    metadata(root / "test", row(caption="a blue half"))
    assert len({before, touched, folder(root).fingerprint("test")}) == 3
    (root / "test" / "a.png").unlink()
    with pytest.raises(InputError, match=r"there is no image .*a\.png"):
        folder(root).fingerprint("test")


def test_shards(tmp_path):
    """Files and the member with the caption count; how shards are mixed does not."""
    path = str(pack(tmp_path / "0.tar", sample(1)))
    one = CaptionShards(path).fingerprint("train")
    assert CaptionShards(path, mix=3, batch_size=2).fingerprint("train") == one
    assert CaptionShards(path, test=path).fingerprint("test") == one
    assert CaptionShards(path, caption="json:caption").fingerprint("train") != one
    pack(tmp_path / "0.tar", sample(2))
    assert CaptionShards(path).fingerprint("train") != one
    with pytest.raises(InputError, match=r"data\.val is null"):
        CaptionShards(path).fingerprint("val")
