"""Checkpoints of the latest state: whole files, the final state, and the state in which a run was stopped."""

from __future__ import annotations

import signal
from typing import Any

from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from patchword.checkpoint_io import WholeFileIO, require_writable
from patchword.ranks import has_lost_another
from patchword.stop import STOP, StopSignals, obey_at_once


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which also saves the state at the end of training and when training is stopped.

    With `every_n_train_steps`, Lightning's own leaves out the steps after the last multiple of it. A SIGTERM or
    Ctrl-C that reaches any rank ends training after the step or validation batch at hand: `last.ckpt` is saved
    whatever `save_last` says, and SystemExit is raised with 128 + the signal's number (143, 130). The signal at which
    Lightning requeues a SLURM job waits for that moment, too. Files are written aside and renamed, see `WholeFileIO`.
    """

    _signals: StopSignals

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look whether the folder can be written, and listen to SIGTERM."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            obey_at_once(trainer)
            return
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFileIO()
        if trainer.is_global_zero and _is_local_file_protocol(self.dirpath or "") and not _is_trial(trainer):
            require_writable(self.dirpath or "")
        first = next(callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoint))
        self._signals = StopSignals(trainer) if first is self else first._signals

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to Ctrl-C."""
        self._signals.listen_to_sigint()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to Ctrl-C."""
        super().on_train_start(trainer, pl_module)
        self._signals.listen_to_sigint()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time to, and stop when asked to, once gradients are not being accumulated."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.should_stop or trainer.global_step == trainer.max_steps:
            self._save_if_new(trainer)  # before Lightning counts the rest of the epoch as done
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        # At the end of an epoch, validation or the epoch's end has a turn.
        if stepped and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop when asked to; the resumed run begins with this validation."""
        if trainer.state.fn == "fit":
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save when it is time to, and stop when asked to."""
        super().on_train_epoch_end(trainer, pl_module)
        self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save `last.ckpt` unless this very step has been saved."""
        super().on_train_end(trainer, pl_module)
        self._save_if_new(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop at once when asked to by a launcher that ends the other ranks of a failed one."""
        super().on_exception(trainer, pl_module, exception)
        if hasattr(self, "_signals") and self._signals.received in STOP and has_lost_another(exception):
            raise SIGTERMException(128 + self._signals.received) from exception

    def _save_if_new(self, trainer: Trainer) -> None:
        """Save `last.ckpt` unless this very step has been saved."""
        if self.save_last and self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _stop_if_asked(self, trainer: Trainer) -> None:
        number = self._signals.agreed(trainer)
        if not number:
            return
        if number not in STOP:
            self._signals.forget(number)
            self._signals.requeue(number, None)  # type: ignore[arg-type]
            return
        name = signal.Signals(number).name
        if trainer.sanity_checking or _is_trial(trainer):
            rank_zero_info(f"stopped by {name} before the first step; nothing is saved")
        else:
            self._save_stopped(trainer)
            connector = trainer._logger_connector
            if trainer.training and connector._first_loop_iter is not None:  # at the end of a batch, not of an epoch
                connector.update_train_step_metrics()  # Lightning's turn would have come after this
            path = self.last_model_path
            rank_zero_info(
                f"stopped by {name} at step {trainer.global_step}; saved {path}; resume with --ckpt_path {path}"
            )
        raise SIGTERMException(128 + number)

    def _save_stopped(self, trainer: Trainer) -> None:
        """Save this very state as `last.ckpt`."""
        if trainer.validating:
            # As if this validation had just begun: Lightning then runs all of it when it resumes.
            progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            progress.reset()
            progress.increment_ready()
            progress.increment_started()
        candidates = self._monitor_candidates(trainer)
        if self.save_last == "link":  # links to what was saved last
            self._save_checkpoint(trainer, self.format_checkpoint_name(candidates))
        self.save_last = self.save_last or True
        self._save_last_checkpoint(trainer, candidates)


def _is_trial(trainer: Trainer) -> bool:
    """Whether this is a `fast_dev_run`, which leaves nothing behind."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
