"""Images of every kind that one finds in folders, as the model sees them."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from patchword.data.pixels import read_image
from patchword.errors import InputError

RED, WHITE, BLUE = (255, 0, 0), (255, 255, 255), (0, 0, 255)


def read(image, format, **options):
    """What is read of `image`, written in a format."""
    file = BytesIO()
    image.save(file, format, **options)
    return np.asarray(read_image(BytesIO(file.getvalue())))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(format, orientation):
    """The camera's note of how it was held is followed: the corner that it calls the first is top left."""
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
    """However Pillow calls them; Pillow's own conversion would make nearly all of it white."""
    values = np.arange(0, 1 << 16, 1 << 8, dtype=np.uint16)[None]
    found = read(Image.fromarray(values), format)
    assert np.abs(found.astype(int) - np.arange(256)[None, :, None]).max() <= 1


@pytest.mark.parametrize("values", [np.float32([[0.0, 0.5, 1.0]]), np.int32([[0, 1 << 20]])])
def test_values_without_a_range_are_refused(values):
    """Real numbers and large integers: Pillow would make them black or white without a word."""
    with pytest.raises(InputError, match=r"cannot be read \(its values are .*: save it with 8 or 16"):
        read(Image.fromarray(values), "TIFF")


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_picture_counts(format):
    """Also where there are pages."""
    lossless = {"lossless": True} if format == "WEBP" else {}
    pictures = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    assert (read(pictures[0], format, save_all=True, append_images=pictures[1:], **lossless) == RED).all()


def test_what_is_transparent_becomes_white():
    """In place of the colour that happens to be stored there, in a channel or in a palette."""
    for mode in ("RGBA", "LA"):
        assert (read(Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode), "PNG") == WHITE).all()
    palette = Image.new("P", (4, 4))
    palette.putpalette([255, 0, 0])
    assert (read(palette, "PNG", transparency=0) == WHITE).all()
    assert (read(palette, "PNG") == RED).all()
