"""The files of a report are valid, whatever its names and claims contain."""

from __future__ import annotations

import html
import json
import math
import re
from contextlib import redirect_stdout
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

from patchword.report import read_runs
from patchword.report.command import main, write_report
from patchword.report.content import make
from patchword.report.latex import escape as escape_latex
from patchword.report.markdown import escape as escape_markdown
from tests.report import fake
from tests.report.test_frames import results
from tests.report.test_reading import by_hand, old

NASTY = r"<script>alert(1)<x> a|b_c* & 50% $x$ {y} #1 ~^\ `z`"
CLAIM = "<img src=x onerror=alert(2)> & SPARC_2 | better"
STEERING = "\x1b]0;title\x07\u202e"  # a terminal's title, and the direction of writing
SAMPLE = "test_1](javascript:alert(3)) <b>_1"  # the name of a file of maps
VOID = {"meta", "link", "br", "img", "input", "source", "path", "circle"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a comparison with nasty names, an unfinished run, curves and maps."""
    folder = tmp_path_factory.mktemp("runs") / "nasty"
    fake.comparison(folder, {"CLIP": 0.5, NASTY: 0.6, "=one": 0.4}, baseline="CLIP", claim=CLAIM, samples=2)
    results(folder, "=one", 0).unlink()
    (folder / "=one" / "seed_0" / "fit.log").write_text(f"patchword: error: <b>no|room</b>{STEERING}")
    for maps in folder.glob("*/seed_*/test/maps"):
        (maps / "test_1.npz").rename(maps / f"{SAMPLE}.npz")
    with redirect_stdout(StringIO()) as printed:
        main(["report", str(folder), "--title", NASTY])
    (folder / "printed.txt").write_text(printed.getvalue())
    return folder


class Page(HTMLParser):
    """A parser that records the elements of a page and their references, and checks that all are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_refers_to_nothing_outside(written: Path) -> None:
    """One file: no script, style, font or picture from elsewhere; and a policy that forbids them."""
    text = (written / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    for tag, attributes in page.found:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            if attributes.get(name):
                assert str(attributes[name]).startswith(("data:", "#")), (tag, attributes)
    assert "default-src 'none'" in html.unescape(text)
    assert "@import" not in text
    assert not re.search(r"url\((?!['\"]?(data:|#))", text)


def test_page_shows_names_and_never_obeys_them(written: Path) -> None:
    """A name, a claim or an error is text everywhere on the page and never becomes markup."""
    page = Page((written / "report.html").read_text())
    assert [tag for tag, _ in page.found].count("script") == 3 + 2  # ours and two of each viewer
    assert not [attributes for _, attributes in page.found if any(name.startswith("on") for name in attributes)]


def test_page_is_accessible(written: Path) -> None:
    """Every table has a caption and headers with a scope; every picture has a description; ids are unique."""
    page = Page((written / "report.html").read_text())
    tags = [tag for tag, _ in page.found]
    assert tags.count("table") == tags.count("caption")
    assert all("scope" in attributes for tag, attributes in page.found if tag == "th")
    assert all(attributes.get("alt") for tag, attributes in page.found if tag == "img")
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {str(attributes["href"])[1:] for tag, attributes in page.found if tag == "a"}
    assert links <= set(ids)


def test_cells_say_the_number_of_each_seed(written: Path) -> None:
    """Every cell has its provenance: the seed, value and config hash of each run."""
    page = Page((written / "report.html").read_text())
    titles = [str(attributes["title"]) for tag, attributes in page.found if tag == "td" and attributes.get("title")]
    run = json.loads(results(written, "CLIP", 1).read_text())
    value, config = run["metrics"]["test/retrieval/image_to_text/r@1"], run["measured"]["config_hash"]
    assert any(f"seed 1: {value:.4f} (config {config})" in title.splitlines() for title in titles)


def test_csv_holds_every_number(written: Path) -> None:
    """pandas reads the numbers of the runs from the CSV file, exact to the last digit."""
    table = pd.read_csv(written / "report.csv")
    run = json.loads(results(written, NASTY, 2).read_text())
    own = table[(table.variant == NASTY) & (table.seed == 2) & (table.split != "training")]
    assert dict(zip(own.split + "/" + own.metric, own.value, strict=True)) == run["metrics"]
    assert set(own.config_hash) == {run["measured"]["config_hash"]}


def test_markdown_tables_have_equal_columns(written: Path) -> None:
    """Pipes in names do not shift cells, and all linked pictures exist."""
    text = (written / "report.md").read_text()
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 10
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, lines
    assert "<script" not in text
    assert "<img" not in text
    assert "<b>" not in text
    pictures = re.findall(r"!\[.*?\]\(([^()\s]*)\)", text)
    assert len(pictures) == 4 + 2
    assert all((written / unquote(name)).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_nothing_steers_a_terminal_or_a_spreadsheet(written: Path) -> None:
    """Control characters from logs and names are escaped on the terminal and in files; no cell is a formula."""
    for name in ("printed.txt", "report.md", "report.tex", "report.csv"):
        assert not set((written / name).read_text()) & set(STEERING[:1] + STEERING[-2:]), name
    assert r"\x1b]0;title\x07\u202e" in (written / "printed.txt").read_text().replace("\n", "")
    assert set(pd.read_csv(written / "report.csv").variant) == {"CLIP", NASTY, "'=one"}


def test_latex_is_balanced(written: Path) -> None:
    """Braces and environments are closed, rows have equal numbers of cells, and names are escaped."""
    text = (written / "report.tex").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    bare = re.sub(r"\\[\\{}&%$#_]", "", "\n".join(lines))
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert not set("#%~<>|") & set(bare)
    assert re.findall(r"\\begin\{(\w+)", text) == [
        name for pair in zip(["table"] * 9, ["tabular"] * 9, strict=True) for name in pair
    ]
    assert text.count(r"\begin") == text.count(r"\end")
    for block in bare.split("toprule")[1:]:
        rows = [line for line in block.split("bottomrule")[0].splitlines() if "&" in line]
        assert len({row.count("&") for row in rows}) == 1


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    """A split without a finite number has no table, and every format says so; costs that are NaN are not shown."""
    folder = fake.comparison(tmp_path / "two", {"CLIP": 0.5, "SPARC": 0.6}, seeds=(0, 1), baseline="CLIP")
    for number, path in enumerate(sorted(folder.rglob("results.json"))):
        found = json.loads(path.read_text())
        value = math.inf if number % 2 else math.nan
        found["metrics"] |= {name: value for name in found["metrics"] if name.startswith("test/")}
        found["measured"]["trained"] |= {"step_seconds": value}
        path.write_text(json.dumps(found))
    report = make(read_runs(folder))
    assert report.splits["test"] == []
    write_report(report, folder)
    for name in ("report.html", "report.md", "report.tex"):
        assert "The split test has no table" in (folder / name).read_text()
    assert "nan ×" not in (folder / "report.html").read_text()


def test_escapes() -> None:
    """Guards the special characters of each format."""
    assert escape_latex("a_b & 5% ^ −1") == r"a\_b \& 5\% \textasciicircum{} $-$1"
    assert escape_markdown("a|b_c\n*d* <e> & `f`") == r"a\|b\_c \*d\* &lt;e&gt; &amp; \`f\`"


def test_the_number_of_comparisons_is_said(tmp_path: Path) -> None:
    """The report states the number of comparisons, counting each once, because some intervals exclude 0 by chance."""
    folder = fake.comparison(tmp_path / "three", {"a": 0.5, "b": 0.6, "c": 0.7}, baseline="a")
    report = make(read_runs(folder))
    # Two variants, two splits: 3 numbers of retrieval and hard negatives, and 3 sources with 4 numbers of grounding.
    assert f"{2 * 2 * (3 + 3 * 4)} comparisons with a" in report.warning


def test_old_runs_alone_are_reported(tmp_path: Path) -> None:
    """Runs without definition, cost, curves and maps still give a table, which says what is not recorded."""
    for seed in (0, 1):
        for objective, quality in (("CLIP", 0.5), ("SPARC", 0.6)):
            old(by_hand(tmp_path, f"{objective}{seed}", quality + seed / 100, seed=seed, objective=objective))
    report = make(read_runs(tmp_path, baseline="CLIP"))
    (paths,) = {tuple(path.name for path in write_report(report, tmp_path))}
    assert paths == ("report.html", "report.md", "report.csv", "report.tex")
    text = (tmp_path / "report.html").read_text()
    assert "not paired (initial encoder and order of the data not recorded)" in text
    assert "no learning curve" in text
    assert "step time not recorded" in text
    assert 'class="interval"' not in text
