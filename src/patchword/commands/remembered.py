"""Remembers answers that take seconds because they need torch.

These are the schema of each command's configurations, and what `--help` and `--print_config` printed for the same
arguments and files. They are kept in `~/.cache/patchword` (or under `XDG_CACHE_HOME`), in a folder for the installed
packages and the source of patchword.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from patchword.commands.config_files import config_values, find_config
from patchword.files.atomic_write import atomic_write

UNUSED = 30 * 24 * 3600  # seconds after which the folder of another installation is removed


@functools.cache
def folder() -> Path:
    """The folder for the installed packages, this Python, and the source of patchword."""
    found = [sys.version]
    for place in sys.path:
        with contextlib.suppress(OSError):
            found += sorted(name for name in os.listdir(place) if name.endswith((".dist-info", ".egg-link")))
    source = Path(__file__).parents[1]
    for file in sorted(source.rglob("*.py")):
        with contextlib.suppress(OSError):  # deleted in the meantime
            status = file.stat()
            found.append(f"{file} {status.st_size} {status.st_mtime_ns}")
    return _cache() / hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]


def schema(command: str) -> dict[str, Any] | None:
    """The schema of the configurations of `command`; None if it was not yet kept."""
    try:
        os.utime(folder())  # it is in use
        return json.loads((folder() / f"{command}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def keep_schema(command: str, found: dict[str, Any]) -> None:
    """Keep the schema of the configurations of `command`, and remove what other packages left long ago."""
    _keep(folder() / f"{command}.json", json.dumps(found))
    with contextlib.suppress(OSError):
        for other in _cache().iterdir():
            if other != folder() and time.time() - other.stat().st_mtime > UNUSED:
                shutil.rmtree(other, ignore_errors=True)


def answer(arguments: list[str]) -> str | None:
    """What these arguments printed before; None if they were not kept."""
    with contextlib.suppress(OSError, ValueError):
        return _file(arguments).read_text(encoding="utf-8")
    return None


@contextlib.contextmanager
def kept(check: Callable[[], tuple[list[str], bool]]) -> Iterator[None]:
    """Keep what the block prints on its standard output if it ends without an error.

    Args:
        check: Called after the block. It returns the arguments under which the output is kept, and whether it may be
            kept: an output that depends on other files or classes may not.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except SystemExit as end:
        if not end.code:
            arguments, may_be_kept = check()
            if may_be_kept:
                _keep(_file(arguments), printed.getvalue())
        raise
    finally:
        sys.stdout.write(printed.getvalue())


def only_prints(arguments: list[str]) -> bool:
    """Whether the command only prints help or a configuration, and reads nothing else than its `--config` files."""
    words = {word.partition("=")[0] for word in arguments if word.startswith("-")}
    asks = any(word in ("-h", "--help", "--print_config") or word.endswith(".help") for word in words)
    if "oc.env" in " ".join(arguments):
        return False
    files = [find_config(name) for name in config_values(arguments)]
    if not asks or words & {"--import", "--ckpt_path"} or not all(file.is_file() for file in files):
        return False
    return not any("oc.env" in file.read_text(encoding="utf-8", errors="replace") for file in files)


def _file(arguments: list[str]) -> Path:
    """The file for what these arguments print in this folder and at this width of the terminal."""
    contents = [find_config(name).read_text(encoding="utf-8") for name in config_values(arguments)]
    place = [os.getcwd(), str(shutil.get_terminal_size().columns), str(sys.stdout.isatty())]
    digest = hashlib.sha256(json.dumps([arguments, contents, place]).encode()).hexdigest()
    return folder() / f"{digest[:16]}.txt"


def _cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchword"
    except RuntimeError:  # the user has no home: nothing is kept
        return Path(os.devnull, "patchword")


def _keep(path: Path, text: str) -> None:
    with contextlib.suppress(OSError), atomic_write(path) as file:  # without a cache, commands are only slower
        file.write(text)
