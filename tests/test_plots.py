"""Figures of phrase maps show the right values, accept all kinds of input, and are saved safely."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from patchword.data.scenes import EmojiScenes
from patchword.errors import UserError
from patchword.maps.phrases import upsample
from patchword.maps.plots import overlay, save

HEIGHT, WIDTH = 24, 32
WORDS = ["a red ball", "the dog", "a $tree_$"]


def _image() -> torch.Tensor:
    return torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _masks(count: int) -> torch.Tensor:
    masks = torch.zeros(count, HEIGHT, WIDTH, dtype=torch.bool)
    for i, mask in enumerate(masks):
        mask[3 : 10 + i, 5:12] = True
    return masks


def _rows(figure, columns):
    return [figure.axes[start : start + columns] for start in range(0, len(figure.axes), columns)]


def _draw(figure):
    """Draw the figure and return the renderer, because the canvas of a figure draws only when it is saved."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def _scale(panel):
    """Return the map of a panel and the axes of its color scale."""
    return panel.images[1], panel.images[1].colorbar.ax


def test_rows_are_phrases_and_columns_are_sources():
    """They are labeled in the given order, and markup characters are shown literally."""
    sources = {"align": _maps(3, 12), "cosine": _maps(3, 12), "dot": _maps(3, 12)}
    figure = overlay(_image(), sources, WORDS, grid=(3, 4), caption="cost: $5 or $6")
    _draw(figure)
    rows = _rows(figure, 4)
    assert len(rows) == 3
    assert [panel.get_title() for panel in rows[0]] == ["image", *sources]
    assert [row[0].get_ylabel() for row in rows] == WORDS
    assert figure.get_suptitle() == "cost: $5 or $6"
    assert {panel.get_title() for row in rows[1:] for panel in row} == {""}


def test_maps_belong_to_their_row_and_column():
    """A map in a wrong row or column would be a wrong figure in a paper that nobody notices."""
    sources = {"align": torch.arange(3.0)[:, None] + _maps(3, 12) / 100, "dot": 10 + _maps(3, 12) / 100}
    rows = _rows(overlay(_image(), sources, WORDS, grid=(3, 4)), 3)
    for n, row in enumerate(rows):
        assert np.allclose(row[1].images[1].get_array(), n, atol=0.1)
        assert np.allclose(row[2].images[1].get_array(), 10, atol=0.1)


def test_maps_are_drawn_as_they_are_measured():
    """The figure shows the upsampled map that metrics use."""
    maps = _maps(1, 12)
    drawn = overlay(_image(), maps, "dog", grid=(3, 4)).axes[1].images[1].get_array()
    assert (drawn == upsample(maps, (3, 4), (HEIGHT, WIDTH))[0].numpy()).all()


@pytest.mark.parametrize("scale", [1e-9, 0.01, 1, 30, 1e7])
def test_color_scale_runs_from_the_lowest_to_the_highest_patch(scale):
    """The numbers at the ends of the scale are the minimum and maximum of the map."""
    maps = _maps(1, 12) * scale
    figure = overlay(_image(), maps, "dog", grid=(3, 4))
    drawn, axes = _scale(figure.axes[1])
    assert drawn.get_clim() == pytest.approx((maps.min().item(), maps.max().item()))
    numbers = [float(label.get_text().replace("−", "-")) for label in axes.get_yticklabels()]
    assert numbers == pytest.approx(list(drawn.get_clim()), abs=0.03 * np.ptp(drawn.get_clim()))


def test_large_offset_does_not_hide_the_range():
    """The numbers at both ends of a scale differ."""
    figure = overlay(_image(), 100 + _maps(1, 12) * 1e-3, "dog", grid=(3, 4))
    low, high = (label.get_text() for label in _scale(figure.axes[1])[1].get_yticklabels())
    assert float(low) < float(high)


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
def test_constant_map_has_one_number(value):
    """A constant map has one color, and causes no warning and no division by zero."""
    figure = overlay(_image(), torch.full((1, 12), value), "dog", grid=(3, 4))
    _draw(figure)
    drawn, axes = _scale(figure.axes[1])
    assert len(np.unique(drawn.get_array())) == 1
    assert [float(label.get_text().replace("−", "-")) for label in axes.get_yticklabels()] == [value]


def test_map_that_is_not_finite_is_named_so():
    """Maps of a diverged model can be drawn."""
    maps = _maps(2, 12)
    maps[0, 3] = torch.nan
    figure = overlay(_image(), maps, WORDS[:2], grid=(3, 4))
    assert [text.get_text() for text in figure.axes[1].texts] == ["not finite"]
    assert len(figure.axes[1].images) == 1
    assert len(figure.axes[3].images) == 2


def test_objects_are_outlined_in_every_panel():
    """The outline follows the mask, half a pixel outside the centers of its pixels, and does not change the axes."""
    figure = overlay(_image(), _maps(2, 12), WORDS[:2], grid=(3, 4), masks=_masks(2))
    for n, row in enumerate(_rows(figure, 2)):
        for panel in row:
            (outline,) = panel.collections
            points = np.concatenate([path.vertices for path in outline.get_paths()])
            assert points.min(0).tolist() == [4.5, 2.5]
            assert points.max(0).tolist() == [11.5, 9.5 + n]
            assert panel.get_xlim() == (-0.5, WIDTH - 0.5)
            assert panel.get_ylim() == (HEIGHT - 0.5, -0.5)


def test_mask_at_the_border_is_closed_and_empty_mask_is_nothing():
    """An object at the edge of the image has a closed outline, and an invisible one has none."""
    masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0] = True
    figure = overlay(_image(), _maps(2, 12), WORDS[:2], grid=(3, 4), masks=masks)
    (path,) = figure.axes[0].collections[0].get_paths()
    assert (path.vertices[0] == path.vertices[-1]).all()
    assert not figure.axes[2].collections


def test_without_masks_nothing_is_outlined():
    """Data without masks can be drawn."""
    assert not any(panel.collections for panel in overlay(_image(), _maps(2, 12), WORDS[:2], grid=(3, 4)).axes)


def test_images_of_every_type_look_alike():
    """Tensors, arrays and PIL images of several modes give the same pixels."""
    image = _image()
    array = image.permute(1, 2, 0).numpy()
    for same in (image, array, Image.fromarray(array), Image.fromarray(array).convert("RGBA")):
        figure = overlay(same, _maps(12), "dog", grid=(3, 4))
        assert (figure.axes[0].images[0].get_array() == array).all()
    grey = overlay(Image.fromarray(array).convert("L"), _maps(12), "dog", grid=(3, 4)).axes[0].images[0].get_array()
    assert grey.shape == array.shape


def test_maps_of_every_shape_look_alike():
    """Maps may be flat or square, with or without a dimension of phrases, in half precision, and with gradients."""
    maps = _maps(1, 3, 4).bfloat16()
    expected = overlay(_image(), maps, ["dog"]).axes[1].images[1].get_array()
    for same in (maps.flatten(1), maps.flatten(), maps.flatten(1).float().requires_grad_()):
        assert (overlay(_image(), same, "dog", grid=(3, 4)).axes[1].images[1].get_array() == expected).all()
    assert expected.shape == (HEIGHT, WIDTH)


def test_square_grid_is_inferred():
    """Without a grid, P patches are arranged in a square, row by row."""
    maps = torch.arange(16.0)
    drawn = overlay(_image(), maps, "dog").axes[1].images[1].get_array()
    assert (drawn == overlay(_image(), maps.view(1, 4, 4), "dog").axes[1].images[1].get_array()).all()
    assert drawn[0, 0] == 0
    assert drawn[-1, -1] == 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maps": _maps(3, 12), "grid": None}, "12 patches, which do not fill a square grid"),
        ({"grid": (5, 2)}, "the maps of map have 12 patches, which do not fill a grid of 5 x 2"),
        ({"maps": {"align": _maps(2, 12)}}, r"align must have the shape \[3, patches\] or \[3, rows, columns\]"),
        ({"maps": _maps(12)}, r"\[3, patches\]"),
        ({"maps": _maps(3, 1, 3, 4)}, r"\[3, patches\].*not \[3, 1, 3, 4\]"),
        ({"words": []}, "at least one phrase"),
        ({"words": "dog"}, r"\[1, patches\]"),
        ({"masks": _masks(2)}, r"masks must have the shape \[3, 24, 32\]"),
        ({"masks": _masks(3)[:, :5]}, r"not \[3, 5, 32\]"),
        ({"image": _image().float()}, r"uint8 tensor \[3, H, W\].*torch.float32"),
        ({"image": _image().permute(1, 2, 0)}, r"not Tensor \[24, 32, 3\]"),
        ({"image": _image().numpy()}, r"uint8 array \[H, W, 3\].*not ndarray \[3, 24, 32\]"),
    ],
)
def test_wrong_shapes_say_what_is_expected(changes, message):
    """The message names the argument and the expected shape."""
    arguments = {"image": _image(), "maps": _maps(3, 12), "words": WORDS, "grid": (3, 4)} | changes
    with pytest.raises(ValueError, match=message):
        overlay(**arguments)


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (20, 120), (120, 50)])
def test_nothing_is_cut_off(size):
    """Labels, titles, numbers and captions fit into the figure, for images and texts of any size."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    words = ["a very long phrase about the unreasonably detailed old lighthouse in the fog", "incomprehensibilities"]
    maps = {"align": _maps(2, 16) * 1e-7, "dot": -(_maps(2, 16) * 1e3)}
    figure = overlay(image, maps, words, caption="a caption that goes on " * 8)
    renderer = _draw(figure)
    box = figure.get_tightbbox(renderer)
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= figure.get_figwidth()
    assert box.y1 <= figure.get_figheight()
    for label in _scale(figure.axes[1])[1].get_yticklabels():
        assert label.get_window_extent(renderer).x1 < figure.axes[2].bbox.x0
    labels = [row[0].yaxis.label.get_window_extent(renderer) for row in _rows(figure, 3)]
    assert labels[0].y0 > labels[1].y1


def test_saved_file_is_a_picture_in_a_new_folder(tmp_path):
    """Folders are created, an old file is replaced, and no temporary file is left."""
    scene = EmojiScenes("val", 1)[0]
    phrases = scene.phrases[0]
    words = [scene.captions[0][phrase.start : phrase.end] for phrase in phrases]
    masks = torch.stack([phrase.mask for phrase in phrases])
    figure = overlay(scene.image, _maps(len(words), 64), words, masks=masks, caption=scene.captions[0])
    path = tmp_path / "deep" / "down" / "maps.png"
    save(figure, path)
    save(figure, str(path))
    assert list(path.parent.iterdir()) == [path]
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500


def test_failed_save_leaves_the_former_file(tmp_path, monkeypatch):
    """On a full disk the old figure is kept, and no partial file is left."""
    figure = overlay(_image(), _maps(12), "dog", grid=(3, 4))
    path = tmp_path / "maps.png"
    path.write_bytes(b"old")

    def full(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(UserError, match=r"maps\.png: No space left on device"):
        save(figure, path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_folder_that_cannot_be_written_is_named(tmp_path):
    """The message names the path."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write the figure .*maps\.png"):
        save(overlay(_image(), _maps(12), "dog", grid=(3, 4)), tmp_path / "file" / "maps.png")


def test_import_is_cheap_and_drawing_leaves_pyplot_alone():
    """The import does not load matplotlib, and drawing does not load pyplot, which would keep all figures."""
    program = """
import io, sys, torch, patchword.maps.plots
assert "matplotlib" not in sys.modules
patchword.maps.plots.overlay(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.rand(4), "dog").savefig(io.BytesIO())
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
