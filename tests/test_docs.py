"""Pages of objectives match the code: sections, formulas, options, defaults, tests and links."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

import patchword.objectives
from patchword.bench import plain

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs/objectives"
OBJECTIVES = sorted(patchword.objectives.__all__)
SECTIONS = ["Formula", "Supervision", "Options", "Map", "Cost", "Differs from the paper", "Pitfalls"]
KNOWN = "What is known, recalled and ours"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
MARKDOWN = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def page(name: str) -> str:
    return (PAGES / f"{name.lower()}.md").read_text()


def sections(name: str) -> dict[str, str]:
    """Return the text under each heading of an objective's page, in order."""
    _, *parts = re.split(r"^## (.+)\n", page(name), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def rows(text: str) -> list[list[str]]:
    """Return the cells of all table rows, without headers."""
    lines = [line.strip() for line in text.splitlines()]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    rules = [n for n, row in enumerate(cells) if set("".join(row)) <= set("-: ")]
    return [row for n, row in enumerate(cells) if n not in rules and n + 1 not in rules]


def written(value: Any) -> Any:
    """Return a default as it is written in a configuration file."""
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sections_are_complete_and_in_order(name: str) -> None:
    """All pages of objectives have the same sections."""
    expected = [*SECTIONS[:-1], *([KNOWN] if name == "LOUPE" else []), SECTIONS[-1]]
    assert list(sections(name)) == expected
    assert page(name).startswith(f"# {name}\n\n")
    assert all(body.strip() for body in sections(name).values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_formula_is_the_plain_one(name: str) -> None:
    """The code at the top of a page is the plain formula that `bench` and tests compare with."""
    code = re.search(r"```python\n(.*?)```", sections(name)["Formula"], re.DOTALL)
    source = inspect.getsource(plain.loss.dispatch(getattr(patchword.objectives, name)))
    assert code is not None
    assert code[1] == source.removeprefix("@loss.register\n")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_options_are_the_constructors(name: str) -> None:
    """The names are in the order of the constructor, defaults are in YAML, and all choices are listed."""
    constructor = getattr(patchword.objectives, name).__init__
    parameters = list(inspect.signature(constructor).parameters.values())[1:]
    hints = get_type_hints(constructor)
    table = rows(sections(name)["Options"])
    assert [row[0] for row in table] == [f"`{p.name}`" for p in parameters]
    for parameter, (_, default, meaning, whose) in zip(parameters, table, strict=True):
        if parameter.default is inspect.Parameter.empty:
            assert default == "required"
        else:
            found, expected = yaml.safe_load(default.strip("`")), written(parameter.default)
            assert (type(found), found) == (type(expected), expected), parameter.name
        if get_origin(hints[parameter.name]) is Literal:
            assert all(f"`{choice}`" in default + meaning for choice in get_args(hints[parameter.name])), parameter.name
        assert whose


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_pitfall_names_a_test_that_exists(name: str) -> None:
    """Every pitfall on a page has a test that guards against it."""
    text = sections(name)["Pitfalls"]
    points = [*re.split(r"^- ", text, flags=re.MULTILINE)[1:], *(" ".join(row) for row in rows(text))]
    assert points
    assert all(TEST.search(point) for point in points)


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_that_are_named_exist(path: Path) -> None:
    """All tests that a page names exist."""
    for file, function in TEST.findall(path.read_text()):
        assert re.search(rf"^def {function}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{function}"


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(path: Path) -> None:
    """Linked files and headings exist."""
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"\w+:", link):
            continue
        file, _, heading = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles], link


@pytest.mark.parametrize("name", OBJECTIVES)
def test_costs_say_what_was_measured(name: str) -> None:
    """The costs have a sentence about the setup and a row for patchword, written by insert_costs.py."""
    _, *measured = sections(name)["Cost"].split("<!-- measured -->\n")
    assert measured
    assert all(text.lstrip().startswith("Measured: ") for text in measured)
    assert any(row[0] == "patchword" and row[1].endswith(" ms") for row in rows(measured[0]))


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.md")), ids=lambda path: path.name)
def test_nothing_is_left_to_do(path: Path) -> None:
    """No page contains TODO."""
    assert "TODO" not in path.read_text()


def test_the_index_lists_every_page() -> None:
    """The index has one row per page, with the paper's number from the page."""
    table = {row[0]: row for row in rows((PAGES / "README.md").read_text()) if row[-1].endswith(".md)")}
    assert sorted(table) == OBJECTIVES
    pages = {"README.md", "ports.md", *(f"{n.lower()}.md" for n in OBJECTIVES)}
    assert {path.name for path in PAGES.glob("*.md")} == pages
    for name, row in table.items():
        assert row[-1] == f"[{name.lower()}.md]({name.lower()}.md)"
        for number in re.findall(r"\d{4}\.\d{5}", row[1]):
            assert f"https://arxiv.org/abs/{number}" in page(name)


def test_the_readme_counts_the_objectives() -> None:
    """A sum of objectives is not one of its own."""
    (number,) = re.findall(r"trains (\d+) objectives", (ROOT / "README.md").read_text())
    assert int(number) == len([name for name in OBJECTIVES if name != "Sum"])


def test_every_difference_of_a_port_has_a_test() -> None:
    """Each row of the page on ports names its test, and the page names all tests of `test_ports.py`."""
    text = (PAGES / "ports.md").read_text()
    differences = [row for table in text.split("\n## ")[1:] for row in rows(table)]
    assert len(differences) > 30
    for row in differences:
        _, where, _, tests = row
        assert TEST.fullmatch(tests), tests
        assert re.search(r"`[\w/.]+\.py:\d+", where), where
    ours = re.findall(r"^def (test_\w+)", (ROOT / "tests/objectives/test_ports.py").read_text(), re.MULTILINE)
    assert set(ours) == {name for file, name in TEST.findall(text) if file.endswith("test_ports.py")}


def test_scaling_page_names_every_mode() -> None:
    """The tables contain every configuration of a mode, and every objective that was verified."""
    text = (ROOT / "docs/scaling.md").read_text()
    named = {row[3].strip("`") for row in rows(text) if len(row) == 4}
    assert named == {path.name for path in ROOT.glob("configs/scaling/*.yaml")}
    verified = text.split("```text\n")[2].split("```")[0]
    assert all(re.search(rf"^ {name} ", verified, re.MULTILINE) for name in OBJECTIVES)
