"""Alignments as an interactive page that works offline, for files, for notebooks and for embedding in other pages."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from patchword.errors import UserError
from patchword.files.atomic_write import atomic_write
from patchword.maps.alignment import Alignment
from patchword.viewer.content_policy import content_policy
from patchword.viewer.payload import payload

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{policy}}">
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
    """An interactive view of the maps of a caption's words from one or several models.

    A notebook displays the viewer if it is the last line of a cell.

    Args:
        panels: One alignment, or several alignments of the same caption by name, which are shown side by side.

    Raises:
        UserError: If there is no alignment, or the captions differ.
    """

    def __init__(self, panels: Mapping[str, Alignment] | Alignment) -> None:
        self.panels = {"": panels} if isinstance(panels, Alignment) else dict(panels)
        if not self.panels:
            raise UserError("AlignmentViewer needs at least one alignment, but got none")
        captions = list(dict.fromkeys(alignment.caption for alignment in self.panels.values()))
        if len(captions) > 1:
            first, second = captions[:2]
            raise UserError(f"the panels have different captions, {first!r} and {second!r}: use one viewer per caption")

    def fragment(self) -> str:
        """Return one HTML element with its own style, script and data.

        It can be placed in the body of any page, and a page can have several. The content policy of the page, if there
        is one, must allow `viewer_script()`.
        """
        data = json.dumps(payload(self.panels), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        return _fill(_read("viewer.html"), {"style": _read("viewer.css"), "data": data, "script": viewer_script()})

    def page(self) -> str:
        """Return a complete HTML file."""
        caption = next(iter(self.panels.values())).caption
        title = html.escape(f"patchword: {caption}" if caption.strip() else "patchword")
        policy = content_policy(viewer_script())
        return _fill(_PAGE, {"title": title, "policy": policy, "fragment": self.fragment()})

    def save(self, path: str | Path) -> None:
        """Write the page to a file, and create its folder if needed.

        If writing fails, an existing file remains unchanged.

        Raises:
            UserError: If the file cannot be written.
        """
        path = Path(path)
        try:
            with atomic_write(path) as file:
                file.write(self.page())
        except OSError as error:
            raise UserError(f"cannot write the page {path}: {error.strerror}") from error

    def _repr_html_(self) -> str:
        """Return the page in a frame, so that its styles and those of the notebook do not affect each other."""
        page = html.escape(self.page())
        style = "width: 100%; height: 640px; border: 0"
        return f'<iframe srcdoc="{page}" title="Alignment viewer" style="{style}" data-fit></iframe>'


def viewer_script() -> str:
    """Return the text between the script tags of every fragment."""
    return _read("viewer.js")


def _read(name: str) -> str:
    return files("patchword.viewer").joinpath(name).read_text(encoding="utf-8")


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Replace each {{name}} in `template` by its value; braces inside values are kept."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template)
