"""Broken samples: counted, written down, and too many of them an error."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from patchword.data.batch import Skipped
from patchword.errors import InputError


class SkippedList:
    """The broken samples that this process's batches have met, each once.

    (Of a stream, rows without a key or a path are known by their place in it, and counted in every pass.) They are
    appended to `skipped.jsonl`, an object with split, key and reason a line; all devices write to one file, and a
    resumed run adds what is not there yet.

    Args:
        limit: So many may be broken in each split.
        folder: Where to write; None for nowhere.
    """

    def __init__(self, limit: int, folder: Path | None) -> None:
        self.limit = limit
        self.path = folder and folder / "skipped.jsonl"
        self._of: dict[str, dict[str, Skipped]] = {}

    def add(self, split: str, skipped: Iterable[Skipped]) -> None:
        """Count and write down what is new.

        Raises:
            InputError: If there are more than the limit.
        """
        known = self._of.setdefault(split, {})
        new = {one.key: one for one in skipped if one.key not in known}
        if not new:
            return
        if not known:
            first = next(iter(new.values()))
            further = f"; {self.path} lists all of them" if self.path else ""
            rank_zero_warn(f"passed over a broken sample: {first.key}: {first.reason}{further}")
        known.update(new)
        if self.path is not None:
            lines = [json.dumps({"split": split, **asdict(one)}) for one in new.values()]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+", encoding="utf-8") as file:
                file.seek(0)
                listed = file.read().split("\n")  # by an earlier part of this run
                if listed[-1]:  # a line that a kill has cut off
                    file.write("\n")
                file.writelines(line + "\n" for line in lines if line not in listed)
        if len(known) > self.limit:
            raise too_many([*known.values()], self.limit)


def too_many(skipped: list[Skipped], limit: int) -> InputError:
    """The error for more broken samples than the limit."""
    return InputError(
        f"more than data.max_broken = {limit} samples are broken; the first: {_first(skipped)}. Repair or remove them, "
        "or set data.max_broken higher"
    )


def all_broken(skipped: list[Skipped]) -> InputError:
    """The error for a split without a whole sample."""
    advice = "correct data.image, data.caption or the data"
    return InputError(f"all {len(skipped)} samples are broken: {advice}; the first: {_first(skipped)}")


def _first(skipped: list[Skipped]) -> str:
    return "; ".join(f"{one.key}: {one.reason}" for one in skipped[:3])
