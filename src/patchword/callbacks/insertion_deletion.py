"""Measures in `test` whether maps tell the truth, by removing patches in their order."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from patchword.data.batch import Batch, Phrase, Sample, collate
from patchword.distributed import world_size
from patchword.encoders.pixels import require_one_shape
from patchword.errors import UserError
from patchword.features import Images
from patchword.files.atomic_write import atomic_write
from patchword.maps.phrases import BASELINES, phrase_maps, queries
from patchword.maps.removal import Fill, background
from patchword.metrics import insertion_deletion as metric
from patchword.metrics.evaluation import split_name

COLUMNS = ("source", "fill", "process", "share", "score", "reciprocal_rank")


class InsertionDeletion(Callback):
    """Insertion and deletion of patches, for each of the model's `map_sources` and for two orders that ignore images.

    See `metrics.insertion_deletion` for the metrics, which are logged as `<split>/removal/<query>/<fill>/<source>/...`.
    The map of the first caption of each image is explained: the mean of the maps of its content words, or of all its
    tokens if `phrase_query` is `span`. Captions that the tokenizer truncates are left out. The curves are written to
    `<split>_insertion_deletion.csv` next to `results.json`, and `patchword report` plots them.

    The cost is 2 + 2 S (steps - 1) passes of the image tower for each image, with S sources including the two
    baselines, and that of the maps.

    Args:
        samples: The number of images of each split, from its first; they are also the candidates of ranks.
        steps: The number of steps in which all patches are removed.
        fill: What removed patches look like: the mean color of the image (`mean`), or the blurred image (`blur`).
        batch_size: The number of images that pass through the image tower at a time.

    Raises:
        UserError: If a number is too small, or `fill` is unknown.
    """

    def __init__(self, samples: int = 200, steps: int = 10, fill: Fill = "mean", batch_size: int = 32) -> None:
        for name, value, least in (("samples", samples, 1), ("steps", steps, 2), ("batch_size", batch_size, 1)):
            if value < least:
                raise UserError(f"{name} of InsertionDeletion must be {least} or more, not {value}")
        background(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), (1, 1), fill)
        self.samples, self.steps, self.fill, self.batch_size = samples, steps, fill, batch_size
        self._kept: dict[str, dict[int, tuple[Tensor, str]]] = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first images of each split and their first captions.

        Raises:
            UserError: If the images have several shapes (`resize_mode: native`).
        """
        if not isinstance(batch, Batch):
            return
        # The color of removed patches would be mixed with that of the padding.
        require_one_shape(batch.images, "InsertionDeletion does not measure")
        kept = self._kept.setdefault(split_name(trainer.test_dataloaders, dataloader_idx, "test"), {})
        for image, (sample, caption) in enumerate(zip(batch.ids.tolist(), batch.first_caption.tolist(), strict=True)):
            if len(kept) * world_size() < self.samples:
                kept[sample] = batch.images[image].cpu(), batch.captions[caption]

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the kept images of all splits, and log the metrics."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if not self._kept:
            rank_zero_info("insertion and deletion are not measured, because this data has no images with captions")
        for split, kept in self._kept.items():
            self._measure(split, kept, pl_module, folder if trainer.is_global_zero else None)
        self._kept = {}

    def _measure(self, split: str, kept: dict[int, tuple[Tensor, str]], module: Any, folder: Path | None) -> None:
        sources = (*module.map_sources, *BASELINES)
        metrics = [metric.InsertionDeletion(self.steps).to(module.device) for _ in sources]
        captions = _of_all_ranks({sample: caption for sample, (_, caption) in kept.items()})
        place = {sample: number for number, sample in enumerate(captions)}
        every = [*captions.values()]
        texts = [
            module.encode_texts(every[first : first + self.batch_size])[0]
            for first in range(0, len(every), self.batch_size)
        ]

        def score(images: Images) -> Tensor:
            return torch.cat([module.objective.score(images, some) for some in texts], 1)

        samples, dropped = list(kept.items()), 0
        for first in range(0, len(samples), self.batch_size):
            some = samples[first : first + self.batch_size]
            batch = _whole_captions([(sample, *parts) for sample, parts in some]).to(module.device)
            images, own_texts, tokens = module(batch)
            asked = queries(
                module.phrase_query, batch, images, own_texts, tokens, module.encoder, module.token_selection
            )
            valid = asked.kept.nonzero()[:, 0]
            dropped += len(some) - len(valid)
            if len(valid) == 0:
                continue
            maps = [phrase_maps(source, module.objective, asked)[valid] for source in sources]
            own = torch.tensor([place[sample] for sample, _ in some], device=module.device)[valid]
            pixels, keys, ids = batch.images[valid], asked.keys[valid], batch.ids[valid]
            grid, options = images.grid, (self.steps, self.fill)
            curves = metric.curves_of(module.encode_images, score, pixels, own, maps, keys, grid, *options)
            for of_source, own_curves in zip(metrics, curves, strict=True):
                of_source.update(ids, own_curves)
        if dropped:
            rank_zero_info(f"insertion and deletion on {split}: {dropped} truncated captions are left out")
        self._report(split, dict(zip(sources, metrics, strict=True)), module, folder)

    def _report(self, split: str, metrics: dict[str, Any], module: Any, folder: Path | None) -> None:
        """Log the metrics of all sources, and write their curves."""
        rows: list[tuple[Any, ...]] = []
        for source, of_source in metrics.items():
            part = f"{split}/removal/{module.phrase_query}/{self.fill}/{source}"
            found = of_source.compute()
            module.log_dict({f"{part}/{name}": value for name, value in found.items()})
            module.totals[part] = of_source.totals
            for process, (scores, ranks) in zip(metric.PROCESSES, of_source.curves.tolist(), strict=True):
                for step, values in enumerate(zip(scores, ranks, strict=True)):
                    rows.append((source, self.fill, process, step / self.steps, *values))
        if folder is not None:
            with atomic_write(folder / f"{split}_insertion_deletion.csv") as file:
                csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def _whole_captions(samples: list[tuple[int, Tensor, str]]) -> Batch:
    """A batch of images with one caption each, which is one phrase."""
    return collate([Sample(sample, pixels, [text], [[Phrase(0, len(text))]], []) for sample, pixels, text in samples])


def _of_all_ranks(own: dict[int, str]) -> dict[int, str]:
    """The captions of all ranks, in the order of the samples' ids."""
    found: list[Any] = [own]
    if world_size() > 1:
        found = [None] * world_size()
        dist.all_gather_object(found, own)
    return dict(sorted((sample, caption) for part in found for sample, caption in part.items()))
