"""The loggers of a run, all in one folder: `trainer.logger` names it, CSV is always written, others join.

Lightning alone writes CSV or something else, gives every logger a folder of its own, and deletes the rows of a run that
is resumed in its folder.
"""

from __future__ import annotations

import csv
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

PLACE = {"save_dir", "name", "version"}  # options of loggers that `join` sets

TENSORBOARD = {
    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
    "init_args": {"default_hp_metric": False},  # a metric that is always -1
}


def join(
    first: Sequence[Logger], further: Iterable[tuple[type[Logger], dict[str, Any]]], step: int | None
) -> list[Logger]:
    """All loggers of a run: the trainer's own, a CSVLogger, and further ones, in the folder of the first.

    Of the kinds that `first` has there is no second. A run without loggers, and a `fast_dev_run`, stay without.

    Args:
        first: The loggers that the trainer was given.
        further: Class and options, without those of `PLACE`, of the others.
        step: The step at which the run begins, more than 0 if it resumes another. What that one has left in the folder
            from this step on does not count any more; all of it counts if the step is not known (None).
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
        if isinstance(logger, CSVLogger) and step != 0:
            _keep_rows(logger, step)
    return loggers


def log_picture(loggers: Iterable[Logger], name: str, path: Path, step: int) -> None:
    """Show a picture in every logger that can show one.

    Args:
        loggers: The trainer's.
        name: The picture's name, the same at every step.
        path: The file.
        step: The training step, counted from 0.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB").reduce(2))  # a quarter of the bytes, and still sharp
            logger.experiment.add_image(name, pixels, step, dataformats="HWC")
        elif hasattr(logger, "log_image"):  # W&B's, and others that follow it
            logger.log_image(name, [str(path)], step=step)


@rank_zero_only
def _keep_rows(logger: CSVLogger, step: int | None) -> None:
    """Hand the rows of `metrics.csv` before `step`, or all, to the logger, which begins by deleting the file."""
    path = Path(logger.log_dir) / "metrics.csv"
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if step is None or int(row["step"]) < step]
    logger.experiment.metrics = [{name: value for name, value in row.items() if value != ""} for row in rows]
    logger.save()
