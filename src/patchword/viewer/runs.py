"""From what a person names on the command line to trained modules with names."""

from __future__ import annotations

from argparse import ArgumentError
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from patchword.errors import InputError

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

CHECKPOINTS = ("checkpoints/last.ckpt", "fit/checkpoints/last.ckpt")  # where a run's folder has its last one


def load(arguments: Sequence[str], device: str) -> dict[str, AlignmentModule]:
    """Modules in eval mode by name; a name that was not given is the objective's, with what tells the runs apart.

    Args:
        arguments: Each `RUN` or `NAME=RUN`, RUN being a checkpoint or a run's folder.
        device: Where the modules shall be.

    Raises:
        InputError: If a checkpoint is missing or cannot be loaded, or a name stands twice.
    """
    given = [_split(argument) for argument in arguments]
    repeated = [name for name, times in Counter(name for name, _ in given if name).items() if times > 1]
    if repeated:
        raise InputError(f"--ckpt: the name {repeated[0]!r} stands twice; give each run a name of its own")
    files = [find(path) for _, path in given]
    modules = [_module(file, device) for file in files]
    names = [name or type(module.objective).__name__ for (name, _), module in zip(given, modules, strict=True)]
    return dict(zip(distinct(names, files), modules, strict=True))


def find(path: Path) -> Path:
    """The checkpoint that `path` is, or that the run in this folder has left last.

    Raises:
        InputError: If there is none.
    """
    if path.is_dir():
        for place in CHECKPOINTS:
            if (path / place).is_file():
                return path / place
        raise InputError(f"--ckpt {path}: the folder has neither {' nor '.join(CHECKPOINTS)}; name a run or a file")
    if not path.is_file():
        raise InputError(f"--ckpt {path}: there is no such file")
    return path


def distinct(names: Sequence[str], files: Sequence[Path]) -> list[str]:
    """`names`, where equal ones get the folders that tell their files apart, or a number."""
    longer: list[str] = []
    for name, file in zip(names, files, strict=True):
        same = [other.resolve().parts for n, other in zip(names, files, strict=True) if n == name]
        common = set.intersection(*map(set, same))
        own = "/".join(part for part in file.resolve().parts if part not in common)
        longer.append(f"{name} ({own})" if own else name)
    before = [longer[:place].count(name) for place, name in enumerate(longer)]
    return [f"{name} #{times + 1}" if times else name for name, times in zip(longer, before, strict=True)]


def _split(argument: str) -> tuple[str, Path]:
    """Name and path; checkpoints' own names have equals signs, too."""
    name, equals, path = argument.partition("=")
    if Path(argument).exists() or not equals or "/" in name:
        return "", Path(argument)
    return name, Path(path)


def _module(file: Path, device: str) -> AlignmentModule:
    import torch

    from patchword.module import AlignmentModule

    try:
        saved = torch.load(file, weights_only=True, mmap=True, map_location="cpu")
        saved["hyper_parameters"]["objective"], saved["state_dict"]
    except Exception as error:  # torch may make nearly any of a file that is not its own
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"--ckpt {file}: not a checkpoint of patchword ({reason})") from error
    try:
        return AlignmentModule.load_from_checkpoint(file, weights_only=True, map_location=device).eval()
    except (RuntimeError, ValueError, OSError, ImportError, TypeError, AttributeError, ArgumentError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--ckpt {file}: the model cannot be built again: {reason[:300]}") from error
