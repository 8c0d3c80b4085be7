"""Alignment maps as pictures, during validation and test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from patchword.data.batch import Batch
from patchword.maps import TOKEN_SOURCES, phrase_texts
from patchword.metrics.evaluation import PhraseMaps, split_name
from patchword.plots import overlay, save


class AlignmentMaps(Callback):
    """Writes one picture per sample: a row per phrase, a column per source of maps.

    Args:
        samples: How many samples of each split are drawn; 0 for none.
        every_n_epochs: Draw during training after every so many epochs.
    """

    def __init__(self, samples: int = 4, every_n_epochs: int = 1) -> None:
        self.samples = samples
        self.every_n_epochs = every_n_epochs
        self._drawn: dict[str, int] = {}
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask where the logs are; all ranks must ask, for Lightning answers by a broadcast."""
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) / "maps"

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first samples of the validation split."""
        if trainer.sanity_checking or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        split = split_name(trainer.val_dataloaders, dataloader_idx, "val")
        self._draw(trainer, f"{split}_step_{trainer.global_step:06d}", batch, outputs["phrases"])

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first samples of each test split."""
        self._draw(trainer, split_name(trainer.test_dataloaders, dataloader_idx, "test"), batch, outputs["phrases"])

    def _draw(self, trainer: Trainer, name: str, batch: Batch, phrases: PhraseMaps) -> None:
        """Draw samples of `batch` until there are `samples` pictures under this name."""
        if not trainer.is_global_zero:
            return
        for image in range(len(batch)):
            if self._drawn.get(name, 0) >= self.samples:
                return
            own = (batch.caption_image[batch.phrase_caption] == image) & phrases.kept
            if own.any():
                maps: dict[str, Tensor] = {source: phrases.maps[source] for source in TOKEN_SOURCES}
                save(
                    draw_sample(batch, image, own, maps, phrases.grid),
                    self._folder / f"{name}_{int(batch.ids[image])}.png",
                )
                self._drawn[name] = self._drawn.get(name, 0) + 1


def draw_sample(batch: Batch, image: int, own: Tensor, maps: Mapping[str, Tensor], grid: tuple[int, int]) -> Any:
    """A figure of one sample's phrases.

    Args:
        batch: The batch that the sample is in.
        image: Its position.
        own: True [N] on the phrases to draw.
        maps: For each source, the maps [N, P] of the batch's phrases.
        grid: Rows and columns of a map.
    """
    words = [text for text, wanted in zip(phrase_texts(batch), own.tolist(), strict=True) if wanted]
    caption = batch.captions[int(batch.first_caption[image])]
    return overlay(
        batch.images[image].cpu(),
        {source: of_all[own].float().cpu() for source, of_all in maps.items()},
        words,
        grid=grid,
        masks=batch.phrase_mask[own].cpu(),
        caption=caption,
    )
