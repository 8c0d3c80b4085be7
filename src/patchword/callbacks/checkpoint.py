"""Checkpoints of the latest state, including the final state and the state in which a run was stopped."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint, WeightAveraging
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from patchword.data.worker_signals import STOP
from patchword.errors import UserError
from patchword.files.local_path import is_local
from patchword.training.checkpoint_io import require_writable, verify_checkpoints
from patchword.training.processes import has_lost_another
from patchword.training.signals import StopSignals, obey_at_once


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, changed so that no step, validation or metric is lost when a run is killed.

    It differs from ModelCheckpoint in these points:

    - If validation runs after a step, the step is saved when that validation has ended. A run that is killed in between
      resumes from the previous checkpoint and repeats the validation. ModelCheckpoint would skip the validation.
    - With `monitor`, the best checkpoints are saved when the metric has been measured: after each validation (or each
      `every_n_epochs`-th validation if that is set), or, for a training metric, when a step is due. ModelCheckpoint
      saves a later step under the score of an earlier one. A metric that nothing measures is refused.
    - `last.ckpt` is always the latest checkpoint; no `last-v1.ckpt` is written.
    - The state at the end of training is saved. With `every_n_train_steps`, ModelCheckpoint omits the steps after the
      last multiple of it.
    - A SIGTERM or Ctrl-C that reaches any rank ends training after the current step or validation batch: `last.ckpt` is
      saved whatever `save_last` is, and SystemExit is raised with 128 + the signal's number (143, 130). Lightning's
      signal to requeue a SLURM job also waits for that moment. (`save_on_exception` writes a file of another name and
      does not know the current validation batch.)

    A step's metrics are logged before its checkpoint is saved. A file is written under a temporary name and renamed,
    see `WholeFileIO`.
    """

    _signals: StopSignals
    _monitor_is_known = False
    _last_time_due = 0.0  # in seconds of `time.monotonic`
    _names_of_sanity_check: frozenset[str] = frozenset()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the folder is writable, and listen for SIGTERM."""
        super().setup(trainer, pl_module, stage)
        verify_checkpoints(trainer)
        if stage != "fit":
            obey_at_once(trainer)
            return
        if trainer.is_global_zero and is_local(self.dirpath or "") and not _is_trial(trainer):
            require_writable(self.dirpath or "")
        first = next(callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoint))
        self._signals = StopSignals(trainer) if first is self else first._signals

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for Ctrl-C."""
        self._signals.listen_to_sigint()

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the names of the metrics that validation measures."""
        self._names_of_sanity_check = frozenset(trainer.callback_metrics)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for Ctrl-C, and accumulate gradients in a resumed epoch as at its beginning."""
        super().on_train_start(trainer, pl_module)
        self._last_time_due = time.monotonic()
        self._signals.listen_to_sigint()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):  # sets it only when an epoch begins
                trainer.accumulate_grad_batches = callback.get_accumulate_grad_batches(trainer.current_epoch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Correct the step that Lightning logs under, which is wrong by one after some resumes."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a checkpoint is due, and stop if a signal was received and no gradients are being accumulated."""
        self._require_monitor(trainer, validated=False)
        if not _validation_follows(trainer) and self._is_due(trainer):
            log_step(trainer)
            self._save(trainer, with_best=self._is_measured_by_training(trainer))
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        # After the last batch of an epoch, the hooks of validation or of the epoch's end stop training.
        if stepped and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop if a signal was received; the resumed run begins with this validation."""
        if trainer.state.fn == "fit":
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the step that has waited for this validation, and the best checkpoint."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or _is_trial(trainer):
            return
        self._require_monitor(trainer, validated=True)
        has_new_score = self.monitor is not None and not self.every_n_epochs and self.monitor in _measured(trainer)
        if self._is_due(trainer) or has_new_score:
            self._save(trainer, with_best=True)
        else:
            super().on_validation_end(trainer, pl_module)  # for `every_n_epochs`

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if a checkpoint is due, and stop if a signal was received."""
        super().on_train_epoch_end(trainer, pl_module)
        self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save `last.ckpt` unless the current step has been saved."""
        if self.save_last and not _is_trial(trainer) and self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        if self.monitor is not None and self.save_top_k != 0 and not self.best_k_models and not _is_trial(trainer):
            rank_zero_warn(
                f"checkpoint.monitor is {self.monitor}, which was never measured when a checkpoint was due, so no best "
                "checkpoint was saved. Validate more often (trainer.val_check_interval) or train longer"
            )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Find this callback's state in the checkpoint even if the folder was moved or the intervals were changed.

        Raises:
            UserError: The checkpoint holds averaged weights, and this run has no callback that averages weights.
        """
        states = checkpoint.get("callbacks", {})
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        averages = any(isinstance(callback, WeightAveraging) for callback in callbacks)
        if trainer.state.fn == "fit" and "current_model_state" in checkpoint and not averages:
            raise UserError(
                f"{trainer.ckpt_path}: the checkpoint holds weights averaged over training, but this run has no "
                "callback that averages weights: add the same callback again (trainer.callbacks, such as "
                "EMAWeightAveraging)"
            )
        own = f"{type(self).__qualname__}{{"
        same = [key for key, state in states.items() if key.startswith(own) and state["monitor"] == self.monitor]
        if self.state_key not in states and len(same) == 1:
            states[self.state_key] = states[same[0]]
        state = states.get(self.state_key)
        if state is not None and Path(trainer.ckpt_path or "").resolve().parent == Path(self.dirpath or "").resolve():
            states[self.state_key] = _moved(state, str(self.dirpath))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop at once if a launcher ends this rank because another rank has failed."""
        super().on_exception(trainer, pl_module, exception)
        if hasattr(self, "_signals") and self._signals.received in STOP and has_lost_another(exception):
            raise SIGTERMException(128 + self._signals.received) from exception

    def file_exists(self, filepath: str | Path, trainer: Trainer) -> bool:
        """Whether a checkpoint must get another name than this one.

        Without `filename`, the name contains the epoch and the step: the existing file is the same checkpoint, and is
        replaced.
        """
        return self.filename is not None and super().file_exists(filepath, trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether the current step has not been saved and is due; must be called on all ranks."""
        if self._should_skip_saving_checkpoint(trainer):
            return False
        if self.save_last and (trainer.should_stop or trainer.global_step == trainer.max_steps):
            return True  # later, Lightning counts the rest of the epoch as done
        if self._train_time_interval is not None:
            now = time.monotonic()
            waited = now - self._last_time_due
            due = trainer.strategy.broadcast(waited >= self._train_time_interval.total_seconds())
            if due:
                self._last_time_due = now
            return bool(due)
        return self._every_n_train_steps > 0 and trainer.global_step % self._every_n_train_steps == 0

    def _save(self, trainer: Trainer, with_best: bool) -> None:
        """Save the current state as `last.ckpt` and, if `with_best`, as one of the best checkpoints if it is one."""
        candidates = self._monitor_candidates(trainer)
        if with_best:
            self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Save `last.ckpt` and replace the existing one."""
        # Lightning would number the file if another run, or this run in another folder, had written one.
        self.last_model_path = self.format_checkpoint_name(monitor_candidates, self.CHECKPOINT_NAME_LAST)
        super()._save_last_checkpoint(trainer, monitor_candidates)

    def _is_measured_by_training(self, trainer: Trainer) -> bool:
        """Whether the current training step has measured the monitored metric; validation measured an earlier step."""
        return self.monitor in (None, "epoch", "step") or self.monitor in _measured(trainer)

    def _require_monitor(self, trainer: Trainer, validated: bool) -> None:
        """Refuse a monitor that nothing measures as soon as all metrics are known.

        Raises:
            UserError: Nothing measures the monitor. The message lists the metrics.
        """
        if self.monitor is None or self._monitor_is_known:
            return
        known = {"epoch", "step", *self._names_of_sanity_check, *trainer.callback_metrics}
        self._monitor_is_known = self.monitor in known
        splits = {name.partition("/")[0] for name in known}
        is_complete = validated or not trainer.enable_validation or self.monitor.partition("/")[0] in splits
        if is_complete and not self._monitor_is_known:
            raise UserError(
                f"checkpoint.monitor is {self.monitor}, which nothing measures; choose from {', '.join(sorted(known))}"
            )

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
            rank_zero_info(f"stopped by {name} before the first step; no checkpoint is saved")
        else:
            log_step(trainer)
            self._save_stopped(trainer)
            step, path = trainer.global_step, self.last_model_path
            rank_zero_info(f"stopped by {name} at step {step}; saved {path}; resume with --ckpt_path {path}")
        raise SIGTERMException(128 + number)

    def _save_stopped(self, trainer: Trainer) -> None:
        """Save the current state as `last.ckpt`."""
        if trainer.validating:
            # Reset the progress to the beginning of this validation, so that the resumed run repeats all of it.
            progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            progress.reset()
            progress.increment_ready()
            progress.increment_started()
        candidates = self._monitor_candidates(trainer)
        if self.save_last == "link":  # a link to the checkpoint that was saved last
            self._save_checkpoint(trainer, self.format_checkpoint_name(candidates))
        self.save_last = self.save_last or True
        self._save_last_checkpoint(trainer, candidates)


def _is_trial(trainer: Trainer) -> bool:
    """Whether this is a `fast_dev_run`, which saves nothing."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def log_step(trainer: Trainer) -> None:
    """Log the metrics of the current training step now, and keep Lightning from logging them after the callbacks.

    A run that is killed between its checkpoint and that moment would lose them.
    """
    connector = trainer._logger_connector
    at_end_of_batch = trainer.training and connector._first_loop_iter is not None
    if at_end_of_batch and "update_train_step_metrics" not in vars(connector):
        connector.update_train_step_metrics()
        connector.update_train_step_metrics = lambda: vars(connector).pop("update_train_step_metrics")  # type: ignore[method-assign]


def _validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning validates between this training step and the next; False if it validates by the clock."""
    loop = trainer.fit_loop
    by_clock = trainer.val_check_batch is None
    return not by_clock and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]


def _measured(trainer: Trainer) -> dict[str, Any]:
    """The metrics that the current loop (training or validation) has measured."""
    return trainer._logger_connector.metrics["callback"]


def _moved(state: dict[str, Any], folder: str) -> dict[str, Any]:
    """A callback's state, with the paths of its files moved to `folder`."""

    def place(path: str) -> str:
        return os.path.join(folder, os.path.relpath(path, state["dirpath"])) if path else path

    return state | {
        "dirpath": folder,
        "best_k_models": {place(path): score for path, score in state["best_k_models"].items()},
        **{name: place(state[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")},
    }
