"""Read images inside zip files by their addresses in `datasets`: `zip://NAME::ARCHIVE`."""

from __future__ import annotations

import os
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path

from patchword.data.tables.safe_path import inside
from patchword.errors import UserError

LARGEST = 2**30  # bytes; larger members are not images


def is_zipped(address: str) -> bool:
    """Whether an address refers to a member of a zip file."""
    return address.startswith("zip://") and "::" in address


def archive(root: Path, address: str, place: str) -> Path:
    """Return the zip file of an address; it must be in the folder `root`.

    Raises:
        UserError: If it is not in this folder; the message begins with `place`.
    """
    path = address.partition("::")[2]
    if "://" in path:
        raise UserError(f"{place}: {path[:200]} is streamed, but zipped images cannot be streamed: unpack them")
    return inside(root, path, place)


def read_zipped(path: Path, address: str) -> bytes:
    """Return the content of a member of the zip file `path`.

    Raises:
        FileNotFoundError: If there is no such file or member.
        ValueError: If the member cannot be read, or is larger than `LARGEST`.
    """
    name = address.removeprefix("zip://").partition("::")[0]
    try:
        opened = _opened(path, os.getpid())
        if opened.getinfo(name).file_size > LARGEST:
            raise ValueError(f"{name} of {path} has more than {LARGEST} bytes")
        return opened.read(name)
    except KeyError as error:
        raise FileNotFoundError(f"there is no {name} in {path}") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise ValueError(f"{name} of {path} cannot be read ({error})") from error


@lru_cache(maxsize=16)
def _opened(path: Path, process: int) -> zipfile.ZipFile:
    """Open a zip file; each process opens its own, because forked processes share the position in an open file."""
    return zipfile.ZipFile(path)
