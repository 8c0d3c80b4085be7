"""The page in a browser, opened as a file and without a network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from patchword.report.command import main
from tests.browser import opened, running
from tests.report import fake


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three variants, of which one lacks a metric, with two samples."""
    folder = tmp_path_factory.mktemp("runs") / "three"
    fake.comparison(folder, {"CLIP": 0.5, "ALIGN": 0.7, "SPARC": 0.6}, baseline="CLIP", samples=2)
    main(["report", str(folder)])
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running() as one:
        yield one


@pytest.mark.parametrize("width", [420, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_opens_without_errors_and_fits_its_window(
    page_file: Path, browser: Browser, width: int, scheme: str
) -> None:
    """The page fetches nothing, logs nothing to the console, and only its wide tables scroll sideways."""
    with opened(page_file, width=width, browser=browser, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for picture in page.locator("figure img").all():
            picture.scroll_into_view_if_needed()
            assert picture.evaluate("image => image.complete && image.naturalWidth > 0")
        shown = page.evaluate("document.querySelector('#cost figure img').currentSrc.length")
    assert shown > 1000


def test_no_other_script_runs(page_file: Path, browser: Browser, tmp_path: Path) -> None:
    """The content policy of a report prevents injected markup from running."""
    text = page_file.read_text()
    assert re.search(r"script-src &#39;sha256-\S+&#39; &#39;sha256-\S+&#39;;", text)
    smuggled = "<script>document.title = 'evil'</script>"
    (tmp_path / "report.html").write_text(text.replace("</footer>", f"{smuggled}</footer>"))

    def use() -> None:
        with opened(tmp_path / "report.html", browser=browser) as page:
            page.locator("table.sortable").first.locator("thead button").nth(2).click()
            assert page.locator("table.sortable").first.locator("tbody tr").first.inner_text().startswith("ALIGN")
            page.locator(".word").first.click()
            assert "evil" not in page.title()

    with pytest.raises(AssertionError, match="Content Security Policy"):
        use()


def test_tables_are_sorted_by_their_heads(page_file: Path, browser: Browser) -> None:
    """Tables are sorted by mouse or keyboard, first in descending order; chance remains at the bottom."""
    with opened(page_file, browser=browser) as page:
        table = page.locator("table.sortable").first
        names = "rows => rows.map(row => row.cells[0].dataset.order)"
        assert table.locator("tbody tr").evaluate_all(names) == ["CLIP", "ALIGN", "SPARC"]
        table.locator("thead button").nth(2).click()
        assert table.locator("tbody tr").evaluate_all(names) == ["ALIGN", "SPARC", "CLIP"]
        assert table.locator("thead th").nth(2).get_attribute("aria-sort") == "descending"
        table.locator("thead button").nth(2).press("Enter")
        assert table.locator("tbody tr").evaluate_all(names) == ["CLIP", "SPARC", "ALIGN"]
        table.locator("thead button").first.click()
        assert table.locator("tbody tr").evaluate_all(names) == ["ALIGN", "CLIP", "SPARC"]
        assert table.locator("thead th").nth(2).get_attribute("aria-sort") == "none"
        assert table.locator("tfoot th").all_inner_texts() == ["chance", "center prior"]


def test_each_seed_is_shown_where_asked_for(page_file: Path, browser: Browser) -> None:
    """The numbers of the seeds are available without a mouse, too."""
    with opened(page_file, width=420, browser=browser) as page:
        seeds = page.locator("#split-1 table .seeds").first
        assert not seeds.is_visible()
        page.locator("#show-seeds").press("Space")
        assert seeds.is_visible()
        assert seeds.inner_text().startswith("0: 0.5")


def test_gallery_shows_every_variant(page_file: Path, browser: Browser) -> None:
    """Each sample has a viewer, even if it was closed at first, with the variants in the order of the tables."""
    with opened(page_file, browser=browser) as page:
        samples = page.locator("#gallery details")
        assert samples.count() == 2
        samples.nth(1).locator("summary").click()
        names = [samples.nth(1).get_by_text(name, exact=True) for name in ("CLIP", "ALIGN", "SPARC")]
        assert all(name.is_visible() for name in names)
        places = [name.bounding_box() for name in names]
    assert [place["x"] for place in places if place] == sorted(place["x"] for place in places if place)
