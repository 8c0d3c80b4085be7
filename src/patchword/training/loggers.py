"""Builds the loggers of a run: `trainer.logger` determines the folder, and all other loggers write to the same folder.

A CSV file is always written. Lightning by itself gives every logger a separate folder, and deletes the rows of a run
that is resumed in the same folder.
"""

from __future__ import annotations

import csv
import inspect
import io
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from patchword.errors import UserError
from patchword.files.atomic_write import atomic_write

_WIDEST = 700  # pixels of a picture in TensorBoard, at least, if it is that wide

PLACE = {"save_dir", "name", "version"}  # options of loggers which `join` sets

TENSORBOARD = {
    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
    "init_args": {"default_hp_metric": False},  # a metric that is always -1
}


def join(
    first: Sequence[Logger], further: Iterable[tuple[type[Logger], dict[str, Any]]], step: int | None
) -> list[Logger]:
    """All loggers of a run: the trainer's own, a CSVLogger, and further ones, in the folder of the first.

    A kind of logger that `first` contains is not added again. A run without loggers and a `fast_dev_run` get none.

    Args:
        first: The trainer's loggers.
        further: Class and options of the other loggers, without the options in `PLACE`.
        step: The first step of the run; more than 0 if it resumes another run. Logs from this step on that are already
            in the folder are discarded. None if the step is not known: all logs are kept.
    """
    if not first or isinstance(first[0], DummyLogger):
        return list(first)
    if not isinstance(first[0], (CSVLogger, TensorBoardLogger)):  # Lightning would mix all runs in its `save_dir`
        first = [CSVLogger(first[0].save_dir or "."), *first]
    folder = Path(str(first[0].log_dir))
    loggers = list(first)
    others: list[tuple[type[Logger], dict[str, Any]]] = [(CSVLogger, {}), *further]
    for kind, options in others:
        if any(isinstance(logger, kind) for logger in loggers):
            continue
        accepted = inspect.signature(kind).parameters
        place = {"save_dir": folder, "name": f"{folder.parent.name}/{folder.name}"}
        if issubclass(kind, (CSVLogger, TensorBoardLogger)):
            place = {"save_dir": folder, "name": "", "version": ""}
        if issubclass(kind, TensorBoardLogger) and options.get("purge_step") is None:
            options = options | {"purge_step": step}
        loggers.append(kind(**options, **{name: value for name, value in place.items() if name in accepted}))
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            _begin(logger, step)
    return loggers


def number_apart(logger: Logger, command: str) -> None:
    """Let a logger without a version write to `test_0`, `test_1`, ... instead of to the numbered folders of trainings.

    Args:
        logger: A logger that has not written yet; only those of CSV files and TensorBoard number their folders.
        command: The name of the folders, such as `test`.
    """
    if isinstance(logger, (CSVLogger, TensorBoardLogger)) and logger._version is None:
        place = Path(str(logger.root_dir))
        taken = {path.name for path in place.glob(f"{command}_*")} if place.is_dir() else set()
        logger._version = next(f"{command}_{n}" for n in itertools.count() if f"{command}_{n}" not in taken)


def log_picture(loggers: Iterable[Logger], name: str, path: Path, step: int) -> None:
    """Log the picture in a file, under a name that is the same at every step, with every logger that supports pictures.

    Training steps are counted from 0.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            with Image.open(path) as picture:
                factor = max(1, picture.width // _WIDEST)  # still sharp
                pixels = np.asarray(picture.convert("RGB").reduce(factor))
            logger.experiment.add_image(name, pixels, step, dataformats="HWC")
        elif hasattr(logger, "log_image"):  # the loggers of W&B and others with the same method
            logger.log_image(name, [str(path)], step=step)


class _Writer(ExperimentWriter):
    """Lightning's writer of `metrics.csv`, changed so that it keeps existing rows even if it is killed while writing.

    Rows before `step` are kept; None keeps all rows.
    """

    def __init__(self, folder: str, step: int | None) -> None:
        super().__init__(log_dir=folder)
        path = Path(self.metrics_file_path)
        rows = _rows(path, step) if path.exists() and step != 0 else []
        path.unlink(missing_ok=True) if not rows else self._replace(rows)

    def _check_log_dir_exists(self) -> None:
        """Do nothing; Lightning's method would delete `metrics.csv`."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Write a new file and rename it; Lightning's method would overwrite the existing file."""
        self._replace(_rows(Path(self.metrics_file_path), None))

    def _replace(self, rows: list[dict[str, str]]) -> None:
        """Replace all rows by `rows`."""
        self.metrics_keys = sorted({*self.metrics_keys, *(name for row in rows for name in row)})
        with atomic_write(self.metrics_file_path) as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


@rank_zero_only
def _begin(logger: CSVLogger, step: int | None) -> None:
    """Let the logger append to the rows of `metrics.csv` before `step`, or to all rows."""
    logger._experiment = _Writer(str(logger.log_dir), step)


def _rows(path: Path, step: int | None) -> list[dict[str, str]]:
    """The rows before `step` (all if None) without empty values; an incomplete last row is skipped.

    Raises:
        UserError: Another row is damaged.
    """
    text = path.read_bytes().decode(errors="replace")
    whole = text[: text.rfind("\n") + 1]
    found = []
    for number, row in enumerate(csv.DictReader(io.StringIO(whole, newline="")), 2):
        if not (row.get("step") or "").isdecimal() or None in row or None in row.values():
            raise UserError(
                f"{path}, line {number}: this line is not a row of metrics, so the rows of the resumed run cannot be "
                "kept. Delete the line, or move the file to another folder to start a new one"
            )
        if step is None or int(row["step"]) < step:
            found.append({name: value for name, value in row.items() if value != ""})
    return found
