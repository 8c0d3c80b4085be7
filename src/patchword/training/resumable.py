"""The optimizer and the checkpoints of a model: training resumes exactly where a checkpoint was saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from patchword import distributed
from patchword.encoders.base import Encoder
from patchword.encoders.pair import PretrainedPair
from patchword.errors import UserError
from patchword.files.printable import printable
from patchword.objective import Objective
from patchword.provenance import rebuild
from patchword.provenance.hub import commits
from patchword.training import checkpoint_file, exported
from patchword.training.last_checkpoint import find
from patchword.training.lr_schedule import Schedule
from patchword.training.param_groups import FineTuning, optimizer_of, parameter_groups
from patchword.training.resumed_optimizer import Built, built, change_options, require_same_optimizer
from patchword.training.rng import rng_state, set_rng_state
from patchword.version import __version__

Module = TypeVar("Module", bound="ResumableModule")


class ResumableModule(LightningModule):
    """A LightningModule whose checkpoints are read as data, and which resumes with the same random numbers.

    Attributes:
        encoder: The pair of towers.
        objective: The alignment objective.
        optimizer: Builds the optimizer of groups of parameters.
        schedule: The schedule of the learning rate.
        fine_tuning: The learning rates of the towers, which define the groups of parameters.
        trained: How the model of a checkpoint was trained; None if no checkpoint was loaded.
    """

    encoder: Encoder
    objective: Objective
    optimizer: OptimizerCallable
    schedule: Schedule
    fine_tuning: FineTuning

    def __init__(self) -> None:
        super().__init__()
        self.trained: dict[str, Any] | None = None
        self._has_trained = False
        self._rng_states: Tensor | None = None
        self._built: Built = []
        self._resumed: dict[str, Built | None] | None = None

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls: type[Module],
        checkpoint_path: str | Path,
        map_location: str | torch.device = "cpu",
        strict: bool = True,
        weights_only: bool | None = True,
        **given: Any,
    ) -> Module:
        """Load the model of a checkpoint without running code that the checkpoint contains or names.

        A path can also be the folder of a run, whose last checkpoint is loaded. docs/security.md describes what may
        run. The optimizer is only built when training needs it. Constructor arguments replace those of the checkpoint,
        such as `objective=MyObjective()`.

        Raises:
            UserError: If the file is damaged or not a checkpoint of patchword, if it names a class that may not be
                imported, if this version cannot build its model, or if `weights_only` is False.
        """
        if weights_only is False:
            raise UserError("weights_only=False would run code from the checkpoint: leave it out")
        name = str(checkpoint_path)
        saved = checkpoint_file.read(find(Path(checkpoint_path), name), name)
        rest = {key: value for key, value in saved["hyper_parameters"].items() if key not in given}
        module = cls(**rebuild.arguments(cls, rest, name) | given)
        module.on_load_checkpoint(saved)
        try:
            module.load_state_dict(saved["state_dict"], strict=strict)
        except RuntimeError as error:
            reason = printable(" ".join(str(error).split()), 300)
            raise UserError(f"{name}: the weights do not fit the model that the file describes: {reason}") from error
        return module.to(map_location)

    @classmethod
    def from_pretrained(
        cls: type[Module], name: str | Path, map_location: str | torch.device = "cpu", **given: Any
    ) -> Module:
        """Load a model that `patchword export` has written. No code that it contains or names is run.

        Args:
            name: The folder, or OWNER/NAME or OWNER/NAME@REVISION on the Hugging Face hub.
            map_location: The device.
            given: Constructor arguments that replace those of the model.

        Raises:
            UserError: If there is no such folder or repository, if it is not complete, or if it names a class that may
                not be imported.
        """
        saved = exported.read(str(name))
        rest = {key: value for key, value in saved["hyper_parameters"].items() if key not in given}
        module = cls(**rebuild.arguments(cls, rest, str(name)) | given)
        module.trained = saved["trained"]
        try:
            differing = module.encoder.load_state_dict(saved["heads"], strict=False)
            module.objective.load_state_dict(saved["objective"])
        except RuntimeError as error:
            reason = printable(" ".join(str(error).split()), 300)
            raise UserError(f"{name}: the weights do not fit the model that config.json describes: {reason}") from error
        if differing.unexpected_keys:
            unknown = differing.unexpected_keys[0]
            raise UserError(f"{name}: heads.safetensors has {unknown}, which the model does not have")
        missing = [key for key in differing.missing_keys if not key.startswith(("image.", "text.", "model."))]
        if missing:
            raise UserError(f"{name}: heads.safetensors does not have {missing[0]}: export the model again")
        return module.eval().to(map_location)

    @property
    def is_untrained(self) -> bool:
        """Whether the alignment has random weights: it was neither trained nor loaded nor pretrained as a pair."""
        pair = isinstance(self.encoder, PretrainedPair)
        pretrained = pair and self.encoder.spec["init_args"].get("model") is not None
        return not self._has_trained and self.trained is None and not pretrained

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer, with weight decay on matrices only, and the schedule, which is applied at every step."""
        groups = parameter_groups(self, self.encoder, self.fine_tuning)
        optimizer = optimizer_of(groups, self.optimizer)
        self._built = built(optimizer, groups)
        scheduler = LambdaLR(optimizer, self.schedule.factor(lambda: self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add how the model was trained, and each rank's random state: a resumed run draws the same dropout."""
        seed = os.environ.get("PL_GLOBAL_SEED")  # set by Lightning's seed_everything
        checkpoint.setdefault("trained", {}).update(
            steps=self.trainer.global_step,
            seed=None if seed is None else int(seed),
            patchword=__version__,
            hub=commits(self.encoder, self.trainer.datamodule),  # type: ignore[attr-defined]
        )
        checkpoint["optimizer_groups"] = self._built
        checkpoint["rng_states"] = distributed.gather(rng_state().to(self.device)[None]).cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the random states until training continues, because building loaders must not consume them.

        Raises:
            UserError: If training is to continue and the optimizer's state does not fit.
        """
        self.trained = checkpoint.get("trained", {})
        if self._trainer is not None and self.trainer.state.fn == "fit":
            groups = parameter_groups(self, self.encoder, self.fine_tuning)
            require_same_optimizer(checkpoint, self.hparams, groups)
            self._resumed = {"built": checkpoint.get("optimizer_groups")}
        self._rng_states = checkpoint.get("rng_states")

    def on_train_start(self) -> None:
        """Give a resumed optimizer the options and the schedule of the present configuration."""
        if self._resumed is not None:
            scheduler = self.trainer.lr_scheduler_configs[0].scheduler
            change_options(self.trainer.optimizers[0], scheduler, self._resumed["built"], self._built)  # type: ignore
        self._resumed = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Restore the random state in the first step after a resume."""
        self._has_trained = True
        if self._rng_states is not None and len(self._rng_states) == self.trainer.world_size:
            set_rng_state(self._rng_states[self.global_rank])
        self._rng_states = None
