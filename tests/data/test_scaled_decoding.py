"""JPEGs decoded at a fraction of their size have all the pixels that the model sees, and nearly the same values."""

from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from patchword.data.augmentation import Views, random_crop
from patchword.data.pixels import NativePreprocessing, Preprocessing, decode
from patchword.data.tables.rows import Columns, RowReader
from patchword.errors import UserError

COLUMNS = Columns("image", ["caption"], "phrases")
MODES = {
    "crop": Preprocessing("crop", 0.875),
    "stretch": Preprocessing("stretch"),
    "native": NativePreprocessing(patch_size=4, max_num_patches=64),
}


def photograph(width: int, height: int, format: str = "JPEG", **options: object) -> bytes:
    """Encode smooth random colors with a little noise."""
    random = np.random.default_rng(width + height)
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = (smooth + random.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(noisy).save(file, format, **options)
    return file.getvalue()


def reader(scaled: bool, mode: str = "crop", **options: object) -> RowReader:
    return RowReader(COLUMNS, Path(), MODES[mode], 32, phrases="data", scaled_decoding=scaled, **options)  # type: ignore[arg-type]


def row(image: bytes) -> dict[str, object]:
    box = {"start": 0, "end": 5, "box": [20, 10, 150, 90]}
    return {"image": image, "caption": "a dog", "phrases": [box]}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(200, 150), (161, 403), (640, 480), (33, 90)])
def test_samples_are_nearly_those_of_complete_images(mode: str, size: tuple[int, int]) -> None:
    """Shapes, boxes and random crops are equal, and no value of a smooth image differs by more than 12 of 255."""
    line, crop = row(photograph(*size)), "none" if mode == "native" else "crop"
    for sample in (
        lambda one: one.evaluate([line], 0, "row 0"),
        lambda one: one.train(line, 0, "row 0", Random(1)),
    ):
        whole, scaled = (sample(reader(way, mode, augmentation=crop)) for way in (False, True))
        assert scaled.image.shape == whole.image.shape
        assert [p.box for p in scaled.phrases[0]] == [p.box for p in whole.phrases[0]]
        assert (scaled.image.int() - whole.image.int()).abs().max() <= 12
        if min(size) < 64 and mode != "native":  # every pixel is needed
            assert scaled.image.equal(whole.image)


@pytest.mark.parametrize("mode", ["crop", "stretch"])
def test_no_image_is_enlarged_afterwards(mode: str) -> None:
    """Whatever the size, the part that the model sees has at least 32 pixels per side, also of a random crop."""
    random, reductions = Random(0), set()
    for _ in range(60):
        size = random.randint(40, 700), random.randint(40, 700)
        for augmentation in ("none", "crop"):
            one = reader(True, mode, augmentation=augmentation)
            found = decode(BytesIO(photograph(*size)), spare=one._spare)
            assert found.size == size
            assert found.image.size == tuple(-(-side // found.reduction) for side in size)
            views = [MODES[mode].view(*size, 32)]
            if augmentation == "crop":
                views += [random_crop(*size, 32, "bicubic", random) for _ in range(20)]
            for view in views:
                left, top, right, bottom = view.source
                enlarged = min(right - left, bottom - top) < 32
                assert enlarged or min(right - left, bottom - top) / found.reduction >= 32
            reductions.add(found.reduction)
    assert reductions == {1, 2, 4, 8}


@pytest.mark.parametrize(("size", "reduction"), [((400, 320), 8), ((404, 322), 2), ((403, 321), 1)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(orientation: int, size: tuple[int, int], reduction: int) -> None:
    """The rotation of the EXIF data applies. Images that it turns are reduced by a divisor of their sides.

    Otherwise, all their pixels would move by a part of a pixel.
    """
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = photograph(*size, exif=exif)
    found = decode(BytesIO(content), spare=reader(True, "stretch")._spare)
    assert found.size == (size if orientation < 5 else size[::-1])
    assert found.reduction == (8 if orientation == 1 else reduction)
    whole, scaled = (reader(way, "stretch").evaluate([row(content)], 0, "row 0").image.int() for way in (False, True))
    assert (scaled - whole).abs().float().mean() < 1


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_other_formats_are_read_completely(format: str) -> None:
    """The option changes nothing about them."""
    line = row(photograph(300, 200, format))
    whole, scaled = (reader(way).evaluate([line], 0, "row 0").image for way in (False, True))
    assert scaled.equal(whole)


def test_views_need_all_pixels() -> None:
    with pytest.raises(UserError, match=r"the small crops of data.views need all pixels"):
        reader(True, views=Views())
