"""Escape text for Markdown files."""

from __future__ import annotations

import re

from patchword.files.printable import printable

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$!])")
_LONGEST = 10_000


def escape(text: str) -> str:
    """`text` on one line, without characters that have a meaning in Markdown, in HTML or on a terminal."""
    text = printable(" ".join(text.split()), _LONGEST)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", text)
