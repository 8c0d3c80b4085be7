"""Alignment maps as pictures, during validation and test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from patchword.alignment import Alignment
from patchword.data.batch import Batch
from patchword.loggers import log_picture
from patchword.maps import TOKEN_SOURCES
from patchword.metrics.evaluation import PhraseMaps, split_name
from patchword.plots import overlay, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class AlignmentMaps(Callback):
    """Writes one picture per sample: a row per phrase, a column per source of maps. Loggers that can show it do.

    A test also writes the maps themselves, as an `Alignment` beside each picture.

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
        if "phrases" not in outputs or trainer.sanity_checking or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        split = split_name(trainer.val_dataloaders, dataloader_idx, "val")
        self._draw(trainer, split, batch, outputs["phrases"], moment=f"_step_{trainer.global_step:06d}")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first samples of each test split; an evaluation suite has no phrases to draw."""
        if "phrases" not in outputs:
            return
        split = split_name(trainer.test_dataloaders, dataloader_idx, "test")
        self._draw(trainer, split, batch, outputs["phrases"], keep=True)

    def _draw(
        self, trainer: Trainer, split: str, batch: Batch, phrases: PhraseMaps, moment: str = "", keep: bool = False
    ) -> None:
        """Draw samples of `batch` until there are `samples` pictures of this moment; `keep` the maps, too."""
        name = split + moment
        if not trainer.is_global_zero:
            return
        for image in range(len(batch)):
            if self._drawn.get(name, 0) >= self.samples:
                return
            own = (batch.caption_image[batch.phrase_caption] == image) & phrases.kept
            if own.any():
                alignment = alignment_of(batch, image, own, phrases)
                path = self._folder / f"{name}_{int(batch.ids[image])}.png"
                save(draw(alignment), path)
                step = max(trainer.global_step - 1, 0)  # where Lightning logs the metrics
                log_picture(trainer.loggers, f"maps/{split}_{int(batch.ids[image])}", path, step)
                if keep:
                    alignment.save(path.with_suffix(".npz"))
                self._drawn[name] = self._drawn.get(name, 0) + 1


def alignment_of(batch: Batch, image: int, own: Bool[Tensor, " N"], phrases: PhraseMaps) -> Alignment:
    """The maps of one sample's phrases, as the objective and the plain similarities have them.

    Args:
        batch: The batch that the sample is in.
        image: Its position.
        own: True on the phrases to keep.
        phrases: The maps of the batch's phrases.
    """
    return Alignment(
        pixels=batch.images[image].cpu(),
        caption=batch.captions[int(batch.first_caption[image])],
        spans=[(start, end) for start, end in batch.phrase_span[own].tolist()],
        maps={source: phrases.maps[source][own].float().cpu() for source in TOKEN_SOURCES},
        grid=phrases.grid,
        masks=None if batch.phrase_mask is None else batch.phrase_mask[own].cpu(),
    )


def draw(alignment: Alignment) -> Figure:
    """A figure of an alignment: a row per phrase, a column per source."""
    return overlay(
        alignment.pixels,
        alignment.maps,
        alignment.words,
        grid=alignment.grid,
        masks=alignment.masks,
        caption=alignment.caption,
    )
