"""Show text from untrusted sources safely on a terminal."""

from __future__ import annotations

from pathlib import Path

END = "..."


def printable(text: str | Path, limit: int = 200) -> str:
    r"""`text` on one line of at most `limit` characters, without terminal control sequences.

    Names and captions can come from untrusted files. They can contain line ends, escape sequences, marks that change
    the direction of writing, bytes that are not UTF-8 (as Python's lone surrogates), or hundreds of megabytes. Every
    character that is not printable according to Unicode is replaced by its escape in Python's `repr` (`\n`, `\x1b`,
    `\u202e`, `\udcff`), and text that is longer than `limit` ends with `...`. All other characters, of any script,
    are unchanged.
    """
    text = str(text)
    shown = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text[: limit + 1])
    if len(text) <= limit and len(shown) <= limit:
        return shown
    return shown[: max(0, limit - len(END))] + END[:limit]
