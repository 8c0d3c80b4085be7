"""What is written can be read by those it is written for, whatever names and claims hold."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

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
VOID = {"meta", "link", "br", "img", "input", "source", "path", "circle"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a comparison with nasty names, an unfinished run, curves and maps."""
    folder = tmp_path_factory.mktemp("runs") / "nasty"
    fake.comparison(folder, {"CLIP": 0.5, NASTY: 0.6, "one": 0.4}, baseline="CLIP", claim=CLAIM, samples=2)
    results(folder, "one", 0).unlink()
    (folder / "one" / "seed_0" / "fit.log").write_text("patchword: error: <b>no|room</b>")
    main(["report", str(folder), "--title", NASTY])
    return folder


class Page(HTMLParser):
    """Which elements a page has, what they refer to, and whether all are closed."""

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
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert not re.search(r"url\((?!['\"]?(data:|#))", text)


def test_page_shows_names_and_never_obeys_them(written: Path) -> None:
    """A name, a claim and an error are text: guards every place where they stand."""
    page = Page((written / "report.html").read_text())
    assert [tag for tag, _ in page.found].count("script") == 3 + 2  # ours and two of each viewer
    assert not [attributes for _, attributes in page.found if any(name.startswith("on") for name in attributes)]


def test_page_is_accessible(written: Path) -> None:
    """Every table has a caption and heads with a scope; every picture says what it shows; ids are unique."""
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
    """Provenance on every number: seed, value and config hash on the cell itself."""
    page = Page((written / "report.html").read_text())
    titles = [str(attributes["title"]) for tag, attributes in page.found if tag == "td" and attributes.get("title")]
    run = json.loads(results(written, "CLIP", 1).read_text())
    value, config = run["metrics"]["test/retrieval/image_to_text/r@1"], run["measured"]["config_hash"]
    assert any(f"seed 1: {value:.4f} (config {config})" in title.splitlines() for title in titles)


def test_csv_holds_every_number(written: Path) -> None:
    """What pandas reads is what the runs have written, to the last digit."""
    table = pd.read_csv(written / "report.csv")
    run = json.loads(results(written, NASTY, 2).read_text())
    own = table[(table.variant == NASTY) & (table.seed == 2) & (table.split != "training")]
    assert dict(zip(own.split + "/" + own.metric, own.value, strict=True)) == run["metrics"]
    assert set(own.config_hash) == {run["measured"]["config_hash"]}


def test_markdown_tables_have_equal_columns(written: Path) -> None:
    """A pipe in a name would shift all cells after it; pictures that are linked exist."""
    text = (written / "report.md").read_text()
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 10
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, lines
    assert "<script" not in text
    assert "<img" not in text
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(pictures) == 4 + 2
    assert all((written / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_latex_is_balanced(written: Path) -> None:
    """Braces and environments close, rows have equal cells, and nothing special is left of names."""
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


def test_escapes() -> None:
    """The letters that each format takes for its own."""
    assert escape_latex("a_b & 5% ^ −1") == r"a\_b \& 5\% \textasciicircum{} $-$1"
    assert escape_markdown("a|b_c\n*d* <e> & `f`") == r"a\|b\_c \*d\* &lt;e&gt; &amp; \`f\`"


def test_the_number_of_comparisons_is_said(tmp_path: Path) -> None:
    """Many looks make some interval exclude 0: how many there are stands on the page, each counted once."""
    folder = fake.comparison(tmp_path / "three", {"a": 0.5, "b": 0.6, "c": 0.7}, baseline="a")
    report = make(read_runs(folder))
    # Two variants, two splits: 3 numbers of retrieval and hard negatives, and 3 sources with 4 numbers of grounding.
    assert f"The tables hold {2 * 2 * (3 + 3 * 4)} comparisons with a" in report.warning
    assert "one in twenty" in report.warning


def test_old_runs_alone_are_reported(tmp_path: Path) -> None:
    """Without definition, cost, curves and maps there is still a table, and it says what is not recorded."""
    for seed in (0, 1):
        for objective, quality in (("CLIP", 0.5), ("SPARC", 0.6)):
            old(by_hand(tmp_path, f"{objective}{seed}", quality + seed / 100, seed=seed, objective=objective))
    report = make(read_runs(tmp_path, baseline="CLIP"))
    (paths,) = {tuple(path.name for path in write_report(report, tmp_path))}
    assert paths == ("report.html", "report.md", "report.csv", "report.tex")
    text = (tmp_path / "report.html").read_text()
    assert "not paired (initial encoder and order of the data not recorded): all variants" in text
    assert "No learning curve" in text
    assert "time of a step not recorded" in text
    assert 'class="interval"' not in text
