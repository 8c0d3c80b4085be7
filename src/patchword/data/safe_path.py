"""Paths that data names stay inside the folder of the data."""

from __future__ import annotations

from pathlib import Path

from patchword.errors import InputError


def inside(root: Path, name: str, place: str) -> Path:
    """The file `name` of the folder `root`; it need not exist.

    Args:
        root: The folder.
        name: A path relative to it, or one that begins with it.
        place: Where the name stands, for the message.

    Raises:
        InputError: If the path leads out of the folder, by `..`, as an absolute path or through a link.
    """
    try:
        path = (root / name).resolve()
        if not name or "\0" in name or not path.is_relative_to(root.resolve()):
            raise ValueError
    except (ValueError, OSError, RuntimeError) as error:  # of a loop of links, of names that are none
        raise InputError(
            f"{place}: the image {name[:200]!r} leads out of the folder {root}: give a path inside it, and no link "
            "out of it"
        ) from error
    return root / name
