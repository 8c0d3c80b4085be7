"""A training that ends after its first epoch, as a longer one was after its first."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer


class StopAfterFirstEpoch(Callback):
    """Ends training after the first validation, with the learning rates of the whole training."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True
