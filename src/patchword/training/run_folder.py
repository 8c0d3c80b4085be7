"""Locks the folders of a run for one process, and deletes new folders in which no results were written."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType

from patchword.errors import UserError

# Files that are written before training or evaluation starts.
PREPARED = ("config*.yaml", "hparams.yaml", "events.out.tfevents.*")

_held: set[int] = set()


class RunFolders:
    """A context in which only this process writes to the folders that it has claimed.

    The lock (`flock`) is on the folder itself: it needs no file, and the system releases it if the process is killed.
    If the context ends with an exception, a folder that was created here is deleted if it contains only files that are
    written before training (`PREPARED`).
    """

    def __init__(self) -> None:
        self._locks: dict[Path, int] = {}
        self._made: list[Path] = []

    def claim(self, folder: Path) -> None:
        """Create the folder if it does not exist, and lock it until the context ends.

        Raises:
            UserError: Another process has locked the folder, or it cannot be created.
        """
        folder = folder.resolve()
        if folder in self._locks:
            return
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise UserError(
                f"{folder}: {error.strerror}, so nothing can be written there; choose another folder"
            ) from error
        self._made += missing
        self._locks[folder] = lock
        _held.add(lock)
        if not _locked(lock):
            raise UserError(
                f"{folder} is in use by another process that trains or tests: wait until it has ended, or choose "
                "another folder (--trainer.logger.name, --trainer.logger.version or --checkpoint.dirpath)"
            )

    def __enter__(self) -> RunFolders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            _delete_prepared(self._made)
        for lock in self._locks.values():
            _held.discard(lock)
            os.close(lock)


def _locked(lock: int) -> bool:
    """Try to get the lock, and return whether this process has it; True on a file system without locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def _delete_prepared(folders: Iterable[Path]) -> None:
    """Delete each folder that contains only `PREPARED` files, inner folders first."""
    for folder in sorted(folders, key=lambda place: -len(place.parts)):
        files = [path.name for path in folder.rglob("*") if not path.is_dir()]
        if all(any(fnmatch(name, pattern) for pattern in PREPARED) for name in files):
            shutil.rmtree(folder, ignore_errors=True)


def _let_go() -> None:
    """Release all locks in a forked process, such as a data loader's worker, which may outlive its parent."""
    for lock in _held:
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
