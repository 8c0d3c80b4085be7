"""What `validate` and `test` measured: tables on the terminal, and a file that says what was measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from patchword.cached.datamodule import CachedFeatures
from patchword.callbacks.samples import SampleSums
from patchword.callbacks.suite_table import describe, suite_table, write_classes
from patchword.hub import commits
from patchword.maps import SOURCES
from patchword.metrics import DEFINITIONS
from patchword.metrics.evaluation import split_name
from patchword.provenance import provenance
from patchword.suites.base import SuiteData

RETRIEVAL = ("r@1", "r@5", "r@10", "median_rank")
GROUNDING = ("pointing", "pointing_box", "box_accuracy", "average_precision", "auroc", "choice")


class Results(Callback):
    """Prints a table per split at the end of `validate` and `test`, and writes `results.json` beside the logs.

    A suite that has classes leaves a file with the numbers of each, too.
    """

    def __init__(self) -> None:
        self._samples: dict[str, SampleSums] = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note what is measured; validation during training only logs."""
        if trainer.state.fn == "validate":
            self._samples.setdefault(split_name(trainer.val_dataloaders, dataloader_idx, "val"), SampleSums()).update(
                batch
            )

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note what is measured."""
        self._samples.setdefault(split_name(trainer.test_dataloaders, dataloader_idx, "test"), SampleSums()).update(
            batch
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report a `validate`."""
        if trainer.state.fn == "validate":
            self._report(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report a `test`."""
        self._report(trainer, pl_module)

    def _report(self, trainer: Trainer, module: LightningModule) -> None:
        folder = trainer.log_dir  # asked on all ranks, for Lightning answers by a broadcast
        splits = {name: samples.compute(module.device) for name, samples in self._samples.items()}
        self._samples = {}
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, CachedFeatures):
            data = data.data  # what is measured are its images
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        console = Console()
        for split in dict.fromkeys(name.partition("/")[0] for name in metrics):
            own = {name.partition("/")[2]: value for name, value in metrics.items() if name.startswith(split + "/")}
            if isinstance(data, SuiteData):
                console.print(suite_table(data.suite(split), own))
            else:
                console.print(split_table(split, own, module.hparams["query"]))
        if folder is not None:
            definition = {
                "data_set": type(data).__name__,
                "image_size": list(module.encoder.image_size),  # type: ignore[union-attr, arg-type]
                "query": module.hparams["query"],
                "metrics": DEFINITIONS,
                "splits": splits,
            }
            if isinstance(data, SuiteData):
                definition["suites"] = {name: describe(data.suite(name)) for name in splits}
            found = {"metrics": metrics, "measured": {"definition": definition, **measured(trainer, module)}}
            path = Path(folder) / "results.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=2) + "\n")
            console.print(f"written: {path}")
            for suite in map(data.suite, splits) if isinstance(data, SuiteData) else ():
                if suite.per_class:
                    console.print(f"written: {write_classes(suite, path.parent)}")


def measured(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """What a number needs beside it: model, data, checkpoint, how that was trained, the hub's commits, machine.

    With `definition` (data set, image size, query, version of the metrics, and each split's number of samples and their
    checksum) it says what may be compared with what: numbers of one definition measure the same thing.
    """
    model = {name: value for name, value in module.hparams.items() if not name.startswith("_")}
    data = getattr(trainer.datamodule, "spec", None)  # type: ignore[attr-defined]
    settled = json.dumps({"model": model, "data": data}, sort_keys=True)
    return {
        "model": model,
        "data": data,
        "config_hash": hashlib.sha256(settled.encode()).hexdigest()[:12],
        "checkpoint": trainer.ckpt_path and str(trainer.ckpt_path),
        "patch_grid": list(module.encoder.grid),  # type: ignore[union-attr, arg-type]
        "trained": module.trained,
        "hub": commits(module.encoder, trainer.datamodule),  # type: ignore[attr-defined]
        "accelerator": type(trainer.accelerator).__name__,
        **provenance(trainer.world_size),
    }


def split_table(split: str, metrics: dict[str, float], query: str) -> Group:
    """The tables of one split; `metrics` by name, without the split's."""
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
    if f"{prefix}/align/phrases" in metrics:
        title = f"Grounding ({metrics[f'{prefix}/align/phrases']:.0f} phrases, query: {query})"
        table = Table("map", *(name.replace("_", " ") for name in GROUNDING), title=title, title_justify="left")
        for source in SOURCES:
            cells = (_cell(metrics, f"{prefix}/{source}/{name}") for name in GROUNDING)
            table.add_row(source, *cells, style="dim" if source in ("centre", "chance") else "")
        parts.append(table)
    if "hard_negatives/per_negative" in metrics:
        title = f"Hard negatives ({metrics['hard_negatives/negatives']:.0f})"
        table = Table("", "per negative", "per image", title=title, title_justify="left")
        table.add_row("accuracy", *(_cell(metrics, f"hard_negatives/per_{unit}") for unit in ("negative", "image")))
        chance = (_cell(metrics, f"hard_negatives/chance_per_{unit}") for unit in ("negative", "image"))
        table.add_row("  chance", *chance, style="dim")
        parts.append(table)
    return Group(*parts)


def _cell(metrics: dict[str, float], name: str) -> str:
    """A fraction to three places, a rank to one; empty where it was not measured."""
    if name not in metrics:
        return ""
    return f"{metrics[name]:.1f}" if name.endswith("rank") else f"{metrics[name]:.3f}"
