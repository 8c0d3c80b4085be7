"""`inspect` returns maps of the words of any text over any image."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch
from PIL import Image

from patchword.errors import UserError
from patchword.maps.alignment import Alignment, Region
from patchword.maps.sources import PLAIN_SOURCES
from patchword.objectives import CLIP, LOUPE, SPARC
from tests import tiny
from tests.encoders import conftest as tokenizers
from tests.viewer.models import CAPTION, finds_red, with_tokenizer

RED = (255, 0, 0)


def highest(found: Alignment) -> tuple[float, float]:
    """Return the center of the best patch as fractions of the photo."""
    row, column = divmod(int(found.maps["dot"][0].argmax()), found.grid[1])
    left, top, right, bottom = found.photo.seen
    x, y = (column + 0.5) / found.grid[1], (row + 0.5) / found.grid[0]
    return left + x * (right - left), top + y * (bottom - top)


def test_a_scene_is_seen_as_in_training() -> None:
    """The pixels equal those of the data set, each word has a map from every source, and function words are marked."""
    module = tiny.module(SPARC()).eval()
    sample = tiny.data().split("val")[0]
    scene = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
    found = module.inspect(scene, "a red fish above the sun.", whole=True)
    assert torch.equal(found.pixels, sample.image)
    assert found.words == ["a", "red", "fish", "above", "the", "sun", "."]
    assert found.content == [False, True, True, False, False, True, True]
    assert found.tokens == [1] * 7
    assert {source: tuple(of.shape) for source, of in found.maps.items()} == dict.fromkeys(PLAIN_SOURCES, (7, 64))
    assert found.score is not None


def test_phrases_and_one_that_is_not_there() -> None:
    """Given phrases get maps, and a phrase that is not in the text is an error."""
    module, image = tiny.module(SPARC()).eval(), Image.new("RGB", (90, 60))
    found = module.inspect(image, "a red fish above the sun", ["a red fish", "sun"])
    assert (found.words, found.tokens) == (["a red fish", "sun"], [2, 1])
    with pytest.raises(UserError, match="'a cat' is not a part of the caption"):
        module.inspect(image, "a dog", ["a cat"])


def test_a_phrase_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    """A truncated phrase would have a map of zeros. Words of a caption without a map are counted."""
    tokenizers.wordpiece(tmp_path)
    module, image = with_tokenizer(SPARC(), str(tmp_path), max_length=5), Image.new("RGB", (64, 64))
    word = CAPTION.split()[-1]
    with pytest.raises(UserError, match=f"the phrase '{word}' has no map"):
        module.inspect(image, CAPTION, [CAPTION.split()[0], word])
    with pytest.warns(UserWarning, match=r"\d of \d+ words of the caption have no map"):
        found = module.inspect(image, CAPTION)
    assert found.tokens[0] == 1
    assert found.tokens[-1] == 0


@pytest.mark.parametrize("query", ["content", "span"])
@pytest.mark.parametrize("style", ["wordpiece", "roberta", "unigram"])
def test_the_mean_of_words_is_the_phrase(style: str, query: str, tmp_path: Path) -> None:
    """The viewer can compute a phrase's map from the maps of its words, for any tokenizer."""
    getattr(tokenizers, style)(tmp_path)
    module = with_tokenizer(SPARC(), str(tmp_path), phrase_query=query)
    image = Image.effect_noise((64, 64), 90)
    found = module.inspect(image, CAPTION)
    assert max(found.tokens) > 1
    words = [part for part, word in enumerate(found.words) if not word.isspace()]
    ends = list(combinations(words, 2))
    measured = module.inspect(image, CAPTION, [CAPTION[found.spans[a][0] : found.spans[b][1]] for a, b in ends])
    for number, (a, b) in enumerate(ends):
        own = [part for part in range(a, b + 1) if found.content[part]] or list(range(a, b + 1))
        weights = torch.tensor([float(found.tokens[part]) for part in own])
        for source, maps in found.maps.items():
            mean = (weights[:, None] * maps[own]).sum(0) / weights.sum()
            torch.testing.assert_close(mean, measured.maps[source][number], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("size", [(400, 100), (100, 400), (640, 427), (96, 96), (3000, 2000)])
def test_what_is_planted_is_found_in_the_whole_photo(size: tuple[int, int], whole: bool) -> None:
    """The map of a cropped photo is drawn over the crop, and that of a whole photo over the whole photo."""
    width, height = size
    side = min(size)
    left, top = width // 2 + side // 5, height // 2 - side // 3
    photo = Image.new("RGB", size, (60, 160, 160))
    photo.paste(RED, (left, top, left + side // 6, top + side // 6))
    found = finds_red().inspect(photo, "red", whole=whole)
    x, y = highest(found)
    assert (found.photo.seen == (0.0, 0.0, 1.0, 1.0)) == (whole or width == height)
    reach = 0.5 / 8  # half a patch
    across, down = (b - a for a, b in zip(found.photo.seen[:2], found.photo.seen[2:], strict=True))
    assert left / width - reach * across <= x <= (left + side // 6) / width + reach * across
    assert top / height - reach * down <= y <= (top + side // 6) / height + reach * down
    assert found.photo.size == size
    assert max(found.photo.pixels.shape) <= 1024


def test_cameras_and_transparency(tmp_path: Path) -> None:
    """A photo is rotated as its EXIF data says, and transparent pixels become white."""
    photo = Image.new("RGB", (90, 60), "teal")
    photo.paste(RED, (0, 0, 15, 60))  # left in the file, at the top for a person
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "camera.png", exif=exif)
    found = finds_red().inspect(Image.open(tmp_path / "camera.png"), "red", whole=True)
    assert found.photo.size == (60, 90)
    assert highest(found)[1] < 1 / 8

    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    clear.paste((255, 0, 0, 255), (30, 30, 40, 40))
    found = finds_red().inspect(clear, "red")
    assert found.photo.pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert min(highest(found)) > 0.7


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "CMYK", "RGBA"])
@pytest.mark.parametrize("size", [(5000, 1), (1, 3), (64, 64)])
def test_every_kind_of_image(mode: str, size: tuple[int, int]) -> None:
    """Images of all modes and sizes are accepted."""
    for whole in (False, True):
        found = finds_red().inspect(Image.new(mode, size), "red", whole=whole)
        assert found.pixels.shape == (3, 32, 32)
        assert found.maps["dot"].isfinite().all()


def test_texts_of_every_kind() -> None:
    """Texts may have no words, too many words, line breaks, or characters of several code points."""
    module, image = finds_red(), Image.new("RGB", (40, 40), "red")
    empty = module.inspect(image, "")
    assert (empty.spans, empty.maps["align"].shape) == ([], (0, 64))
    assert module.inspect(image, " \n ").spans == []
    assert module.inspect(image, "the of").content == [False, False]
    with pytest.warns(UserWarning, match="words of the caption have no map"):
        long = module.inspect(image, "red " * 20)
    assert long.tokens == [1] * 16 + [0] * 4
    odd = module.inspect(image, "👩‍🚀 don't\n<b>naïve</b> 蘋果")
    assert odd.words == ["👩‍🚀", "don't", "<b>naïve</b>"[0], "b>naïve</b", ">", "蘋果"]


def test_loupe_proposes_regions_and_sparc_prunes() -> None:
    """LOUPE's alignments have regions, and SPARC's maps are marked as pruned."""
    found = tiny.module(LOUPE(regions=5)).eval().inspect(Image.effect_noise((64, 64), 90), "a red fish")
    assert len(found.regions) == 5
    for region in found.regions:
        top, left, bottom, right = region.box
        assert 0 <= top < bottom <= 8
        assert 0 <= left < right <= 8
    confidence = [region.confidence for region in found.regions]
    assert confidence == sorted(confidence, reverse=True)
    assert found.measure == "interaction"
    assert tiny.module(SPARC()).eval().inspect(Image.new("RGB", (64, 64)), "a fish").pruned
    assert not tiny.module(SPARC(weights="softmax")).eval().inspect(Image.new("RGB", (64, 64)), "a fish").pruned
    plain = tiny.module(CLIP()).eval().inspect(Image.new("RGB", (64, 64)), "a fish")
    assert (plain.measure, plain.pruned, plain.regions) == ("value", False, [])


def test_any_objective_can_propose_regions() -> None:
    """The code that draws maps does not depend on the class of the objective."""
    module = tiny.module(CLIP()).eval()
    module.objective.map_measure, module.objective.map_is_pruned = "vote", True
    left = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    left[..., :4] = True
    module.objective.propose_regions = lambda images: (left.flatten(2), torch.zeros(1, 1))
    found = module.inspect(Image.new("RGB", (64, 64)), "a fish")
    assert (found.measure, found.pruned, found.regions) == ("vote", True, [Region((0, 0, 8, 4), 0.5)])


def test_an_alignment_survives_its_file(tmp_path: Path) -> None:
    """Every field is equal after writing and reading, with and without the optional ones."""
    full = tiny.module(LOUPE(regions=3)).eval().inspect(Image.new("RGB", (90, 60), "red"), "a red fish")
    bare = Alignment(full.pixels, full.caption, full.spans, full.maps, full.grid)
    for number, alignment in enumerate((full, bare)):
        alignment.save(tmp_path / f"{number}.npz")
        loaded = Alignment.load(tmp_path / f"{number}.npz")
        for name in (
            "caption",
            "spans",
            "grid",
            "tokens",
            "content",
            "unknown",
            "score",
            "measure",
            "pruned",
            "regions",
        ):
            assert getattr(loaded, name) == getattr(alignment, name), name
        assert torch.equal(loaded.pixels, alignment.pixels)
        assert all(torch.equal(loaded.maps[source], of) for source, of in alignment.maps.items())
    kept = Alignment.load(tmp_path / "0.npz").photo
    assert (kept.size, kept.seen) == (full.photo.size, full.photo.seen)
    assert torch.equal(kept.pixels, full.photo.pixels)
    assert Alignment.load(tmp_path / "1.npz").photo is None
