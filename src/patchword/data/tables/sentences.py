"""Split a long caption into sentences."""

from __future__ import annotations

import re

# The end of a sentence with the following space, before a character that can begin a sentence.
END = re.compile(r"""(?<=[.!?…])["'”’)\]]*\s+(?=["'“‘(\[]*[A-Z0-9À-ÖØ-Þ])|\n+""")
ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|No|approx|e\.g|i\.e)|(?:^|\s)[A-Z])\.$")


def sentences(caption: str) -> list[tuple[int, int]]:
    """Return the first and one past the last character of each sentence of `caption`, without surrounding spaces.

    A sentence ends at `.`, `!`, `?` or `…` before a space and a capital letter or a number, and at the end of a line,
    but not after common abbreviations and initials ("Mr. Smith", "J. Smith").
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for end in [*END.finditer(caption), None]:
        stop = len(caption) if end is None else end.start()
        if end is not None and ABBREVIATION.search(caption[start:stop]):
            continue
        closing = len(caption[stop : end.end()].rstrip()) if end is not None else 0
        piece = caption[start : stop + closing]
        if piece.strip():
            left = start + len(piece) - len(piece.lstrip())
            spans.append((left, start + len(piece.rstrip())))
        start = len(caption) if end is None else end.end()
    return spans
