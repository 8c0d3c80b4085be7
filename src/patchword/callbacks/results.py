"""Prints the metrics of `fit`, `validate` and `test` as tables, and writes those of `validate` and `test` to a file."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from rich.console import Console, Group
from rich.table import Column, Table
from rich.text import Text

from patchword.callbacks.samples import SampleSums
from patchword.callbacks.suite_table import describe, suite_table, write_classes
from patchword.files.results_file import write_results
from patchword.maps.phrases import BASELINES
from patchword.maps.sources import TOKEN_SOURCES
from patchword.metrics import DEFINITIONS
from patchword.metrics.evaluation import split_name
from patchword.metrics.position_priors import PRIORS
from patchword.protocols import MeasuringData
from patchword.provenance.hub import commits
from patchword.provenance.machine import provenance

RETRIEVAL = ("r@1", "r@5", "r@10", "median_rank")
GROUNDING = ("pointing_game", "box_accuracy", "average_precision", "auroc", "object_choice", "swap_accuracy")


class Results(Callback):
    """Prints one table per split at the end of `fit`, `validate` and `test`, what was written, and the next command.

    It writes `results.json` next to the logs of `validate` and `test`. For a suite with classes, it also writes a file
    with the numbers of each class.
    """

    def __init__(self) -> None:
        self._samples: dict[str, SampleSums] = {}

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record which samples `validate` measures; validation during training only logs."""
        if trainer.state.fn == "validate":
            self._add(batch, split_name(trainer.val_dataloaders, dataloader_idx, "val"))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record which samples are measured."""
        self._add(batch, split_name(trainer.test_dataloaders, dataloader_idx, "test"))

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Print the metrics of the last validation, the folder of the run, and the command that tests it."""
        folder, saving = trainer.log_dir, trainer.checkpoint_callback
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        console = _console(trainer)
        for split, own in _by_split(trainer).items():
            if "retrieval/images" in own:  # measured, not only logged
                console.print(split_table(split, own, pl_module.hparams["phrase_query"]))
        if folder is not None:
            console.print(f"written: {_short(folder)}", soft_wrap=True, highlight=False)
        if isinstance(saving, ModelCheckpoint) and (file := saving.last_model_path or saving.best_model_path):
            checkpoint = _short(file)
            console.print(f"written: {checkpoint}", soft_wrap=True, highlight=False)
            if folder is not None and Path(folder, "config.yaml").is_file():
                words = ["patchword", "test", "--config", f"{_short(folder)}/config.yaml", "--ckpt_path", checkpoint]
                console.print(f"next: {shlex.join(words)}", soft_wrap=True, highlight=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the results of `validate`."""
        if trainer.state.fn == "validate":
            self._report(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the results of `test`."""
        self._report(trainer, pl_module)

    def _add(self, batch: Any, split: str) -> None:
        self._samples.setdefault(split, SampleSums()).update(batch)

    def _report(self, trainer: Trainer, module: Any) -> None:
        folder = trainer.log_dir  # read on all ranks because Lightning broadcasts it
        splits = {name: samples.compute(module.device) for name, samples in self._samples.items()}
        self._samples = {}
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        own_suites = {name: data.suite(name) for name in splits} if isinstance(data, MeasuringData) else {}
        suites: dict[str, Any] = {name: suite for name, suite in own_suites.items() if suite is not None}
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        console = _console(trainer)
        for split, own in _by_split(trainer).items():
            if split in suites:
                console.print(suite_table(suites[split], own))
            else:
                console.print(split_table(split, own, module.hparams["phrase_query"]))
        if module.is_untrained:
            console.print(Text("\nNothing was trained: these are the metrics of a random alignment.", style="bold red"))
        if folder is not None:
            definition = {
                "data_set": type(data).__name__,
                "image_size": list(module.encoder.image_size),
                "query": module.hparams["phrase_query"],
                "metrics": DEFINITIONS,
                "splits": splits,
            }
            if suites:
                definition["suites"] = {name: describe(suite) for name, suite in suites.items()}
            for suite in suites.values():
                if suite.per_class:
                    console.print(f"written: {write_classes(suite, Path(folder))}")
            # This file is written last: its presence means that the test is complete.
            intervals = {
                f"{part}/{name}": bounds
                for part, totals in module.totals.items()
                for name, bounds in totals.intervals().items()
            }
            described = {"definition": definition, **measured(trainer, module)}
            path = write_results(Path(folder), metrics, described, intervals)
            console.print(f"written: {path}")


def _console(trainer: Trainer) -> Console:
    """The terminal, on which the progress bar has ended, so that what is printed next stays below it."""
    bar = trainer.progress_bar_callback
    if isinstance(bar, RichProgressBar):
        bar.teardown(trainer, trainer.lightning_module, "fit")
        bar.progress = None  # Lightning makes a new one, and does not end this one again
    return Console()


def _by_split(trainer: Trainer) -> dict[str, dict[str, float]]:
    """The metrics of each split, by their names without the split."""
    found: dict[str, dict[str, float]] = {}
    for name, value in trainer.callback_metrics.items():
        split, _, own = name.partition("/")
        found.setdefault(split, {})[own] = float(value)
    return found


def _short(path: str) -> str:
    """The path from the current folder if it lies within, as one would type it."""
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path


def measured(trainer: Trainer, module: Any) -> dict[str, Any]:
    """What the metrics depend on: model, data, checkpoint and its training, commits on the hub, machine.

    `results.json` stores this together with `definition`: data set, image size, query, version of the metrics, and the
    number and checksum of the samples of each split. Metrics with the same definition can be compared.
    """
    model = {name: value for name, value in module.hparams.items() if not name.startswith("_")}
    data = getattr(trainer.datamodule, "spec", None)  # type: ignore[attr-defined]
    settled = json.dumps({"model": model, "data": data}, sort_keys=True)
    return {
        "model": model,
        "data": data,
        "config_hash": hashlib.sha256(settled.encode()).hexdigest()[:12],
        "checkpoint": trainer.ckpt_path and str(trainer.ckpt_path),
        "patch_grid": list(module.encoder.grid),
        "trained": False if module.is_untrained else module.trained,
        "hub": commits(module.encoder, trainer.datamodule),  # type: ignore[attr-defined]
        "accelerator": type(trainer.accelerator).__name__,
        **provenance(trainer.world_size),
    }


def split_table(split: str, metrics: dict[str, float], query: str) -> Group:
    """The tables of one split; the names in `metrics` do not contain the name of the split."""
    parts: list[Any] = [Text(f"\n{split}", style="bold")]
    if "retrieval/images" in metrics:
        counts = f"{metrics['retrieval/images']:.0f} images, {metrics['retrieval/captions']:.0f} captions"
        table = Table("retrieval", *RETRIEVAL, title=f"Retrieval ({counts})", title_justify="left")
        for way in ("image_to_text", "text_to_image"):
            table.add_row(way.replace("_", " "), *(_cell(metrics, f"retrieval/{way}/{name}") for name in RETRIEVAL))
            chance = (_cell(metrics, f"retrieval/{way}/chance_{name}") for name in RETRIEVAL)
            table.add_row("  chance", *chance, style="dim")
        parts.append(table)
    prefix = f"grounding/{query}"
    if f"{prefix}/chance/phrases" in metrics:
        title = f"Grounding ({metrics[f'{prefix}/chance/phrases']:.0f} phrases, query: {query})"
        sources = [
            source for source in (*TOKEN_SOURCES, *BASELINES, *PRIORS) if f"{prefix}/{source}/phrases" in metrics
        ]
        first = Column("map", min_width=max(map(len, sources)), no_wrap=True)
        # One word per line: the table is 78 characters wide and fits into the usual terminal of 80.
        table = Table(first, *(name.replace("_", "\n") for name in GROUNDING), title=title, title_justify="left")
        for source in sources:
            cells = (_cell(metrics, f"{prefix}/{source}/{name}") for name in GROUNDING)
            table.add_row(source.replace("_", " "), *cells, style="" if source in TOKEN_SOURCES else "dim")
        parts.append(table)
    if "hard_negatives/per_negative" in metrics:
        counts = f"{metrics['hard_negatives/negatives']:.0f}, {metrics['hard_negatives/ties']:.0f} ties"
        title = f"Hard negatives ({counts})"
        table = Table("", "per negative", "per image", title=title, title_justify="left")
        table.add_row("accuracy", *(_cell(metrics, f"hard_negatives/per_{unit}") for unit in ("negative", "image")))
        chance = (_cell(metrics, f"hard_negatives/chance_per_{unit}") for unit in ("negative", "image"))
        table.add_row("  chance", *chance, style="dim")
        parts.append(table)
    return Group(*parts)


def _cell(metrics: dict[str, float], name: str) -> str:
    """A fraction with three decimals, a rank with one; empty if it was not measured."""
    if name not in metrics:
        return ""
    return f"{metrics[name]:.1f}" if name.endswith("rank") else f"{metrics[name]:.3f}"
