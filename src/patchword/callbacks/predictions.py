"""What `predict` writes: a row per caption, and its alignment map."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from patchword.data.batch import Batch
from patchword.metrics.evaluation import split_name


class PredictionWriter(Callback):
    """Writes `predictions/<split>.csv` (id, caption, score) and `predictions/<split>/<id>_<n>.npz`.

    A file holds, for the n-th caption of a sample, the objective's own `map` [L, P] of its L selected tokens over
    P patches, their character `spans` [L, 2] in the caption, and the `grid` (rows, columns) of the patches. With
    several devices, every rank writes the samples that it saw; the tables then carry the rank in their name.
    """

    def __init__(self) -> None:
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask where the logs are; all ranks must ask, for Lightning answers by a broadcast."""
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) / "predictions"

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the batch's captions."""
        split = split_name(trainer.predict_dataloaders, dataloader_idx, "predict")
        folder = self._folder
        (folder / split).mkdir(parents=True, exist_ok=True)
        table = folder / (f"{split}.csv" if trainer.world_size == 1 else f"{split}_rank_{trainer.global_rank}.csv")
        rows = _rows(batch, outputs)
        with table.open("w" if batch_idx == 0 else "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if batch_idx == 0:
                writer.writerow(["id", "caption_number", "caption", "score"])
            writer.writerows(rows)
        for text, (sample, number, _, _) in enumerate(rows):
            mask = outputs["mask"][text]
            np.savez_compressed(
                folder / split / f"{sample}_{number}.npz",
                map=outputs["maps"][text][mask].float().cpu().numpy(),
                spans=outputs["spans"][text][mask].cpu().numpy(),
                grid=np.array(pl_module.encoder.grid),  # type: ignore[union-attr]
            )


def _rows(batch: Batch, outputs: dict[str, Any]) -> list[tuple[int, int, str, float]]:
    """Sample id, number of the caption within its sample, caption and score, for each caption."""
    owners = batch.caption_image.tolist()
    ids, scores = batch.ids.tolist(), outputs["scores"].tolist()
    return [
        (ids[owner], text - owners.index(owner), batch.captions[text], scores[text])
        for text, owner in enumerate(owners)
    ]
