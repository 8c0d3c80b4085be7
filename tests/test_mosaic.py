"""The small pictures of a validation: what they show, and that they are small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchword.callbacks.maps import AlignmentMaps, alignment_of
from patchword.data.batch import Phrase, collate
from patchword.data.scenes.scenes import EmojiScenes
from patchword.errors import UserError
from patchword.maps.alignment import Alignment
from patchword.maps.mosaic import mosaic, save_mosaic
from patchword.maps.phrases import SOURCES
from patchword.metrics.evaluation import PhraseMaps
from patchword.objectives import CLIP
from tests import tiny


def example(phrases: int = 3, height: int = 60, width: int = 80) -> Alignment:
    """A white image with phrases whose maps are highest in the bottom right patch."""
    maps = torch.zeros(phrases, 12)
    maps[:, -1] = 1
    masks = torch.zeros(phrases, height, width, dtype=torch.bool)
    masks[:, 15:45, 20:60] = True
    pixels = torch.full((3, height, width), 255, dtype=torch.uint8)
    return Alignment(pixels, "a cup and a dog", [(0, 5)] * phrases, {"align": maps, "dot": maps}, (3, 4), masks)


def test_rows_and_columns() -> None:
    """One row for each of the first phrases, one column for the image and for each source, in the image's shape."""
    two, three = mosaic(example(), 2), mosaic(example(), 3)
    assert three.width == two.width == 110 + 3 * 164
    assert three.height - two.height == 124
    assert mosaic(example(2), 5).height == two.height


def test_colors_and_outlines() -> None:
    """The lowest patch is purple and the highest is yellow, over the image; the object has a white and a black line."""
    pixels = np.asarray(mosaic(example(1), 1).convert("RGB")).astype(int)
    top, left = pixels.shape[0] - 124, 110 + 164
    low, high = pixels[top, left], pixels[top + 119, left + 159]
    assert low[2] > low[1] + 20 < low[0] + 20
    assert high[0] > high[2] + 50
    line = pixels[top + 60, left : left + 80]
    assert (line == 0).all(-1).nonzero()[0].tolist() == [39]
    assert (line == 255).all(-1).nonzero()[0].tolist() == [40]


def test_a_map_that_is_not_finite() -> None:
    """Only the image in gray is drawn, and no warning is raised."""
    broken = example(1)
    broken.maps["dot"][0, 3] = torch.nan
    pixels = np.asarray(mosaic(replace(broken, masks=None), 1).convert("RGB"))
    last = pixels[-124:-4, -164:-4]
    assert (last == last[0, 0, 0]).all()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """The error names the file."""
    (tmp_path / "maps").write_text("a file")
    with pytest.raises(UserError, match=r"picture\.png"):
        save_mosaic(example(1), 1, tmp_path / "maps" / "picture.png")


def test_pictures_of_a_validation_are_small(tmp_path: Path) -> None:
    """They have less than 300 KB each, even for an image that is all noise; `phrases` limits their rows."""
    torch.manual_seed(0)
    noise = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    at = EmojiScenes.__getitem__
    trainer = tiny.trainer(tmp_path, AlignmentMaps(samples=2, phrases=2), max_epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmojiScenes, "__getitem__", lambda self, index: replace(at(self, index), image=noise))
        trainer.fit(tiny.module(CLIP()), tiny.data(train_size=16, objects=(4, 4)))
    pictures = list(tmp_path.rglob("val_step_*.png"))
    assert len(pictures) == 2
    assert max(path.stat().st_size for path in pictures) < 300_000
    for path in pictures:
        with Image.open(path) as picture:
            assert 2 * 164 < picture.height < 3 * 164


def test_phrases_are_those_of_one_caption() -> None:
    """An image has several captions; spans of one caption must not select words of another one."""
    captions = ["a dog", "the big red cup"]
    phrases = [[], [Phrase(8, 15), Phrase(4, 15)]]
    sample = replace(tiny.data().split("val")[0], captions=captions, phrases=phrases, negatives=[])
    batch = collate([sample])
    kept = torch.ones(2, dtype=torch.bool)
    maps = {source: torch.rand(2, 64) for source in SOURCES}
    found = alignment_of(batch, kept, PhraseMaps(maps, kept, (8, 8), torch.full((len(kept), 2), 8)))
    assert found.caption == captions[1]
    assert found.words == ["red cup", "big red cup"]
