"""Alignments as a page that needs neither a server nor a network: for files, notebooks, and inside other pages."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from patchword.alignment import Alignment
from patchword.errors import InputError
from patchword.viewer.payload import payload

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{title}}</title>
<style>
body { margin: 0; background: #fff; }
@media (prefers-color-scheme: dark) { body { background: #14171a; } }
</style>
</head>
<body>
{{fragment}}
</body>
</html>
"""


class AlignmentViewer:
    """Where one or several models see the words of a caption, to be looked at with mouse and keyboard.

    In a notebook it shows itself.

    Args:
        panels: One alignment, or several of the same caption by name, which stand side by side.

    Raises:
        InputError: If there is none, or their captions differ.
    """

    def __init__(self, panels: Mapping[str, Alignment] | Alignment) -> None:
        self.panels = {"": panels} if isinstance(panels, Alignment) else dict(panels)
        if not self.panels:
            raise InputError("there is no alignment to look at: AlignmentViewer needs at least one")
        captions = list(dict.fromkeys(alignment.caption for alignment in self.panels.values()))
        if len(captions) > 1:
            first, second = captions[:2]
            raise InputError(f"the panels show different captions, {first!r} and {second!r}: take a viewer for each")

    def fragment(self) -> str:
        """One element with its own style, script and data, for the body of any page; a page can have many."""
        data = json.dumps(payload(self.panels), separators=(",", ":")).replace("<", "\\u003c")
        return _fill(_read("viewer.html"), {"style": _read("viewer.css"), "data": data, "script": _read("viewer.js")})

    def page(self) -> str:
        """A whole HTML file."""
        caption = next(iter(self.panels.values())).caption
        title = html.escape(f"patchword: {caption}" if caption.strip() else "patchword")
        return _fill(_PAGE, {"title": title, "fragment": self.fragment()})

    def save(self, path: str | Path) -> None:
        """Write the page to a file; its folder is made where there is none.

        Raises:
            InputError: If the file cannot be written.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.page(), encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write the page {path}: {error.strerror}") from error

    def _repr_html_(self) -> str:
        """The page in a frame, so that it and the notebook leave each other's styles alone."""
        page = html.escape(self.page())
        style = "width: 100%; height: 640px; border: 0"
        return f'<iframe srcdoc="{page}" title="Alignment viewer" style="{style}" data-fit></iframe>'


def _read(name: str) -> str:
    return files("patchword.viewer").joinpath(name).read_text(encoding="utf-8")


def _fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with each {{name}} replaced once: a value's own braces stay."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template)
