"""Options, devices and CSV files, shared by the commands outside Lightning. Torch is imported when it is needed."""

from __future__ import annotations

import argparse
import csv
import datetime
import fcntl
import io
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from patchword.commands.hints import improve
from patchword.errors import UserError
from patchword.files.atomic_write import atomic_write
from patchword.files.csv_cell import csv_cell
from patchword.version import __version__


class Parser(argparse.ArgumentParser):
    """The parser of one command, with argparse's options. Its errors are UserErrors that suggest the nearest name."""

    def __init__(self, command: str, **options: Any) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"patchword {command}", formatter_class=layout, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise a UserError with the message."""
        raise UserError(improve(message, self))


def count(value: str) -> int:
    """Parse an integer of at least 1; used as the type of an option."""
    try:
        number = int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, not '{value}'") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return number


def device(name: str) -> str:
    """The device for a value of `--device`; `auto` is a GPU if there is one.

    Raises:
        UserError: This machine has no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: torch knows no such device; use cpu, cuda, cuda:1 or auto") from error
    if found.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda can be measured")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there is no such GPU here; torch sees {torch.cuda.device_count()}")
    return name


def device_name(device: str) -> str:
    """The name of the GPU or CPU."""
    import torch

    from patchword.provenance.machine import cpu_name

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name()


def add_measurement_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that measure objectives on a device: `--objectives`, `--device` and `--csv`."""
    add = parser.add_argument
    names = "our objectives by name, others as my_module.MyObjective (default: all)"
    add("--objectives", nargs="+", metavar="NAME", help=names)
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto uses a GPU if there is one")
    add("--csv", type=Path, metavar="FILE", help="add the rows, with versions, device and date, to this file")


def provenance(device: str) -> dict[str, str]:
    """The last columns of a CSV file: the device, versions and date."""
    import torch

    return {
        "device_name": device_name(device),
        "patchword": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def require_addable(path: Path, columns: Iterable[str]) -> None:
    """Raise UserError if rows with these columns cannot be added to the file of `--csv`."""
    existed = path.exists()
    try:
        with path.open("a+", newline="", encoding="utf-8", errors="replace") as file:
            file.seek(0)
            found = next(csv.reader(file), None)
    except OSError as error:
        raise UserError(f"--csv {path}: {error.strerror}") from error
    if not existed:
        path.unlink()
    elif found not in (None, list(columns)):
        raise UserError(
            f"--csv {path}: the file has other columns than this version of patchword writes; use a new file"
        )


def append(path: Path, found: list[dict[str, Any]]) -> None:
    """Add all rows or none to a file, with a header if it is new; only one process at a time writes.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        with _alone(path.parent):
            before = path.read_bytes() if path.exists() else b""
            added = io.StringIO(newline="")
            writer = csv.DictWriter(added, list(found[0]))
            if not before:
                writer.writeheader()
            writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in found)
            with atomic_write(path, "wb") as file:
                file.write(before + added.getvalue().encode())
    except OSError as error:
        raise UserError(f"--csv {path}: {error.strerror}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock so that no other process adds to a file in `folder`."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
