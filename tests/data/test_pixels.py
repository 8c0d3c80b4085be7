"""Images of many kinds are read as the model needs them."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchword.data.pixels import Preprocessing, View, is_image_name, read_image
from patchword.errors import UserError

RED, WHITE, BLUE = (255, 0, 0), (255, 255, 255), (0, 0, 255)


def read(image, format, **options):
    """Write `image` in a format and read it."""
    file = BytesIO()
    image.save(file, format, **options)
    return np.asarray(read_image(BytesIO(file.getvalue())))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(format, orientation):
    """Images are rotated as their EXIF orientation says."""
    upright = Image.new("RGB", (6, 4), WHITE)
    upright.paste(RED, (0, 0, 2, 2))
    turns = Image.Transpose
    back = [None, turns.FLIP_LEFT_RIGHT, turns.ROTATE_180, turns.FLIP_TOP_BOTTOM, turns.TRANSPOSE, turns.ROTATE_90]
    turn = [*back, turns.TRANSVERSE, turns.ROTATE_270][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if turn is None else upright.transpose(turn)
    lossless = {"lossless": True} if format == "WEBP" else {}
    assert (read(stored, format, exif=exif, **lossless) == np.asarray(upright)).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_to_eight(format):
    """This holds for all of Pillow's 16-bit modes; Pillow's own conversion would make nearly all pixels white."""
    values = np.arange(0, 1 << 16, 1 << 8, dtype=np.uint16)[None]
    found = read(Image.fromarray(values), format)
    assert np.abs(found.astype(int) - np.arange(256)[None, :, None]).max() <= 1


@pytest.mark.parametrize("values", [np.float32([[0.0, 0.5, 1.0]]), np.int32([[0, 1 << 20]]), np.int32([[0, 255]])])
def test_values_without_a_range_are_refused(values):
    """Pillow would silently turn floating-point numbers and 32-bit integers into black or white."""
    with pytest.raises(UserError, match=r"cannot be read \(its values are .*: save it with 8 or 16"):
        read(Image.fromarray(values), "TIFF")


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_picture_counts(format):
    """The same holds for pages."""
    lossless = {"lossless": True} if format == "WEBP" else {}
    pictures = [Image.new("RGB", (4, 4), color) for color in (RED, BLUE)]
    assert (read(pictures[0], format, save_all=True, append_images=pictures[1:], **lossless) == RED).all()


def test_what_is_transparent_becomes_white():
    """The stored color of transparent pixels, in a channel or in a palette, is not used."""
    for mode in ("RGBA", "LA"):
        assert (read(Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode), "PNG") == WHITE).all()
    palette = Image.new("P", (4, 4))
    palette.putpalette([255, 0, 0])
    assert (read(palette, "PNG", transparency=0) == WHITE).all()
    assert (read(palette, "PNG") == RED).all()


def test_no_other_program_reads_an_image(tmp_path, monkeypatch):
    """Pillow passes EPS files to Ghostscript, whatever their name is."""
    called = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **options: called.append(args))
    for name in ("a.jpg", "a.eps"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, "EPS")
        with pytest.raises(UserError, match="supported formats: JPEG"):
            read_image(tmp_path / name)
    assert not called


def test_names_of_images():
    """Names with extensions of supported formats count, but hidden files, which macOS writes, do not."""
    found = [name for name in ("a.jpg", "a.TIFF", "a.eps", "a.txt", "._a.jpg", "a") if is_image_name(Path(name))]
    assert found == ["a.jpg", "a.TIFF"]


@pytest.mark.parametrize("box", [(3.0, 5.0, 93.0, 77.0), (3.5, 5.0, 93.5, 77.0)])
def test_a_view_shows_what_pillow_would(box: tuple[float, float, float, float]) -> None:
    """torch scales integer rectangles, Pillow the others, both with antialiasing; few values round differently."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((120, 90), Image.Resampling.BICUBIC)
    found = View(box, 32).image(image)
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC, box=box)).transpose(2, 0, 1)
    difference = np.abs(found.numpy().astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.1


def test_a_center_crop_begins_at_a_whole_pixel() -> None:
    """So torch can scale it; a timm crop fraction can start between pixels."""
    assert Preprocessing().view(101, 80, 64).source == (10.0, 0.0, 90.0, 80.0)
    assert Preprocessing(fraction=0.9).view(101, 80, 64).source == (14.5, 4.0, 86.5, 76.0)
