"""`look`: any image, any text, and where the model saw the words of one in the other."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch
from PIL import Image

from patchword.alignment import Alignment
from patchword.errors import InputError
from patchword.maps import TOKEN_SOURCES
from patchword.objectives import CLIP, LOUPE, SPARC
from tests import tiny
from tests.encoders import conftest as tokenizers
from tests.viewer.models import CAPTION, finds_red, with_tokenizer

RED = (255, 0, 0)


def highest(found: Alignment) -> tuple[float, float]:
    """The centre of the best patch, in shares of the whole photo."""
    row, column = divmod(int(found.maps["dot"][0].argmax()), found.grid[1])
    left, top, right, bottom = found.photo.seen
    x, y = (column + 0.5) / found.grid[1], (row + 0.5) / found.grid[0]
    return left + x * (right - left), top + y * (bottom - top)


def test_a_scene_is_seen_as_in_training() -> None:
    """Pixels as the data set has them; a part for each word, function words marked; maps from every source."""
    module = tiny.module(SPARC()).eval()
    sample = tiny.data().val[0]
    found = module.look(Image.fromarray(sample.image.permute(1, 2, 0).numpy()), "a red fish above the sun.")
    assert torch.equal(found.pixels, sample.image)
    assert found.words == ["a", "red", "fish", "above", "the", "sun", "."]
    assert found.content == [False, True, True, False, False, True, True]
    assert found.tokens == [1] * 7
    assert {source: tuple(of.shape) for source, of in found.maps.items()} == dict.fromkeys(TOKEN_SOURCES, (7, 64))
    assert found.score is not None


def test_phrases_and_one_that_is_not_there() -> None:
    module, image = tiny.module(SPARC()).eval(), Image.new("RGB", (90, 60))
    found = module.look(image, "a red fish above the sun", ["a red fish", "sun"])
    assert (found.words, found.tokens) == (["a red fish", "sun"], [2, 1])
    with pytest.raises(InputError, match="'a cat' is not a part of the caption"):
        module.look(image, "a dog", ["a cat"])


@pytest.mark.parametrize("query", ["content", "span"])
@pytest.mark.parametrize("style", ["wordpiece", "roberta", "unigram"])
def test_the_mean_of_words_is_the_phrase(style: str, query: str, tmp_path: Path) -> None:
    """What the viewer relies on, whatever pieces a tokenizer makes: words, by their tokens, give a phrase's map."""
    getattr(tokenizers, style)(tmp_path)
    module = with_tokenizer(SPARC(), str(tmp_path), query=query)
    image = Image.effect_noise((64, 64), 90)
    found = module.look(image, CAPTION)
    assert max(found.tokens) > 1
    words = [part for part, word in enumerate(found.words) if not word.isspace()]
    ends = list(combinations(words, 2))
    measured = module.look(image, CAPTION, [CAPTION[found.spans[a][0] : found.spans[b][1]] for a, b in ends])
    for number, (a, b) in enumerate(ends):
        own = [part for part in range(a, b + 1) if found.content[part]] or list(range(a, b + 1))
        weights = torch.tensor([float(found.tokens[part]) for part in own])
        for source, maps in found.maps.items():
            mean = (weights[:, None] * maps[own]).sum(0) / weights.sum()
            torch.testing.assert_close(mean, measured.maps[source][number], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("size", [(400, 100), (100, 400), (640, 427), (96, 96), (3000, 2000)])
def test_what_is_planted_is_found_in_the_whole_photo(size: tuple[int, int], whole: bool) -> None:
    """A map over a crop must not be drawn over the whole photo, nor the other way round."""
    width, height = size
    side = min(size)
    left, top = width // 2 + side // 5, height // 2 - side // 3
    photo = Image.new("RGB", size, (60, 160, 160))
    photo.paste(RED, (left, top, left + side // 6, top + side // 6))
    found = finds_red().look(photo, "red", whole=whole)
    x, y = highest(found)
    assert (found.photo.seen == (0.0, 0.0, 1.0, 1.0)) == (whole or width == height)
    reach = 0.5 / 8  # half a patch
    across, down = (b - a for a, b in zip(found.photo.seen[:2], found.photo.seen[2:], strict=True))
    assert left / width - reach * across <= x <= (left + side // 6) / width + reach * across
    assert top / height - reach * down <= y <= (top + side // 6) / height + reach * down
    assert found.photo.size == size
    assert max(found.photo.pixels.shape) <= 1024


def test_cameras_and_transparency(tmp_path: Path) -> None:
    """A photo lies on its side in the file; a transparent ground is white, not what colour hides behind it."""
    photo = Image.new("RGB", (90, 60), "teal")
    photo.paste(RED, (0, 0, 15, 60))  # left in the file, at the top for a person
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "camera.png", exif=exif)
    found = finds_red().look(Image.open(tmp_path / "camera.png"), "red", whole=True)
    assert found.photo.size == (60, 90)
    assert highest(found)[1] < 1 / 8

    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    clear.paste((255, 0, 0, 255), (30, 30, 40, 40))
    found = finds_red().look(clear, "red")
    assert found.photo.pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert min(highest(found)) > 0.7


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "CMYK", "RGBA"])
@pytest.mark.parametrize("size", [(5000, 1), (1, 3), (64, 64)])
def test_every_kind_of_image(mode: str, size: tuple[int, int]) -> None:
    for whole in (False, True):
        found = finds_red().look(Image.new(mode, size), "red", whole=whole)
        assert found.pixels.shape == (3, 32, 32)
        assert found.maps["dot"].isfinite().all()


def test_texts_of_every_kind() -> None:
    """No words at all, more than the tokenizer takes, line breaks, and characters of several code points."""
    module, image = finds_red(), Image.new("RGB", (40, 40), "red")
    empty = module.look(image, "")
    assert (empty.spans, empty.maps["align"].shape) == ([], (0, 64))
    assert module.look(image, " \n ").spans == []
    assert module.look(image, "the of").content == [False, False]
    long = module.look(image, "red " * 20)
    assert long.tokens == [1] * 16 + [0] * 4
    odd = module.look(image, "👩‍🚀 don't\n<b>naïve</b> 蘋果")
    assert odd.words == ["👩‍🚀", "don't", "<b>naïve</b>"[0], "b>naïve</b", ">", "蘋果"]


def test_loupe_proposes_regions_and_sparc_prunes() -> None:
    found = tiny.module(LOUPE(regions=5)).eval().look(Image.effect_noise((64, 64), 90), "a red fish")
    assert len(found.regions) == 5
    for region in found.regions:
        top, left, bottom, right = region.box
        assert 0 <= top < bottom <= 8
        assert 0 <= left < right <= 8
    confidence = [region.confidence for region in found.regions]
    assert confidence == sorted(confidence, reverse=True)
    assert found.measure == "interaction"
    assert tiny.module(SPARC()).eval().look(Image.new("RGB", (64, 64)), "a fish").pruned
    assert not tiny.module(SPARC(weights="softmax")).eval().look(Image.new("RGB", (64, 64)), "a fish").pruned
    plain = tiny.module(CLIP()).eval().look(Image.new("RGB", (64, 64)), "a fish")
    assert (plain.measure, plain.pruned, plain.regions) == ("value", False, [])


def test_an_alignment_survives_its_file(tmp_path: Path) -> None:
    """Every field, with and without the optional ones."""
    full = tiny.module(LOUPE(regions=3)).eval().look(Image.new("RGB", (90, 60), "red"), "a red fish")
    bare = Alignment(full.pixels, full.caption, full.spans, full.maps, full.grid)
    for number, alignment in enumerate((full, bare)):
        alignment.save(tmp_path / f"{number}.npz")
        loaded = Alignment.load(tmp_path / f"{number}.npz")
        for name in ("caption", "spans", "grid", "tokens", "content", "score", "measure", "pruned", "regions"):
            assert getattr(loaded, name) == getattr(alignment, name), name
        assert torch.equal(loaded.pixels, alignment.pixels)
        assert all(torch.equal(loaded.maps[source], of) for source, of in alignment.maps.items())
    kept = Alignment.load(tmp_path / "0.npz").photo
    assert (kept.size, kept.seen) == (full.photo.size, full.photo.seen)
    assert torch.equal(kept.pixels, full.photo.pixels)
    assert Alignment.load(tmp_path / "1.npz").photo is None
