"""A fingerprint changes only with a split's samples; stored features are identified by it."""

import pytest

from patchword.data.scenes.datamodule import Scenes
from patchword.data.tables.image_text import ImageText
from patchword.errors import UserError
from tests.data.test_tars import pack, sample


def test_scenes():
    """Batch size and processes do not change it; the seed changes only that of the training scenes."""
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


def test_tars(tmp_path):
    """It depends on files and members, but not on how tars are mixed."""
    path = str(pack(tmp_path / "0.tar", sample(1)))

    def tars(**options):
        options = {"caption": "txt", "resize_mode": "crop", "image_size": 16} | options
        return ImageText("webdataset", path, test=path, **options)

    one = tars().fingerprint("train")
    assert tars(mix=3, batch_size=2).fingerprint("train") == one
    assert tars(caption="json.caption").fingerprint("train") != one
    assert tars(negatives="json.caption").fingerprint("test") != tars().fingerprint("test")
    pack(tmp_path / "0.tar", sample(2))
    assert tars().fingerprint("train") != one
    with pytest.raises(UserError, match=r"data\.val is null"):
        tars().fingerprint("val")
