"""Writes the results of `predict`: tables of scores, alignment maps, and pictures of the maps."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
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
from patchword.data.zero_shot_images import ZeroShotBatch
from patchword.distributed import maximum
from patchword.errors import UserError
from patchword.files.atomic_write import atomic_write
from patchword.files.csv_cell import csv_cell
from patchword.maps.phrases import area_of, upsample
from patchword.metrics.evaluation import split_name
from patchword.suites.zero_shot import ZeroShotScores

LARGEST = 1024  # longer side of a photo in a picture, in pixels
ROWS = 8  # rows of a picture: the texts with the highest scores, or the first phrases


class PredictionWriter(Callback):
    """Writes `predictions/<split>.csv`, and the objective's own maps over the P patches of each sample.

    For captions with their images, the table has the columns id, caption number, caption and score. The file
    `<split>/<id>_<n>.npz` holds, for the n-th caption of a sample, the `map` [L, P] of its L selected tokens, their
    character `spans` [L, 2] in the caption, and the `grid` (rows, columns) of the patches.

    For `ZeroShot`, the table has one row per image and one column per text. The file `images/<name>.npz` holds
    `map_<n>` and `spans_<n>` for the n-th text, the `grid`, and `seen`: the left, top, right and bottom edge of the
    part of the image that the model sees, in pixels of the image.

    A sample that also replaces a broken one is written once. Files of an earlier run in the same folder are deleted
    first. With several devices, every rank writes the samples that it saw, and the names of the tables contain the
    rank. Tables appear when prediction has ended. A text that begins like a formula (`=`, `+`, `-`, `@`) gets an
    apostrophe before it.

    Args:
        maps: Whether to write maps.
        overlays: Whether to draw the maps over the image as `.png` files, with one row per text or phrase (at most 8).
            This takes half a second per picture. For `ZeroShot`, the picture shows the complete image, with an outline
            around the part that the model sees.
    """

    def __init__(self, maps: bool = True, overlays: bool = False) -> None:
        self.maps = maps
        self.overlays = overlays
        self._folder = Path()
        self._broken = 0
        self._seen = 0
        self._written: set[tuple[str, int, int]] = set()
        self._idle = False
        self._tables: dict[Path, Any] = {}
        self._open = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Get the folder of the logs. All ranks must do this because Lightning broadcasts the answer."""
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) / "predictions"
        self._broken, self._seen, self._written = 0, 0, set()
        self._tables, self._open = {}, ExitStack()
        # A configuration may list another writer; only the last one writes.
        self._idle = [one for one in trainer.callbacks if isinstance(one, PredictionWriter)][-1] is not self  # type: ignore

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Delete the tables, maps and pictures of an earlier run, which may have had other images, texts or devices."""
        if not self._idle and trainer.is_global_zero:
            for path in self._folder.rglob("*"):
                if path.suffix in (".csv", ".npz", ".png", ".part") and path.is_file():
                    path.unlink()
        trainer.strategy.barrier("earlier predictions are removed")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write the predictions of a batch."""
        if self._idle:
            return
        split = split_name(trainer.predict_dataloaders, dataloader_idx, "predict")
        if isinstance(batch, ZeroShotBatch):
            self._write_images(trainer, pl_module, split, batch, outputs)
        else:
            self._write_captions(trainer, pl_module, split, batch, outputs)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Discard incomplete tables."""
        self._open.__exit__(type(exception), exception, exception.__traceback__)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the tables, and warn about images that could not be read; each device warns about its own images.

        Raises:
            UserError: If no device could read any image.
        """
        self._open.close()
        if self._idle:
            return
        device = trainer.strategy.root_device
        broken, seen = (int(maximum(torch.tensor(count, device=device))) for count in (self._broken, self._seen))
        table = self._table(trainer, "broken")
        if broken and not seen:
            raise UserError(f"none of the images can be read: {table} lists the images and the reasons")
        if trainer.is_global_zero:
            print(f"written: {self._folder}", flush=True)
        if self._broken:
            warn(f"{self._broken} image(s) cannot be read: {table} lists them", stacklevel=2)

    def _write_captions(self, trainer: Trainer, module: Any, split: str, batch: Batch, outputs: Any) -> None:
        rows = {}
        for text, row in enumerate(_rows(batch, outputs)):
            if (key := (split, row[0], row[1])) not in self._written:
                self._written.add(key)
                rows[text] = row
        self._append(trainer, split, ["id", "caption_number", "caption", "score"], rows.values())
        for text, (sample, number, caption, _) in rows.items():
            mask = outputs["mask"][text]
            area = area_of(outputs["shapes"][text], module.encoder.grid)
            maps, spans = area.crop(outputs["maps"][text][mask]).float().cpu(), outputs["spans"][text][mask].cpu()
            path = self._folder / split / f"{sample}_{number}"
            if self.maps:
                self._save(path, area.grid, map=maps.numpy(), spans=spans.numpy())
            if self.overlays and len(maps):
                own = batch.phrase_span[batch.phrase_caption == text].tolist() or spans.tolist()
                phrases = [(start, end) for start, end in own if _within(spans, start, end).any()][:ROWS]
                means = torch.stack([maps[_within(spans, start, end)].mean(0) for start, end in phrases])
                image = area.cut(batch.images[int(batch.caption_image[text])])
                words = [caption[start:end] for start, end in phrases]
                self._draw(path, image, means.unflatten(1, area.grid), words, caption)

    def _write_images(
        self, trainer: Trainer, module: Any, split: str, batch: ZeroShotBatch, outputs: ZeroShotScores
    ) -> None:
        texts = outputs.tokens.captions
        scores = outputs.scores.float().tolist()
        rows = [[name, *own] for name, own in zip(batch.names, scores, strict=True)]
        self._append(trainer, split, ["image", *texts], rows)
        self._seen += len(rows)
        broken = [[one.key, one.reason] for one in batch.broken]
        if broken:
            self._append(trainer, "broken", ["image", "reason"], broken)
            self._broken += len(broken)
        if not self.maps and not self.overlays:
            return
        mask, words = outputs.texts.mask, outputs.words()
        for image, name in enumerate(batch.names):
            path = self._folder / split / name
            assert outputs.images is not None  # maps are asked for
            area = area_of(outputs.images.shapes[image], module.encoder.grid)
            maps = [area.crop(of_text) for of_text in outputs.maps(module, image).float()]
            if self.maps:
                arrays = {f"map_{n}": maps[n][mask[n]].cpu().numpy() for n in range(len(texts))}
                arrays |= {f"spans_{n}": outputs.tokens.spans[n][mask[n]].cpu().numpy() for n in range(len(texts))}
                self._save(path, area.grid, seen=batch.sources[image].cpu().numpy(), **arrays)
            best = sorted((n for n in range(len(texts)) if words[n].any()), key=lambda n: -scores[image][n])[:ROWS]
            if self.overlays and best:
                means = torch.stack([maps[n][words[n]].mean(0) for n in best]).unflatten(1, area.grid)
                photo = trainer.datamodule.picture(int(batch.ids[image]))  # type: ignore[attr-defined]
                shown, large, seen = _on_photo(photo, means.cpu(), batch.sources[image].tolist())
                labels = [f"{texts[n]} ({scores[image][n]:.3g})" for n in best]
                self._draw(path, shown, large, labels, name, seen.expand(len(best), -1, -1))

    def _append(self, trainer: Trainer, name: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Add rows to a table, which is created on the first call and appears when it is complete."""
        table = self._table(trainer, name)
        if table not in self._tables:
            self._tables[table] = csv.writer(self._open.enter_context(atomic_write(table)))
            self._tables[table].writerow(map(csv_cell, head))
        self._tables[table].writerows(map(csv_cell, row) for row in rows)

    def _table(self, trainer: Trainer, name: str) -> Path:
        return self._folder / (f"{name}.csv" if trainer.world_size == 1 else f"{name}_rank_{trainer.global_rank}.csv")

    def _save(self, path: Path, grid: tuple[int, int], **arrays: Any) -> None:
        with atomic_write(path.with_name(f"{path.name}.npz"), "wb") as file:
            np.savez_compressed(file, grid=np.array(grid), **arrays)

    def _draw(self, path: Path, image: Any, maps: Tensor, words: list[str], caption: str, masks: Any = None) -> None:
        from patchword.maps.plots import overlay, save

        save(overlay(image, {"own map": maps}, words, masks=masks, caption=caption), path.with_name(f"{path.name}.png"))


def _rows(batch: Batch, outputs: dict[str, Any]) -> list[tuple[int, int, str, float]]:
    """The sample id, the number of the caption within its sample, the caption and the score of each caption."""
    owners, ids, scores = batch.caption_image.tolist(), batch.ids.tolist(), outputs["scores"].tolist()
    numbers = [text - owners.index(owner) for text, owner in enumerate(owners)]
    return list(zip([ids[owner] for owner in owners], numbers, batch.captions, scores, strict=True))


def _within(spans: Tensor, start: int, end: int) -> Tensor:
    """True for tokens that overlap the phrase from `start` to `end`."""
    return (spans[:, 0] < end) & (spans[:, 1] > start)


def _on_photo(
    photo: Image.Image, maps: Float[Tensor, "N h w"], source: Sequence[float]
) -> tuple[Image.Image, Float[Tensor, "N H W"], Tensor]:
    """The photo reduced to at most `LARGEST` pixels, the maps at its size, and a mask of what the model sees.

    Outside the part that the model sees, each map has its lowest value.
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
