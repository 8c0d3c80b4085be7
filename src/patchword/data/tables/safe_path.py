"""Restrict paths from data to the folder of the data."""

from __future__ import annotations

from pathlib import Path

from patchword.errors import UserError


def inside(root: Path, name: str, place: str) -> Path:
    """Return the path of the file `name` in the folder `root`; the file need not exist.

    Args:
        root: The folder.
        name: A path relative to the folder, or one that begins with the folder.
        place: Where the data contains this name, for the message.

    Raises:
        UserError: If the path leaves the folder, through `..`, as an absolute path or through a link.
    """
    try:
        path = (root / name).resolve()
        if not name or "\0" in name or not path.is_relative_to(root.resolve()):
            raise ValueError
    except (ValueError, OSError, RuntimeError) as error:  # links can form a loop, and names can be invalid
        raise UserError(
            f"{place}: the image {name[:200]!r} leads out of the folder {root}: use a path inside the folder, without "
            "links out of it"
        ) from error
    return root / name
