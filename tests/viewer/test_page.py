"""The page of the viewer is escaped, small and self-contained."""

from __future__ import annotations

import html
import json
import re
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from patchword.errors import UserError
from patchword.maps.alignment import Alignment, Photo
from patchword.viewer import AlignmentViewer
from patchword.viewer.payload import outline, payload

EVIL = """</script><script>document.title = "evil"</script><!-- {{style}} & "quoted" 'quoted' 🐌"""


def alignment(caption: str = "a red fish", grid: tuple[int, int] = (2, 3), words: int = 2, **fields) -> Alignment:
    """Return an alignment without a model; each word is a range of the caption's characters."""
    ends = torch.linspace(0, len(caption), words + 1).int().tolist()
    maps = {source: torch.randn(words, grid[0] * grid[1]) for source in ("align", "cosine", "dot")}
    pixels = torch.zeros(3, 32, 48, dtype=torch.uint8)
    return Alignment(pixels, caption, list(pairwise(ends)), maps, grid, **fields)


def data_of(page: str) -> dict:
    (found,) = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


def test_text_cannot_leave_its_place() -> None:
    """A caption or name that contains HTML is text in the data, in the title and in a notebook's frame."""
    viewer = AlignmentViewer({EVIL: alignment(EVIL)})
    page = viewer.page()
    assert "evil" not in re.sub(r'<script type="application/json">.*?</script>|<title>.*?</title>', "", page)
    data = data_of(page)
    assert "".join(piece[0] for piece in data["pieces"]) == EVIL
    assert data["panels"][0]["name"] == EVIL
    assert "<script" not in re.search(r"<title>(.*?)</title>", page)[1]
    (srcdoc,) = re.findall(r'srcdoc="([^"]*)"', viewer._repr_html_())
    assert html.unescape(srcdoc) == page


def test_many_words_and_panels_stay_small_and_share_a_photo() -> None:
    """A page with 14 x 14 patches, 20 words, 4 panels and 3 sources is small enough to send by email."""
    noise = torch.randint(0, 256, (3, 768, 1024), dtype=torch.uint8)
    photo = Photo(noise, (4000, 3000), (0.125, 0.0, 0.875, 1.0))
    caption = " ".join(["word"] * 20)
    panels = {str(i): alignment(caption, (14, 14), 20, photo=photo) for i in range(4)}
    page = AlignmentViewer(panels).page()
    assert len(data_of(page)["photos"]) == 1
    photo_size = len(data_of(page)["photos"][0])
    assert len(page) - photo_size < 400_000
    assert photo_size < 1_500_000  # noise; photos are a tenth of it


def test_a_page_names_nothing_outside_itself() -> None:
    page = AlignmentViewer(alignment()).page()
    assert "default-src 'none'" in page
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}


def test_numbers_are_exact() -> None:
    """Values are stored exactly, because ranks and zeros depend on the last bit."""
    import base64

    one = alignment()
    written = payload({"": one})["panels"][0]["maps"]["align"]
    assert np.frombuffer(base64.b64decode(written), "<f4").tolist() == one.maps["align"].flatten().tolist()


def test_words_of_panels_whose_tokenizers_differ() -> None:
    """Words that overlap in two panels are one word on the page, and the text between words is kept."""
    one = alignment("red-hot iron", words=1)
    two = Alignment(one.pixels, one.caption, [(0, 3), (8, 12)], {"dot": torch.zeros(2, 6)}, (2, 3))
    three = Alignment(one.pixels, one.caption, [(0, 7)], {"dot": torch.zeros(1, 6)}, (2, 3))
    pieces = payload({"2": two, "3": three})["pieces"]
    assert pieces == [("red-hot", 0, 7, True), (" ", 7, 8, False), ("iron", 8, 12, True)]


def test_outlines_go_around_every_pixel() -> None:
    """The even-odd interior of the outline is the mask: counted by the vertical lines to the left of each pixel."""
    mask = torch.rand(13, 17) > 0.5
    crossings = np.zeros((13, 18), dtype=int)
    for x, y, length in re.findall(r"M(\d+) (\d+)v(\d+)", outline(mask)):
        crossings[int(y) : int(y) + int(length), int(x)] += 1
    assert (crossings.cumsum(1)[:, :-1] % 2 == mask.numpy()).all()
    across = re.findall(r"M\d+ \d+h(\d+)", outline(mask))
    padded = np.pad(mask.numpy(), 1)
    assert sum(map(int, across)) == (padded[1:] != padded[:-1]).sum()
    assert outline(torch.zeros(4, 4, dtype=torch.bool)) == ""


@pytest.mark.parametrize(("constant", "name"), [("VIRIDIS", "viridis"), ("DIVERGING", "RdBu_r")])
def test_colours_are_those_of_the_figures(constant: str, name: str) -> None:
    """The colors in the script, which are linear between their stops, match those of matplotlib."""
    script = files("patchword.viewer").joinpath("viewer.js").read_text()
    stops = re.search(rf'{constant} =\s*"(\w+)"', script)[1]
    rgb = np.array([[int(stops[i + c : i + c + 2], 16) for c in (0, 2, 4)] for i in range(0, len(stops), 6)])
    places = np.linspace(0, 1, 256)
    ours = np.stack([np.interp(places, np.linspace(0, 1, len(rgb)), rgb[:, c]) for c in range(3)], -1)
    theirs = 255 * matplotlib.colormaps[name](places)[:, :3]
    assert abs(ours - theirs).max() < 3


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one"):
        AlignmentViewer({})
    with pytest.raises(UserError, match="different captions"):
        AlignmentViewer({"a": alignment("a red fish"), "b": alignment("a blue fish")})
    with pytest.raises(UserError, match="cannot write the page"):
        AlignmentViewer(alignment()).save(tmp_path)
    AlignmentViewer(alignment()).save(tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")


def test_photos_small_and_large() -> None:
    """Small images are stored without loss, large photos as JPEG."""
    small = data_of(AlignmentViewer(alignment()).page())["photos"][0]
    assert small.startswith("data:image/png;")
    photo = Photo(
        torch.from_numpy(np.array(Image.effect_noise((300, 200), 9).convert("RGB")).transpose(2, 0, 1)),
        (9, 6),
        (0.0, 0.0, 1.0, 1.0),
    )
    assert data_of(AlignmentViewer(alignment(photo=photo)).page())["photos"][0].startswith("data:image/jpeg;")
