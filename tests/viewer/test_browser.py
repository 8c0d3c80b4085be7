"""The viewer in headless Chromium, with mouse and keyboard."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from patchword.maps.alignment import Alignment, Photo, Region
from patchword.maps.phrases import upsample
from patchword.objectives import LOUPE, SPARC
from patchword.viewer import AlignmentViewer
from tests import tiny
from tests.browser import opened, running
from tests.encoders import conftest as tokenizers
from tests.viewer.models import CAPTION, finds_red, with_tokenizer

WORDS = ["red", "fish", ",", "sun"]


def numbers(rows: int = 3, columns: int = 4, seed: int = 0, lowest: float = 0.0, **fields) -> Alignment:
    """`the red fish, sun` with maps of random numbers over a wide photo, of which the model saw the middle."""
    draw = torch.Generator().manual_seed(seed)
    maps = {source: torch.rand(5, rows * columns, generator=draw) + lowest for source in ("align", "cosine")}
    return Alignment(
        torch.zeros(3, 30, 40, dtype=torch.uint8),
        "the red fish, sun",
        [(0, 3), (4, 7), (8, 12), (12, 13), (14, 17)],
        maps,
        (rows, columns),
        photo=Photo(torch.full((3, 300, 800), 200, dtype=torch.uint8), (1600, 600), (0.25, 0.0, 0.75, 1.0)),
        tokens=[1, 1, 2, 1, 1],
        content=[False, True, True, True, True],
        **fields,
    )


@pytest.fixture(scope="module")
def two_panels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two grids, one with weights of which some are zero, one with both signs, regions and objects."""
    first = numbers(seed=1, pruned=True, measure="weight")
    first.maps["align"][1, :5] = 0
    masks = torch.zeros(5, 30, 40, dtype=torch.bool)
    masks[1, 5:15, 10:30] = True
    regions = [Region((0, 1, 2, 4), 0.9), Region((2, 0, 3, 2), 0.4)]
    second = numbers(6, 8, seed=2, lowest=-0.3, measure="interaction", regions=regions, masks=masks, score=0.25)
    path = tmp_path_factory.mktemp("viewer") / "two.html"
    AlignmentViewer({"one": first, "two": second}).save(path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running() as found:
        yield found


@pytest.fixture
def page(two_panels: Path, browser: Browser) -> Iterator[Page]:
    with opened(two_panels, browser=browser) as found:
        yield found


def word(page: Page, number: int):
    return page.locator(".word").nth(number)


def pressed(page: Page) -> list[str]:
    settle(page)
    return page.locator('.word[aria-pressed="true"]').all_inner_texts()


def selected(page: Page) -> list[str]:
    settle(page)
    return page.locator(".word.selected").all_inner_texts()


def settle(page: Page) -> None:
    """Wait for two frames, so that changes are drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def drawn(page: Page, panel: int = 0) -> np.ndarray:
    """The pixels of a panel's map, [h, w, 4]."""
    settle(page)
    url = page.locator(".seen canvas").nth(panel).evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(BytesIO(b64decode(url.partition(",")[2])))).astype(int)


def pixels(page: Page, panel: int = 0) -> np.ndarray:
    """A screenshot of a panel's picture, [h, w, 3]."""
    settle(page)
    shot = page.locator(".stage").nth(panel).screenshot()
    return np.asarray(Image.open(BytesIO(shot)).convert("RGB")).astype(int)


def point_at(page: Page, panel: int, x: float, y: float) -> None:
    """Move the mouse to a position in the photo, given as shares of its width and height."""
    box = page.locator(".stage").nth(panel).bounding_box()
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    settle(page)


@pytest.mark.parametrize("style", ["words of scenes", "roberta"])
def test_a_phrase_has_the_map_that_is_measured(browser: Browser, style: str, tmp_path: Path) -> None:
    """The script's mean over words equals `phrase_maps`, for every sequence of words of a real model's caption.

    (But where LOUPE's words play among content words alone: function words without any other join the game together.)
    """
    if style == "roberta":
        tokenizers.roberta(tmp_path)
        module = with_tokenizer(SPARC(), str(tmp_path))
        caption = CAPTION
    else:
        module, caption = tiny.module(LOUPE()).eval(), "the red fish, above a sun and next to the crab"
    image = Image.effect_noise((90, 60), 90)
    found = module.inspect(image, caption)
    AlignmentViewer(found).save(tmp_path / "page.html")
    runs = [(a, b) for a in range(len(found.spans)) for b in range(a, len(found.spans))]
    runs = [(a, b) for a, b in runs if a == b or any(found.content[a : b + 1])]
    phrases = {run: caption[found.spans[run[0]][0] : found.spans[run[1]][1]] for run in runs}
    once = {run: phrase for run, phrase in phrases.items() if caption.count(phrase) == 1}
    measured = module.inspect(image, caption, list(once.values()))
    script = """([source, chosen]) => {
        const viewer = document.querySelector(".patchword-viewer").viewer;
        viewer.set("source", source);
        return chosen.map(([first, last]) => (viewer.select(first, last), Array.from(viewer.maps()[0])));
    }"""
    with opened(tmp_path / "page.html", browser=browser) as page:
        assert page.evaluate("document.querySelector('.patchword-viewer').viewer.words") == found.words
        for source, maps in measured.maps.items():
            shown = torch.tensor(page.evaluate(script, [source, list(once)]))
            torch.testing.assert_close(shown, maps, atol=1e-6, rtol=1e-4)


def test_a_map_is_drawn_as_it_is_measured(browser: Browser, two_panels: Path) -> None:
    """Maps are interpolated between the centers of patches, or drawn as patches, from lowest to highest in viridis."""
    values = numbers(seed=1).maps["align"][4]
    with opened(two_panels, browser=browser) as page:
        page.evaluate("document.querySelector('.patchword-viewer').viewer.select(4)")
        page.get_by_label("each map").check()
        page.locator('[data-key="opacity"]').fill("100")
        shown = drawn(page)
        smooth = upsample(values[None], (3, 4), shown.shape[:2])[0]
        expected = matplotlib.colormaps["viridis"](((smooth - values.min()) / (values.max() - values.min())).numpy())
        assert abs(shown - 255 * expected).max() < 6
        page.get_by_label("patches", exact=True).check()
        blocks = drawn(page)
        level = (values - values.min()) / (values.max() - values.min())
        height, width = blocks.shape[:2]
        for patch in range(12):
            row, column = divmod(patch, 4)
            inside = blocks[height * row // 3 + 2 : height * (row + 1) // 3 - 2, width * column // 4 + 2 :][:, :20]
            assert abs(inside - 255 * np.array(matplotlib.colormaps["viridis"](float(level[patch])))).max() < 6


def test_words_by_mouse(page: Page) -> None:
    """Hovering shows a map, a click pins it, another unpins it; dragging and Shift select phrases; Esc clears."""
    assert pressed(page) == ["red"]  # the first word that is not a function word, so that a map is visible at first
    word(page, 4).hover()
    assert selected(page) == ["sun"]
    page.mouse.move(5, 5)
    assert selected(page) == ["red"]
    word(page, 4).click()
    assert pressed(page) == ["sun"]
    word(page, 4).click()
    assert pressed(page) == []
    word(page, 1).hover()
    page.mouse.down()
    word(page, 2).hover()
    word(page, 4).hover()
    page.mouse.up()
    page.mouse.move(5, 5)
    assert pressed(page) == ["red", "fish", ",", "sun"]
    expect(page.locator(".hint")).to_contain_text("“red fish, sun” is pinned")
    word(page, 2).click()
    word(page, 3).click(modifiers=["Shift"])
    assert pressed(page) == ["fish", ","]
    page.keyboard.press("Escape")
    assert pressed(page) == selected(page) == []
    assert drawn(page).max() == 0


def test_words_by_keyboard(page: Page) -> None:
    """Everything works without a mouse: Tab, arrows, Shift, Enter, the help, Escape."""
    page.keyboard.press("Tab")
    expect(word(page, 1)).to_be_focused()
    page.keyboard.press("ArrowRight")
    assert selected(page) == ["fish"]
    page.keyboard.press("Shift+End")
    assert selected(page) == ["fish", ",", "sun"]
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Enter")
    assert pressed(page) == ["fish", ","]
    page.keyboard.press("Home")
    assert selected(page) == ["the"]
    page.keyboard.press("?")
    expect(page.locator(".help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".help")).to_be_hidden()
    assert pressed(page) == ["fish", ","]  # Escape has only closed the help
    page.locator(".stage").nth(1).focus()
    page.keyboard.press("ArrowUp")
    expect(page.locator(".readout").nth(1)).to_contain_text("row 4, column 5")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".readout").nth(1)).to_contain_text("row 3, column 4")
    page.keyboard.press("Escape")
    assert pressed(page) == []


def test_one_place_in_every_panel(page: Page) -> None:
    """Hovering over one image shows its patch in every panel, with its value and rank, and the best words."""
    word(page, 4).click()
    point_at(page, 1, 0.25 + 0.5 * 0.30, 0.55)  # row 4 of 6, column 3 of 8; row 2 of 3, column 2 of 4
    one, two = numbers(seed=1).maps["align"][4], numbers(6, 8, seed=2, lowest=-0.3).maps["align"]
    first, second = (page.locator(".readout").nth(panel) for panel in (0, 1))
    value = float(one[5])
    expect(first).to_contain_text("row 2, column 2")
    expect(first).to_contain_text(f"weight {value:.3g}, rank {1 + int((one > value).sum())} of 12")
    patch = 3 * 8 + 2
    rank = 1 + int((two[4] > two[4, patch]).sum())
    expect(second).to_contain_text("row 4, column 3")
    expect(second).to_contain_text(f", rank {rank} of 48")
    values = dict(zip(["red", "fish", "sun"], two[[1, 2, 4], patch].tolist(), strict=True))
    best = max(values, key=values.get)
    expect(second).to_contain_text(f"best word {best}")
    tinted = {w.inner_text(): w.evaluate("e => e.style.background") for w in page.locator(".word").all()}
    assert [name for name, color in tinted.items() if color] == ["red", "fish", "sun"]
    point_at(page, 0, 0.1, 0.5)  # the model did not see this
    expect(first).to_contain_text("maximum at")
    assert not page.locator(".stage").nth(0).locator("path.light").count()


def test_sliders_and_scales(page: Page) -> None:
    """Opacity and threshold change the drawing; a shared scale gives both panels the same limits."""
    word(page, 4).click()
    page.get_by_label("each map").check()
    opaque = drawn(page)[..., 3]
    assert set(np.unique(opaque)) == {round(65 * 2.55)}
    page.locator('[data-key="opacity"]').fill("20")
    assert set(np.unique(drawn(page)[..., 3])) == {51}
    page.locator('[data-key="threshold"]').fill("49")
    page.keyboard.press("ArrowRight")
    values = numbers(seed=1).maps["align"][4]
    large = upsample(values[None], (3, 4), opaque.shape)[0]
    hidden = drawn(page)[..., 3] == 0
    assert (hidden == (large < (values.min() + values.max()) / 2).numpy()).mean() > 0.999
    limits = lambda: [page.locator(".legend").nth(i).locator(".low, .high").all_inner_texts() for i in (0, 1)]  # noqa: E731
    assert limits()[0] != limits()[1]
    page.get_by_label("shared").check()
    settle(page)
    assert limits()[0] == limits()[1]
    page.get_by_label("cosine", exact=True).check()
    expect(page.locator(".legend .what").first).to_have_text("cosine")


def test_several_maps_have_one_scale_unless_asked_otherwise(browser: Browser, page: Page, tmp_path: Path) -> None:
    """Maps of one quantity share a range, and maps of several quantities are drawn by rank; one map has no choice."""
    scale = page.locator('[data-key="scale"]')
    expect(scale.get_by_label("ranks")).to_be_checked()  # weights and interactions
    expect(page.locator(".legend .what").nth(1)).to_have_text("rank of interaction")
    page.get_by_label("patches", exact=True).check()
    page.locator('[data-key="opacity"]').fill("100")
    word(page, 1).click()
    word(page, 1).click()
    weights = numbers(seed=1).maps["align"][1]
    weights[:5] = 0
    shown = drawn(page)
    height, width = shown.shape[:2]
    for patch in range(12):
        less, equal = int((weights < weights[patch]).sum()), int((weights == weights[patch]).sum())
        row, column = divmod(patch, 4)
        expected = matplotlib.colormaps["viridis"]((less + (equal - 1) / 2) / 11)
        assert (
            abs(shown[int(height * (row + 0.5) / 3), int(width * (column + 0.5) / 4)] - 255 * np.array(expected)).max()
            < 6
        )
    page.get_by_label("cosine", exact=True).check()
    expect(scale.get_by_label("shared")).to_be_checked()  # both are cosines
    low = page.locator(".legend .low").all_inner_texts()
    assert low[0] == low[1]
    page.get_by_label("all side by side").check()
    expect(page.locator(".panel b")).to_have_text(["one · align", "one · cosine", "two · align", "two · cosine"])
    expect(scale.get_by_label("ranks")).to_be_checked()
    scale.get_by_label("each map").check()
    page.get_by_label("align", exact=True).check()
    expect(page.locator(".panel")).to_have_count(2)
    expect(scale.get_by_label("each map")).to_be_checked()  # what was chosen stays
    AlignmentViewer({"one": numbers(), "two": numbers(seed=2)}).save(tmp_path / "unknown.html")
    with opened(tmp_path / "unknown.html", browser=browser) as unknown:
        expect(unknown.locator('[data-key="scale"]').get_by_label("ranks")).to_be_checked()  # it is not known what of
    AlignmentViewer(numbers()).save(tmp_path / "one.html")
    with opened(tmp_path / "one.html", browser=browser) as single:
        expect(single.locator('[data-key="scale"]')).to_be_hidden()


def test_words_that_a_tokenizer_does_not_know(browser: Browser, tmp_path: Path) -> None:
    """They are underlined, and the panel of the model that does not know them says so."""
    found = finds_red().inspect(Image.new("RGB", (40, 40), "red"), "a red zyzzyva")
    assert found.unknown == [False, False, True]
    AlignmentViewer({"one": found, "two": replace(found, unknown=None)}).save(tmp_path / "page.html")
    with opened(tmp_path / "page.html", browser=browser) as page:
        expect(page.locator(".word.unknown")).to_have_text(["zyzzyva"])
        expect(page.locator(".hint")).to_contain_text("does not know the words with a dotted line")
        word(page, 2).click()
        notes = page.locator(".panel > .note")
        expect(notes.nth(0)).to_have_text("This model's tokenizer does not know “zyzzyva”.")
        expect(notes.nth(1)).to_have_text("")


def test_the_caption_stays_in_sight_on_a_phone(browser: Browser, two_panels: Path, tmp_path: Path) -> None:
    """It is above the panels however far the page is scrolled; a long one scrolls by itself and leaves them room."""
    with opened(two_panels, browser=browser, width=420, height=640) as page:
        page.mouse.move(200, 400)
        page.mouse.wheel(0, 5000)
        settle(page)
        assert page.evaluate("scrollY") > 100
        box = word(page, 4).bounding_box()
        assert 0 <= box["y"] <= 60
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert pressed(page) == ["sun"]
    caption = " ".join(["red fish"] * 100)
    with pytest.warns(UserWarning, match="have no map"):
        AlignmentViewer(finds_red().inspect(Image.new("RGB", (40, 40)), caption)).save(tmp_path / "long.html")
    with opened(tmp_path / "long.html", browser=browser, width=420, height=640) as page:
        assert page.locator("header").bounding_box()["height"] <= 0.4 * 640


def test_signs_are_told_apart(page: Page) -> None:
    """Maps with both signs are white at zero, red above and blue below; weights have no such scale."""
    word(page, 4).click()
    page.get_by_label("each map").check()
    page.locator('[data-key="opacity"]').fill("100")
    page.get_by_label("patches", exact=True).check()
    values, shown = numbers(6, 8, seed=2, lowest=-0.3).maps["align"][4], drawn(page, 1)
    height, width = shown.shape[:2]
    for patch in range(48):
        row, column = divmod(patch, 8)
        red, _, blue, _ = shown[int(height * (row + 0.5) / 6), int(width * (column + 0.5) / 8)]
        assert (red > blue) == (values[patch] > 0) or abs(values[patch]) < 0.02
    assert page.locator(".legend .zero").nth(1).is_visible()
    assert not page.locator(".legend .zero").nth(0).is_visible()


def test_what_was_pruned_and_what_is_proposed(page: Page) -> None:
    """Patches of weight zero are hatched and counted; regions are listed and drawn; objects are outlined."""
    first, second = page.locator(".panel").nth(0), page.locator(".panel").nth(1)
    weights = numbers(seed=1).maps["align"][1].double()
    weights[:5] = 0
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    expect(first.locator(".note").first).to_have_text(f"7 of 12 patches remain, effective number {effective:.1f}")
    assert first.locator(".hatched").get_attribute("d").count("M") == 5
    page.get_by_label("pruned patches").uncheck()
    expect(first.locator(".hatched")).to_have_count(0)
    outline = second.locator("path.light")
    expect(outline).to_have_count(1)  # the object of "red"
    page.get_by_label("object outlines").uncheck()
    expect(outline).to_have_count(0)
    page.get_by_label("regions").check()
    expect(outline).to_have_count(2)
    second.locator("summary").click()
    second.get_by_label("Region 1, confidence 0.90").hover()
    map = numbers(6, 8, seed=2, lowest=-0.3).maps["align"][1].view(6, 8)
    mean = float(map[0:2, 1:4].mean())
    shown = second.locator(".regions .note").inner_text().replace("−", "-")
    assert shown.startswith("rows 1 to 2, columns 2 to 4, confidence 0.9, mean interaction ")
    assert float(shown.split()[-1]) == pytest.approx(mean, rel=0.01)


@pytest.mark.parametrize("size", [(400, 150), (150, 400)])
@pytest.mark.parametrize("whole", [False, True])
def test_the_map_lies_over_the_photo(browser: Browser, size: tuple[int, int], whole: bool, tmp_path: Path) -> None:
    """The map is brightest over the planted object, and the part that the model did not see is dimmed."""
    side = min(size)
    left, top = size[0] // 2 + side // 5, size[1] // 2 - side // 3
    photo = Image.new("RGB", size, (60, 160, 160))
    photo.paste((255, 0, 0), (left, top, left + side // 4, top + side // 4))
    AlignmentViewer(finds_red().inspect(photo, "red", whole=whole)).save(tmp_path / "page.html")
    with opened(tmp_path / "page.html", browser=browser, width=700) as page:
        page.get_by_label("dot", exact=True).check()
        page.locator('[data-key="opacity"]').fill("100")
        shown = pixels(page)
        height, width = shown.shape[:2]
        scale = width / size[0]
        assert height == pytest.approx(size[1] * scale, abs=2)
        yellow = shown[..., 0] - shown[..., 2]
        y, x = np.argwhere(yellow == yellow.max()).mean(0) / scale
        reach = [(n if whole else side) / 16 for n in size]  # half a patch
        assert left - reach[0] <= x <= left + side // 4 + reach[0]
        assert top - reach[1] <= y <= top + side // 4 + reach[1]
        corner = shown[3, 3].sum()
        page.keyboard.press("Escape")
        page.locator(".word").first.click()
        page.get_by_label("photo in gray").uncheck()
        page.locator('[data-key="opacity"]').fill("0")
        plain = pixels(page)
        assert abs(plain[int((top + side / 8) * scale), int((left + side / 8) * scale)] - (255, 0, 0)).max() < 30
        if whole:
            assert abs(plain[3, 3] - (60, 160, 160)).max() < 10
        else:
            assert corner < 200
            assert plain[3, 3].sum() < 0.6 * (60 + 160 + 160)
            page.get_by_label("only the part that the model saw").check()
            cropped = pixels(page)
            assert cropped.shape[0] == pytest.approx(cropped.shape[1], abs=2)
            assert abs(cropped[3, 3] - (60, 160, 160)).max() < 10


def test_hostile_and_foreign_text(browser: Browser, tmp_path: Path) -> None:
    """Text never runs as a script, characters beyond 16 bits do not shift words, and truncated words are marked."""
    caption = "🐌🐌 <img src=x onerror=alert(1)> </script> red\nnaïve 蘋果 " + "fish " * 16
    with pytest.warns(UserWarning, match="have no map"):
        found = finds_red().inspect(Image.new("RGB", (40, 40), "red"), caption)
    AlignmentViewer({"<i>name</i>": found}).save(tmp_path / "page.html")
    with opened(tmp_path / "page.html", browser=browser, width=420) as page:
        assert page.locator(".caption").inner_text().split() == caption.split()
        assert page.locator(".panel b").first.inner_text() == "<i>name</i>"
        assert page.evaluate("document.querySelector('.patchword-viewer').viewer.words") == found.words
        page.locator(".word", has_text="蘋果").hover()
        assert selected(page) == ["蘋果"]
        assert page.locator(".word.cut").count() == sum(n == 0 for n in found.tokens) > 0
        page.locator(".word.cut").last.hover()
        expect(page.locator(".absent")).to_contain_text("truncated by the tokenizer")
        assert page.evaluate("document.documentElement.scrollWidth") <= 420


def test_no_field_becomes_markup(browser: Browser, tmp_path: Path) -> None:
    """Names of maps, measures and panels are shown as text; a score can be NaN."""
    evil = "<img src=x onerror=\"document.title='evil'\">"
    regions = [Region((0, 1, 2, 4), 0.9), Region((1, 1, 2, 4), float("nan"))]
    found = numbers(measure=evil, pruned=True, score=float("nan"), regions=regions)
    found.maps[f"map {evil}"] = found.maps["align"]
    AlignmentViewer({evil: found, "other": numbers(seed=1)}).save(tmp_path / "page.html")
    with opened(tmp_path / "page.html", browser=browser) as page:
        word(page, 4).click()
        point_at(page, 0, 0.5, 0.5)
        expect(page.locator(".readout").first).to_contain_text(f"{evil} ")
        expect(page.locator(".score").first).to_have_text("score not finite")
        page.get_by_label("regions", exact=True).check()
        page.get_by_label(f"map {evil}", exact=True).check()
        point_at(page, 0, 0.4, 0.4)
        expect(page.locator(".readout").first).to_contain_text(f"map {evil} ")
        assert page.locator("img").count() == 2  # the photos
        assert "evil" not in page.title()


@pytest.mark.parametrize(
    "smuggled",
    [
        "<script>document.title = 'evil'</script>",
        "<img src=data: onerror=\"document.title = 'evil'\">",
        "<base href=https://example.org/>",
    ],
)
def test_no_other_script_runs(browser: Browser, two_panels: Path, tmp_path: Path, smuggled: str) -> None:
    """The content policy of a page prevents injected markup from running."""
    (tmp_path / "page.html").write_text(two_panels.read_text().replace("</body>", f"{smuggled}</body>"))

    def use() -> None:
        with opened(tmp_path / "page.html", browser=browser) as page:
            word(page, 4).click()
            assert pressed(page) == ["sun"]
            assert "evil" not in page.title()

    with pytest.raises(AssertionError, match="Content Security Policy"):
        use()


def test_no_text_and_numbers_that_are_none(browser: Browser, tmp_path: Path) -> None:
    AlignmentViewer(finds_red().inspect(Image.new("RGB", (5000, 1), "red"), "")).save(tmp_path / "empty.html")
    with opened(tmp_path / "empty.html", browser=browser) as page:
        expect(page.locator(".caption")).to_have_text("(no text)")
        page.locator(".stage").hover()
    broken = numbers()
    broken.maps["align"][1, 3] = torch.nan
    broken.maps["align"][2] = 0.5
    AlignmentViewer(broken).save(tmp_path / "broken.html")
    with opened(tmp_path / "broken.html", browser=browser) as page:
        expect(page.locator(".absent")).to_have_text("the map is not finite")
        page.locator(".stage").hover()
        word(page, 2).hover()
        expect(page.locator(".legend .low")).to_have_text("0.5")
        assert len(np.unique(drawn(page).reshape(-1, 4), axis=0)) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 420])
def test_it_fits_and_follows_the_colour_scheme(browser: Browser, two_panels: Path, width: int, scheme: str) -> None:
    """Panels are side by side on a wide screen and below each other on a narrow one; nothing is cut off."""
    with opened(two_panels, browser=browser, width=width, color_scheme=scheme) as page:
        first, second = (page.locator(".panel").nth(i).bounding_box() for i in (0, 1))
        assert (first["y"] == second["y"]) == (width == 1400)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = np.asarray(Image.open(BytesIO(page.screenshot())).convert("L"))[-1, -1]
        assert (ground < 60) == (scheme == "dark")


def test_several_in_one_page(browser: Browser, tmp_path: Path) -> None:
    """Several viewers on one page have their own text, state and styles, and do not change those of the page."""
    fragments = [AlignmentViewer(numbers(seed=seed)).fragment() for seed in (1, 2)]
    style = "<style>button { display: none } .panel { color: red }</style>"
    (tmp_path / "page.html").write_text(f"<!doctype html>{style}<h1 class='panel'>Title</h1>{''.join(fragments)}")
    with opened(tmp_path / "page.html", browser=browser) as page:
        second = page.locator(".patchword-viewer").nth(1)
        second.locator(".word").nth(4).click()
        assert pressed(page) == ["red", "sun"]
        assert page.locator("h1").evaluate("e => getComputedStyle(e).color") == "rgb(255, 0, 0)"
        assert page.locator(".panel b").first.evaluate("e => getComputedStyle(e).color") != "rgb(255, 0, 0)"
