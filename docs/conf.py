"""The documentation site: `make docs` renders the pages of the repository with Sphinx, as they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

project = "patchword"
author = "The patchword authors"
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/**/*.md", "notebooks/*.ipynb"]
exclude_patterns = ["docs/contents.md"]
extensions = ["myst_nb", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
nitpick_ignore_regex = [("myst", r"(\.\./)*[\w/]+")]  # folders, which have no page here, are shown as text
nb_execution_mode = "off"  # notebooks are stored with their outputs
html_theme = "furo"
html_title = "patchword"
html_math_renderer = "mathml"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "reference.html",
        "sidebar/scroll-end.html",
    ]
}
templates_path = ["templates"]
html_copy_source = False

CONTENTS = (Path(__file__).parent / "contents.md").read_text()


def setup(app: Sphinx) -> None:
    """Connect the parts below."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
    app.connect("source-read", _add_contents)
    app.connect("build-finished", _copy_home)


def _add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """Add the table of contents, which GitHub does not show, to the first page."""
    if name == root_doc:
        source[0] += CONTENTS


def _copy_home(app: Sphinx, error: Exception | None) -> None:
    """Make the first page the one that opens at the address of the site."""
    if error is None and app.builder.format == "html":
        shutil.copy(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))


def _inline_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block_math(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{_mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def _mathml(formula: str, display: str) -> str:
    """Return MathML, which browsers show without scripts, in the dialect of LaTeX that the converter knows."""
    return convert(formula.replace("{aligned}", "{align*}").replace(r"\_", "_"), display=display)
