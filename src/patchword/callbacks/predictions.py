"""What `predict` writes: tables of scores, alignment maps, and pictures of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from patchword.data.batch import Batch
from patchword.data.zero_shot import ZeroShotBatch, ZeroShotScores
from patchword.maps import upsample
from patchword.metrics.evaluation import split_name

LARGEST = 1024  # longer side of a photo in a picture
ROWS = 8  # of a picture: the texts with the highest scores, or the first phrases


class PredictionWriter(Callback):
    """Writes `predictions/<split>.csv`, and for each sample the objective's own maps over its P patches.

    Of captions with their images (id, caption number, caption, score), `<split>/<id>_<n>.npz` holds for the n-th
    caption of a sample the `map` [L, P] of its L selected tokens, their character `spans` [L, 2] in the caption, and
    the `grid` (rows, columns) of the patches. Of images with texts that are not theirs (`ZeroShot`: a row per image, a
    column per text), `images/<name>.npz` holds `map_<n>` and `spans_<n>` for the n-th text, the `grid`, and as `seen`
    the left, top, right and bottom of what the model sees, in pixels of the image. A sample that also stands in a
    broken one's place is written once. With several devices, every rank writes the samples that it saw; the tables then
    carry the rank in their name.

    Args:
        maps: Whether to write maps.
        overlays: Whether to draw them over the image, as `.png` beside the `.npz`: a row per text or phrase, 8 at most;
            half a second each. Of `ZeroShot` it is the whole image, with an outline around what the model sees.
    """

    def __init__(self, maps: bool = True, overlays: bool = False) -> None:
        self.maps = maps
        self.overlays = overlays
        self._folder = Path()
        self._broken = 0
        self._written: set[tuple[str, int, int]] = set()
        self._idle = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask where the logs are; all ranks must ask, for Lightning answers by a broadcast."""
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) / "predictions"
        self._broken, self._written = 0, set()
        # Configurations of earlier versions list a writer of their own.
        self._idle = [one for one in trainer.callbacks if isinstance(one, PredictionWriter)][-1] is not self  # type: ignore

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append what the batch holds."""
        if self._idle:
            return
        split = split_name(trainer.predict_dataloaders, dataloader_idx, "predict")
        if isinstance(batch, ZeroShotBatch):
            self._write_images(trainer, pl_module, split, batch, outputs, batch_idx == 0)
        else:
            self._write_captions(trainer, pl_module, split, batch, outputs, batch_idx == 0)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many images could not be read; each device says it of its own."""
        if self._broken:
            warn(f"{self._broken} image(s) cannot be read: {self._table(trainer, 'broken')} names them", stacklevel=2)

    def _write_captions(
        self, trainer: Trainer, module: LightningModule, split: str, batch: Batch, outputs: Any, first: bool
    ) -> None:
        rows = {}
        for text, row in enumerate(_rows(batch, outputs)):
            if (key := (split, row[0], row[1])) not in self._written:
                self._written.add(key)
                rows[text] = row
        self._append(trainer, split, ["id", "caption_number", "caption", "score"], rows.values(), first)
        for text, (sample, number, caption, _) in rows.items():
            mask = outputs["mask"][text]
            maps, spans = outputs["maps"][text][mask].float().cpu(), outputs["spans"][text][mask].cpu()
            path = self._folder / split / f"{sample}_{number}"
            if self.maps:
                self._save(path, module, map=maps.numpy(), spans=spans.numpy())
            if self.overlays and len(maps):
                own = batch.phrase_span[batch.phrase_caption == text].tolist() or spans.tolist()
                phrases = [(start, end) for start, end in own if _within(spans, start, end).any()][:ROWS]
                means = torch.stack([maps[_within(spans, start, end)].mean(0) for start, end in phrases])
                image = batch.images[int(batch.caption_image[text])]
                words = [caption[start:end] for start, end in phrases]
                self._draw(path, image, means.unflatten(1, module.encoder.grid), words, caption)  # type: ignore

    def _write_images(
        self,
        trainer: Trainer,
        module: Any,
        split: str,
        batch: ZeroShotBatch,
        outputs: ZeroShotScores,
        first: bool,
    ) -> None:
        texts = outputs.tokens.captions
        scores = outputs.scores.float().tolist()
        rows = [[name, *own] for name, own in zip(batch.names, scores, strict=True)]
        self._append(trainer, split, ["image", *texts], rows, first)
        broken = [[one.key, one.reason] for one in batch.broken]
        if broken:
            self._append(trainer, "broken", ["image", "reason"], broken, self._broken == 0)
            self._broken += len(broken)
        if not self.maps and not self.overlays:
            return
        mask, words = outputs.texts.mask, outputs.words()
        for image, name in enumerate(batch.names):
            path = self._folder / split / name
            maps = outputs.maps(module, image).float()
            if self.maps:
                arrays = {f"map_{n}": maps[n][mask[n]].cpu().numpy() for n in range(len(texts))}
                arrays |= {f"spans_{n}": outputs.tokens.spans[n][mask[n]].cpu().numpy() for n in range(len(texts))}
                self._save(path, module, seen=batch.sources[image].cpu().numpy(), **arrays)
            best = sorted((n for n in range(len(texts)) if words[n].any()), key=lambda n: -scores[image][n])[:ROWS]
            if self.overlays and best:
                means = torch.stack([maps[n][words[n]].mean(0) for n in best]).unflatten(1, module.encoder.grid)
                photo = trainer.datamodule.picture(int(batch.ids[image]))  # type: ignore[attr-defined]
                shown, large, seen = _on_photo(photo, means.cpu(), batch.sources[image].tolist())
                labels = [f"{texts[n]} ({scores[image][n]:.3g})" for n in best]
                self._draw(path, shown, large, labels, name, seen.expand(len(best), -1, -1))

    def _append(
        self, trainer: Trainer, name: str, head: Sequence[str], rows: Iterable[Sequence[Any]], first: bool
    ) -> None:
        """Add rows to a table; the first ones begin it."""
        table = self._table(trainer, name)
        table.parent.mkdir(parents=True, exist_ok=True)
        with table.open("w" if first else "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if first:
                writer.writerow(head)
            writer.writerows(rows)

    def _table(self, trainer: Trainer, name: str) -> Path:
        return self._folder / (f"{name}.csv" if trainer.world_size == 1 else f"{name}_rank_{trainer.global_rank}.csv")

    def _save(self, path: Path, module: Any, **arrays: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path.with_name(f"{path.name}.npz"), grid=np.array(module.encoder.grid), **arrays)

    def _draw(self, path: Path, image: Any, maps: Tensor, words: list[str], caption: str, masks: Any = None) -> None:
        from patchword.plots import overlay, save

        save(overlay(image, {"own map": maps}, words, masks=masks, caption=caption), path.with_name(f"{path.name}.png"))


def _rows(batch: Batch, outputs: dict[str, Any]) -> list[tuple[int, int, str, float]]:
    """Sample id, number of the caption within its sample, caption and score, for each caption."""
    owners = batch.caption_image.tolist()
    ids, scores = batch.ids.tolist(), outputs["scores"].tolist()
    return [
        (ids[owner], text - owners.index(owner), batch.captions[text], scores[text])
        for text, owner in enumerate(owners)
    ]


def _within(spans: Tensor, start: int, end: int) -> Tensor:
    """The tokens that overlap a phrase."""
    return (spans[:, 0] < end) & (spans[:, 1] > start)


def _on_photo(
    photo: Image.Image, maps: Float[Tensor, "N h w"], source: Sequence[float]
) -> tuple[Image.Image, Float[Tensor, "N H W"], Tensor]:
    """The photo, small enough to show, the maps in its shape, and what the model sees of it.

    Around what the model sees, maps have their lowest value.
    """
    scale = min(LARGEST / max(photo.size), 1.0)
    width, height = (max(round(side * scale), 1) for side in photo.size)
    left, top, right, bottom = (round(edge * scale) for edge in source)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    large = maps.flatten(1).min(1).values[:, None, None].repeat(1, height, width)
    inner = upsample(maps.flatten(1), (maps.shape[1], maps.shape[2]), (bottom - top, right - left))
    large[:, top:bottom, left:right] = inner[:, : height - top, : width - left]
    seen = torch.zeros(height, width, dtype=torch.bool)
    seen[top:bottom, left:right] = True
    return photo.resize((width, height), reducing_gap=3.0), large, seen
