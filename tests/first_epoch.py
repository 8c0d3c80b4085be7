"""Stop training after the first epoch in the state that a longer training has there."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer


class StopAfterFirstEpoch(Callback):
    """Stop training after the first validation, with the learning rates of the whole training."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True
