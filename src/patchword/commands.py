"""What our commands beside Lightning's share: options, devices, files of rows. Torch is imported when it is needed."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any, NoReturn

from patchword.errors import InputError
from patchword.hints import improve


class Parser(argparse.ArgumentParser):
    """The options of one command; its errors are InputErrors, with the nearest accepted name.

    Args:
        command: Its name.
        description: What it does, in a sentence.
        epilog: What else there is to know, with examples; printed as it stands.
        usage: Its first line of help, if argparse's own does not say all.
    """

    def __init__(self, command: str, description: str, epilog: str, usage: str | None = None) -> None:
        super().__init__(
            prog=f"patchword {command}",
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raises the message as an InputError."""
        raise InputError(improve(message, self))


def count(value: str) -> int:
    """A whole number from 1 on, as the type of an option."""
    try:
        number = int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not '{value}'") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return number


def device(name: str) -> str:
    """The device that `--device` means, `auto` being a GPU where there is one.

    Raises:
        InputError: If this machine has no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: torch knows no such device; say cpu, cuda, cuda:1 or auto") from error
    if found.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: only cpu and cuda can be measured")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: there is no such GPU here; torch sees {torch.cuda.device_count()}")
    return name


def device_name(device: str) -> str:
    """The GPU's name, or the CPU's."""
    import torch

    from patchword.provenance import cpu_name

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name()


def require_writable(path: Path) -> None:
    """Raises InputError if `--csv` names a file that cannot be written."""
    existed = path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise InputError(f"--csv {path}: {error.strerror}") from error
    if not existed:
        path.unlink()


def require_columns(path: Path, columns: list[str]) -> None:
    """Raises InputError if the file has other columns: rows are added only where they fit under its header."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        if next(csv.reader(file), None) != columns:
            raise InputError(f"--csv {path}: has other columns than this version of patchword writes; name a new file")


def append(path: Path, found: list[dict[str, Any]]) -> None:
    """Adds rows to a file, with a header if it is new."""
    new = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(found[0]))
        if new:
            writer.writeheader()
        writer.writerows(found)
