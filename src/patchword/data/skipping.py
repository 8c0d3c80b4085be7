"""Count and list broken samples, and raise an error if there are too many."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from patchword.data.batch import Skipped
from patchword.errors import UserError
from patchword.files.printable import printable


class BrokenSample(UserError):
    """A sample cannot be read and is skipped, up to a limit; the message does not name the sample."""


class SkippedList:
    """The distinct broken samples of this process's batches.

    They are appended to `skipped.jsonl`, one object with split, key and reason per line. All devices write to one file,
    and a resumed run adds only new lines. Rows of a stream that have no key or path are identified by their position,
    so they count again in every pass.

    Args:
        limit: The largest number of broken samples in each split.
        folder: The folder of `skipped.jsonl`; None writes no file.
    """

    def __init__(self, limit: int, folder: Path | None) -> None:
        self.limit = limit
        self.path = folder and folder / "skipped.jsonl"
        self._of: dict[str, dict[str, Skipped]] = {}

    def add(self, split: str, skipped: Iterable[Skipped]) -> None:
        """Count and write the broken samples that are new.

        Raises:
            UserError: If the split has more broken samples than the limit.
        """
        known = self._of.setdefault(split, {})
        new = {one.key: one for one in skipped if one.key not in known}
        if not new:
            return
        if not known:
            first = next(iter(new.values()))
            further = f"; {self.path} lists all of them" if self.path else ""
            rank_zero_warn(f"skipped a broken sample: {_words(first)}{further}")
        known.update(new)
        if self.path is not None:
            lines = [json.dumps({"split": split, **asdict(one)}) for one in new.values()]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+", encoding="utf-8") as file:
                file.seek(0)
                listed = file.read().split("\n")  # an earlier part of this run may have written lines
                if listed[-1]:  # a kill cut off the last line
                    file.write("\n")
                file.writelines(line + "\n" for line in lines if line not in listed)
        if len(known) > self.limit:
            raise too_many([*known.values()], self.limit)


def too_many(skipped: list[Skipped], limit: int) -> UserError:
    """Create the error for more broken samples than the limit."""
    return UserError(
        f"more than data.max_broken = {limit} samples are broken; the first: {_first(skipped)}. Repair or remove them, "
        "or set data.max_broken higher"
    )


def all_broken(skipped: list[Skipped]) -> UserError:
    """Create the error for a split in which every sample is broken."""
    what = f"all {len(skipped)} samples are broken: correct data.image, data.caption or the data"
    return UserError(f"{what}; the first: {_first(skipped)}")


def _first(skipped: list[Skipped]) -> str:
    return "; ".join(map(_words, skipped[:3]))


def _words(one: Skipped) -> str:
    """Return key and reason, cleaned for the terminal because both can quote the data."""
    return f"{printable(one.key)}: {printable(one.reason, 500)}"
