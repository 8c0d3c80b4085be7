"""The Checkpoint callback saves at the right steps, and a killed run can be resumed without losing any metrics.

The model has one weight, which counts the training steps. The weight in a checkpoint therefore shows the step at which
it was saved.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from patchword.callbacks.checkpoint import Checkpoint
from patchword.errors import UserError
from patchword.training.loggers import join

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*Experiment logs directory"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:.*dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:.*The dirpath has changed"),
]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Counter(LightningModule):
    """A model whose weight is the number of training steps. `val/loss` has its minimum at step 6."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("train/loss", self.steps.detach() + 1)
        return -self.steps

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", (self.steps.detach() - 6) ** 2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Kill(Callback):
    """Raise an error in a given hook at a given step, to simulate a killed process."""

    def __init__(self, hook: str, step: int) -> None:
        self.step = step
        setattr(self, hook, self._kill)

    def _kill(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking:
            raise RuntimeError("killed")


def fit(
    *callbacks: Callback, every: int = 4, resume: bool = False, module: Counter | None = None, **arguments: Any
) -> Trainer:
    """Train two epochs of six steps in the folder `run`, validate after each epoch, and save every `every` steps."""
    last = Path("run/checkpoints/last.ckpt")
    step = torch.load(last, weights_only=True)["global_step"] if resume else 0
    own = Checkpoint(save_last=True, save_top_k=0, every_n_train_steps=every)
    trainer = Trainer(
        **{"max_epochs": 2, "log_every_n_steps": 1, "enable_progress_bar": False, "logger": False} | arguments,
        accelerator="cpu",
        enable_model_summary=False,
        callbacks=[*callbacks, *([] if any(isinstance(one, Checkpoint) for one in callbacks) else [own])],
    )
    trainer.loggers = join([CSVLogger("", name="", version="run")], [], step)
    loaders = DataLoader(range(12), batch_size=2), DataLoader(range(2))
    trainer.fit(module or Counter(), *loaders, ckpt_path=last if resume else None, weights_only=True)
    return trainer


def rows(name: str) -> list[int]:
    """Return the steps at which `metrics.csv` has a value for the metric."""
    return pd.read_csv("run/metrics.csv").dropna(subset=[name])["step"].tolist()


def saved() -> dict[str, int]:
    """Return the step of each checkpoint, and check that its weights are from this step."""
    found = {}
    for path in Path("run/checkpoints").iterdir():
        content = torch.load(path, weights_only=True)
        found[path.name] = content["global_step"]
        assert content["state_dict"]["steps"] == content["global_step"]
    return found


def best(**options: Any) -> Checkpoint:
    """Return a callback that keeps the checkpoint with the best validation loss."""
    return Checkpoint(**{"monitor": "val/loss", "save_last": True, "every_n_train_steps": 4} | options)


def test_a_monitored_checkpoint_has_the_weights_that_were_scored() -> None:
    """Each checkpoint is saved with its own score. Lightning's callback saves step 8 with the score of step 6."""
    callback = best(save_top_k=-1)
    fit(callback, max_epochs=3)
    scores = {torch.load(path, weights_only=True)["global_step"]: s for path, s in callback.best_k_models.items()}
    assert scores == {6: 0, 12: 36, 18: 144}
    assert saved()[Path(callback.best_model_path).name] == 6


def test_a_short_run_has_a_best_checkpoint_too() -> None:
    """The best checkpoint is saved even if the run is shorter than the saving interval."""
    fit(best(every_n_train_steps=100), max_epochs=1)
    assert saved() == {"epoch=0-step=6.ckpt": 6, "last.ckpt": 6}


def test_a_training_metric_can_be_monitored() -> None:
    """A checkpoint that monitors a training metric is saved at its step interval, without waiting for validation."""
    fit(best(monitor="train/loss", every_n_train_steps=5))
    assert saved() == {"epoch=0-step=5.ckpt": 5, "last.ckpt": 12}


@pytest.mark.parametrize(
    ("monitor", "arguments", "steps"),
    [("val/los", {}, 1), ("vla/loss", {}, 6), ("val/loss", {"limit_val_batches": 0}, 1), ("train/los", {}, 1)],
)
def test_a_monitor_that_nothing_measures_is_refused(monitor: str, arguments: dict[str, Any], steps: int) -> None:
    """The run stops as soon as the missing metric is noticed, and the message lists the available metrics."""
    module = Counter()
    with pytest.raises(UserError, match=rf"checkpoint.monitor is {monitor}, .*choose from epoch, step, train/loss"):
        fit(best(monitor=monitor), module=module, **arguments)
    assert module.steps == steps


def test_a_monitor_that_was_never_measured_gives_a_warning() -> None:
    """If a run ends before the first validation, a warning says that the monitored metric was never measured."""
    with pytest.warns(UserWarning, match="checkpoint.monitor is val/loss, which was never measured"):
        fit(best(), max_steps=3, max_epochs=-1)
    assert saved() == {"last.ckpt": 3}


@pytest.mark.parametrize("every", [3, 4, 6])
@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_validation_batch_start", 6),
        ("on_validation_batch_start", 12),
        ("on_train_epoch_end", 6),
        ("on_train_epoch_end", 12),
        ("on_train_batch_start", 7),
    ],
)
def test_a_run_that_is_killed_loses_no_row_and_repeats_none(hook: str, step: int, every: int) -> None:
    """After resuming, metrics.csv has each training step and each validation once, with the right epochs."""
    with pytest.raises(RuntimeError, match="killed"):
        fit(Kill(hook, step), every=every)
    if not Path("run/checkpoints/last.ckpt").exists():
        assert every == step == 6
        fit(every=every)
    else:
        fit(every=every, resume=True)
    assert rows("train/loss") == list(range(12))
    assert rows("val/loss") == [5, 11]
    assert fit(every=every, resume=True, max_epochs=3).current_epoch == 3
    assert rows("train/loss") == list(range(18))
    assert rows("val/loss") == [5, 11, 17]
    assert pd.read_csv("run/metrics.csv")["epoch"].dropna().tolist() == sorted([0, 1, 2] * 7)


def test_a_kill_between_checkpoint_and_logger_loses_no_row() -> None:
    """No row is lost if the run is killed in the module's hook, after the checkpoint was saved and before logging."""
    module = Counter()

    def kill(*_: Any) -> None:
        if module.trainer.global_step == 4:
            raise RuntimeError("killed")

    module.on_train_batch_end = kill  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="killed"):
        fit(module=module)
    assert saved() == {"last.ckpt": 4}
    fit(resume=True)
    assert rows("train/loss") == list(range(12))


def test_accumulation_by_epoch_is_restored_within_an_epoch() -> None:
    """A run resumed in mid-epoch still accumulates gradients, although Lightning's scheduler acts at epoch starts."""
    schedule = {0: 1, 1: 3}
    with pytest.raises(RuntimeError, match="killed"):
        fit(GradientAccumulationScheduler(schedule), Kill("on_train_batch_start", 7), every=7)
    assert saved() == {"last.ckpt": 7}
    trainer = fit(GradientAccumulationScheduler(schedule), resume=True)
    assert trainer.global_step == 8


def test_last_is_the_last_in_a_folder_that_was_used_or_moved() -> None:
    """A second run replaces `last.ckpt` and writes no `last-v1.ckpt`, and a moved run finds its best checkpoints."""
    fit(best(), max_epochs=1)
    fit(best(), max_epochs=1)
    assert saved() == {"epoch=0-step=6.ckpt": 6, "last.ckpt": 6}
    os.rename("run", "elsewhere")
    os.makedirs("moved")
    os.rename("elsewhere", "moved/run")
    os.chdir("moved")
    callback = best(dirpath="run/checkpoints", every_n_train_steps=5)
    fit(callback, resume=True, max_epochs=2)
    assert saved() == {"epoch=0-step=6.ckpt": 6, "last.ckpt": 12}
    assert {os.path.relpath(path): score for path, score in callback.best_k_models.items()} == {
        "run/checkpoints/epoch=0-step=6.ckpt": 0
    }


def test_averaged_weights_are_not_trained_on() -> None:
    """A checkpoint with averaged weights cannot be resumed without the callback that averages them."""
    fit(EMAWeightAveraging(), max_epochs=1)
    with pytest.raises(UserError, match=r"weights averaged over training, .*trainer\.callbacks"):
        fit(resume=True)
    assert fit(EMAWeightAveraging(), resume=True).global_step == 12
