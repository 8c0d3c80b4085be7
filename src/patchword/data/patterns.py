"""The files that a user means by paths, globs and ranges in braces."""

from __future__ import annotations

import re
from glob import glob
from itertools import pairwise
from pathlib import Path

from patchword.errors import InputError

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def find_files(patterns: str | list[str], name: str) -> list[Path]:
    """The files of one or several patterns, sorted by path.

    Args:
        patterns: Each a path, a glob (`shards/*.tar`), or a range (`shards/{00000..00331}.tar`), whose numbers have at
            least as many digits as its first.
        name: The option that the patterns are the value of, for messages.

    Raises:
        InputError: If a pattern matches nothing, a file of a range is missing, or a file is matched twice.
    """
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for one in expand(pattern, name):
            # What exists is meant as it is written, brackets and all.
            matched = [one] if Path(one).exists() else glob(one)
            if not matched:
                of = "" if one == pattern else f", of {pattern}"
                raise InputError(f"{name}: there is no file {one}{of}: correct the pattern or add the file")
            found += map(Path, matched)
    if not found:
        raise InputError(f"{name} is an empty list: name files")
    for path in found:
        if not path.is_file():
            raise InputError(f"{name}: {path} is a folder: name the files in it, as {path / '*.tar'}")
    found.sort()
    for path, following in pairwise(found):
        if path == following:
            raise InputError(f"{name} names {path} twice: name each file once")
    return found


def expand(pattern: str, name: str) -> list[str]:
    """`pattern` with each number of its ranges in the place of the range.

    Raises:
        InputError: If a range is empty; the message begins with `name`.
    """
    match = RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    if int(first) > int(last):
        raise InputError(f"{name}: the range {match[0]} of {pattern} is empty: write the smaller number first")
    numbers = (str(i).zfill(len(first)) for i in range(int(first), int(last) + 1))
    return [one for i in numbers for one in expand(pattern[: match.start()] + i + pattern[match.end() :], name)]
