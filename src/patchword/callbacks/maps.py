"""Draws alignment maps during validation and test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from patchword.data.batch import Batch
from patchword.maps.alignment import Alignment
from patchword.maps.mosaic import save_mosaic
from patchword.maps.phrases import BASELINES, area_of
from patchword.maps.plots import overlay, save
from patchword.metrics.evaluation import PhraseMaps, split_name
from patchword.training.loggers import log_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class AlignmentMaps(Callback):
    """Writes one picture per sample, with one row per phrase and one column per map source, and logs it.

    The phrases are those of the sample's first caption that has phrases. A validation during training draws only the
    first of them, in small pictures that take a tenth of a second each. A test draws all of them in figures with color
    scales, and also writes the maps as an `Alignment` file of the same name.

    Args:
        samples: Number of samples to draw from each split; 0 for none.
        every_n_epochs: Number of epochs between two drawings during training.
        phrases: The largest number of phrases in a picture of a validation.
    """

    def __init__(self, samples: int = 4, every_n_epochs: int = 1, phrases: int = 4) -> None:
        self.samples = samples
        self.phrases = phrases
        self.every_n_epochs = every_n_epochs
        self._drawn: dict[str, int] = {}
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Get the folder of the logs. All ranks must do this because Lightning broadcasts the answer."""
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
        """Draw the first samples of each test split; evaluation suites have no phrases to draw."""
        if "phrases" not in outputs:
            return
        split = split_name(trainer.test_dataloaders, dataloader_idx, "test")
        self._draw(trainer, split, batch, outputs["phrases"], keep=True)

    def _draw(
        self, trainer: Trainer, split: str, batch: Batch, phrases: PhraseMaps, moment: str = "", keep: bool = False
    ) -> None:
        """Draw samples of `batch` until there are `samples` pictures of this moment; with `keep`, save the maps."""
        name = split + moment
        if not trainer.is_global_zero:
            return
        for image in range(len(batch)):
            if self._drawn.get(name, 0) >= self.samples:
                return
            own = (batch.caption_image[batch.phrase_caption] == image) & phrases.kept
            if own.any():
                own &= batch.phrase_caption == batch.phrase_caption[own][0]
                alignment = alignment_of(batch, own, phrases)
                path = self._folder / f"{name}_{int(batch.ids[image])}.png"
                save(draw(alignment), path) if keep else save_mosaic(alignment, self.phrases, path)
                step = max(trainer.global_step - 1, 0)  # the step under which Lightning logs the metrics
                log_picture(trainer.loggers, f"maps/{split}_{int(batch.ids[image])}", path, step)
                if keep:
                    alignment.save(path.with_suffix(".npz"))
                self._drawn[name] = self._drawn.get(name, 0) + 1


def alignment_of(batch: Batch, own: Bool[Tensor, " N"], phrases: PhraseMaps) -> Alignment:
    """The maps of the phrases of one caption from the objective and from the plain similarities.

    Args:
        batch: The batch that contains the caption.
        own: True for phrases of the caption that are kept; one or more. Shape [N].
        phrases: The maps of all phrases of the batch.
    """
    caption = int(batch.phrase_caption[own][0])
    area = area_of(phrases.shapes[own][0], phrases.grid)
    pixels = area.cut(batch.images[int(batch.caption_image[caption])])
    height, width = pixels.shape[1:]
    return Alignment(
        pixels=pixels.cpu(),
        caption=batch.captions[caption],
        spans=[(start, end) for start, end in batch.phrase_span[own].tolist()],
        maps={name: area.crop(maps[own]).float().cpu() for name, maps in phrases.maps.items() if name not in BASELINES},
        grid=area.grid,
        masks=None if batch.phrase_mask is None else batch.phrase_mask[own, :height, :width].cpu(),
    )


def draw(alignment: Alignment) -> Figure:
    """A figure of an alignment, with one row per phrase and one column per source."""
    return overlay(
        alignment.pixels,
        alignment.maps,
        alignment.words,
        grid=alignment.grid,
        masks=alignment.masks,
        caption=alignment.caption,
    )
