"""Loading the trained modules that are given on the command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from patchword.errors import UserError
from patchword.training.last_checkpoint import find

if TYPE_CHECKING:
    from patchword.module import AlignmentModule


def load(arguments: Sequence[str], device: str) -> dict[str, AlignmentModule]:
    """Load modules in eval mode, by name.

    The default name is the class of the objective; if several runs have the same name, the folders that distinguish
    them are added. Each argument is `RUN` or `NAME=RUN`, where RUN is a checkpoint or the folder of a run.

    Raises:
        UserError: If a checkpoint is missing or cannot be loaded, or a name is given twice.
    """
    given = [_split(argument) for argument in arguments]
    repeated = [name for name, times in Counter(name for name, _ in given if name).items() if times > 1]
    if repeated:
        raise UserError(f"--ckpt: the name {repeated[0]!r} is given twice; give each run a different name")
    files = [find(path, f"--ckpt {path}") for _, path in given]
    modules = [_module(file, device) for file in files]
    names = [name or type(module.objective).__name__ for (name, _), module in zip(given, modules, strict=True)]
    return dict(zip(distinct(names, files), modules, strict=True))


def distinct(names: Sequence[str], files: Sequence[Path]) -> list[str]:
    """Make `names` unique: equal names get the folders in which their files differ, or a number."""
    longer: list[str] = []
    for name, file in zip(names, files, strict=True):
        same = [other.resolve().parts for n, other in zip(names, files, strict=True) if n == name]
        common = set.intersection(*map(set, same))
        own = "/".join(part for part in file.resolve().parts if part not in common)
        longer.append(f"{name} ({own})" if own else name)
    before = [longer[:place].count(name) for place, name in enumerate(longer)]
    return [f"{name} #{times + 1}" if times else name for name, times in zip(longer, before, strict=True)]


def _split(argument: str) -> tuple[str, Path]:
    """Split `NAME=RUN` into name and path; the file names of checkpoints can contain equals signs, too."""
    name, equals, path = argument.partition("=")
    if Path(argument).exists() or not equals or "/" in name:
        return "", Path(argument)
    return name, Path(path)


def _module(file: Path, device: str) -> AlignmentModule:
    from patchword.module import AlignmentModule

    try:
        return AlignmentModule.load_from_checkpoint(file, map_location=device).eval()
    except UserError as error:
        raise UserError(f"--ckpt {error}") from error
