"""Find files by paths, globs and ranges in braces."""

from __future__ import annotations

import re
from glob import glob
from itertools import pairwise
from pathlib import Path

from patchword.errors import UserError

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def find_files(patterns: str | list[str], name: str) -> list[Path]:
    """Return the files that match one or several patterns, sorted by path.

    Args:
        patterns: One or several patterns: a path, a glob (`shards/*.tar`), or a range (`shards/{00000..00331}.tar`),
            whose numbers have at least as many digits as the first one.
        name: The option whose value the patterns are, for messages.

    Raises:
        UserError: If a pattern matches nothing, a file of a range is missing, or a file is matched twice.
    """
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for one in expand(pattern, name):
            # An existing path is not a glob, even if it contains brackets.
            matched = [one] if Path(one).exists() else glob(one)
            if not matched:
                of = "" if one == pattern else f", which is part of {pattern}"
                raise UserError(f"{name}: there is no file {one}{of}: correct the pattern or add the file")
            found += map(Path, matched)
    if not found:
        raise UserError(f"{name} is an empty list: name at least one file")
    for path in found:
        if not path.is_file():
            raise UserError(f"{name}: {path} is a folder: name the files in it, for example {path / '*.tar'}")
    found.sort()
    for path, following in pairwise(found):
        if path == following:
            raise UserError(f"{name} names {path} twice: name each file once")
    return found


def expand(pattern: str, name: str) -> list[str]:
    """Return copies of `pattern` with its ranges replaced by each of their numbers.

    Raises:
        UserError: If a range is empty; the message begins with `name`.
    """
    match = RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    if int(first) > int(last):
        raise UserError(f"{name}: the range {match[0]} in {pattern} is empty: write the smaller number first")
    numbers = (str(i).zfill(len(first)) for i in range(int(first), int(last) + 1))
    return [one for i in numbers for one in expand(pattern[: match.start()] + i + pattern[match.end() :], name)]
