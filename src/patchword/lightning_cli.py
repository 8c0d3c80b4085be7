"""The sub-commands `fit`, `validate`, `test` and `predict`: LightningCLI with patchword's module and defaults.

It extends LightningCLI in these points. References (`${...}`) work across configuration files and with options of the
command line. The model configuration in a checkpoint is the default, which files and the command line override (in
LightningCLI, the checkpoint overrides typed options). Packaged configurations are found from any folder. User errors
are reported in one line.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

# These imports make short class names resolve.
import patchword.cached
import patchword.data.scenes.datamodule
import patchword.data.tables.image_text
import patchword.encoders
import patchword.objectives
import patchword.suites.zero_shot  # noqa: F401
from patchword.callbacks.checkpoint import Checkpoint
from patchword.callbacks.cost import Cost
from patchword.callbacks.maps import AlignmentMaps
from patchword.callbacks.predictions import PredictionWriter
from patchword.callbacks.results import Results
from patchword.commands import chosen_checkpoint, remembered
from patchword.commands.blame import blamed, described, flatten, line_of_user
from patchword.commands.config_files import find_configs, typed
from patchword.commands.explain import explain, fail
from patchword.commands.hints import improve, without_union
from patchword.commands.keys import Keys
from patchword.errors import UserError
from patchword.files.local_path import is_local
from patchword.module import AlignmentModule
from patchword.provenance import rebuild
from patchword.training import checkpoint_file, processes
from patchword.training.last_checkpoint import find
from patchword.training.loggers import PLACE, TENSORBOARD, join, number_apart
from patchword.training.run_folder import RunFolders

set_parsing_settings(omegaconf_absolute_to_relative_paths=True)


class Parser(LightningArgumentParser):
    """A parser that reports errors in one line."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print the error in one line, and exit with code 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        if os.environ.get("PATCHWORD_DEBUG") and ex is not None:
            raise ex
        fail(improve(message, self))


class SaveConfig(SaveConfigCallback):
    """Writes the configuration of `fit` to `config.yaml`, and that of another command to `config_<command>.yaml`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file."""
        if stage != "fit":
            self.config_filename = f"config_{trainer.state.fn.value}.yaml"  # type: ignore[union-attr]
        super().setup(trainer, pl_module, stage)


class CLI(LightningCLI):
    """LightningCLI with only one sub-command, because building the parsers of the others takes seconds."""

    only: str  # the sub-command
    options: LightningArgumentParser  # the parser of the sub-command
    first_step: int | None = 0  # None if Lightning finds the checkpoint from which training is resumed

    def __init__(self, subcommand: str, folders: RunFolders, **kwargs: Any) -> None:
        self.only = subcommand
        self.folders = folders
        self.config: Any = None
        self.checkpoint: str | None = None
        try:
            super().__init__(**kwargs)
        except Exception as error:
            if (about := self._about(error)) is None:
                raise
            raise UserError(f"{about}: {' '.join(str(error).split())}") from error

    def _about(self, error: Exception) -> str | None:
        """The typed value that an error is about; None if the error already has a clear message."""
        if self.config is None or (explain(error) is not None and not isinstance(error, MisconfigurationException)):
            return None
        defaults = dict(flatten(self.options.get_defaults()))
        chosen = dict(flatten(self.config[self.only]))
        return blamed(error, chosen, defaults)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The sub-command, with the arguments that its parser omits."""
        return {self.only: LightningCLI.subcommands()[self.only]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks and loggers of every run."""
        self.options = parser
        parser.add_argument("--vars", type=dict, default={}, help="Custom values for ${vars.NAME} references.")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True, "checkpoint.save_top_k": 0})
        parser.add_lightning_class_args(AlignmentMaps, "maps")
        if self.only == "predict":
            parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_subclass_arguments((Logger, list[Logger]), "loggers", skip=PLACE, instantiate=False)
        parser.set_defaults({"loggers": [TENSORBOARD]})
        parser.usage = f"patchword {self.only} [--config FILE ...] [--KEY VALUE ...]"
        groups: Any = parser._action_groups
        groups.sort(key=_is_of_trainer)  # --help begins with patchword's own keys

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments, with a checkpoint's model configuration as the default."""
        if self.only in ("validate", "test"):
            self.options.set_defaults({"verbose": False})  # `Results` prints a more readable table
        if self.only == "predict":
            self.options.set_defaults({"return_predictions": False})  # `PredictionWriter` writes them
        arguments = find_configs(self._checked(list(args)))
        checkpoint, name = chosen_checkpoint.named(arguments)
        if checkpoint in ("last", "best"):
            config = parser.parse_args(arguments, _skip_validation=True)[self.only]
            checkpoint = str(chosen_checkpoint.in_folder(checkpoint, name, config))
            rank_zero_info(f"{name}: {checkpoint}")
        if checkpoint == "hpc":
            self.first_step = None
        elif checkpoint is not None:
            file = find(Path(checkpoint), name)
            checkpoint, saved = str(file), checkpoint_file.read(file, name)
            rebuild.check(AlignmentModule, saved["hyper_parameters"], name, typed(arguments))
            known = {k: v for k, v in saved["hyper_parameters"].items() if not k.startswith("_")}
            defaults = {f"model.{k}": v for k, v in known.items() if (k, v) != ("optimizer", None)}
            self.options.set_defaults(defaults)
            self.first_step = saved["global_step"] if self.only == "fit" else 0
        try:
            self.config = parser.parse_args(arguments)
        except Exception as error:  # the user's modules, which are imported here, may raise anything
            if explain(error) is not None or line_of_user(error) is None:
                raise
            raise UserError(f"a class of yours cannot be imported: {described(error)}") from error
        chosen = self.config[self.only]
        if chosen.weights_only is False:
            raise UserError("weights_only: false would run code from the checkpoint; remove this option")
        chosen.weights_only = True
        rebuild.require_optimizer(chosen.model.optimizer)
        if chosen.ckpt_path is not None and not name:
            remedy = "set it on the command line (--ckpt_path), or write it as a plain path"
            raise UserError(f"ckpt_path {chosen.ckpt_path}: {remedy}")
        # Until the classes are built: Lightning would let the checkpoint's options override the typed ones.
        self.checkpoint, chosen.ckpt_path = checkpoint, None
        if chosen.trainer.barebones or chosen.trainer.enable_checkpointing is False:
            self.options.callback_keys.remove("checkpoint")
        _settle(chosen.checkpoint)

    def _checked(self, arguments: list[str]) -> list[str]:
        """Check the keys, and keep the list of all keys, so that the next check needs no torch."""
        schema = remembered.schema(self.only)
        if schema is None:
            try:
                from patchword.commands.schema import config_schema

                schema = config_schema(self.options)
            except Exception:  # jsonargparse has it since 4.53 and may change it; the parser itself reports mistakes
                return arguments
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                remembered.keep_schema(self.only, schema)
        return Keys(schema).check(arguments)

    def before_instantiate_classes(self) -> None:
        """Put the checkpoint back into the configuration."""
        self.config[self.only].ckpt_path = self.checkpoint

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with all loggers of the run."""
        trainer = super().instantiate_trainer(**kwargs)
        chosen = self.config_init[self.only].loggers or []
        further = [_class_and_options(one) for one in (chosen if isinstance(chosen, list) else [chosen])]
        if trainer._checkpoint_connector._hpc_resume_path is not None:  # set if SLURM has requeued the job
            self.first_step = None
        if self.only != "fit":
            for logger in trainer.loggers:
                number_apart(logger, self.only)
        self._claim(trainer)
        trainer.loggers = join(trainer.loggers, further, self.first_step)
        return trainer

    def _claim(self, trainer: Trainer) -> None:
        """Lock the folders that this run writes to, and keep the files of an earlier training run in them."""
        if rank_zero_only.rank != 0 or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        saving = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        places: list[Any] = [callback.dirpath for callback in saving if self.only == "fit"]
        if isinstance(trainer.logger, (CSVLogger, TensorBoardLogger)):
            places.append(trainer.logger.log_dir)
            if self.only != "fit" and Path(trainer.logger.log_dir, "config.yaml").exists():
                self.first_step = None
        elif trainer.logger is None and saving and self.only == "fit":
            places.append(os.path.join(trainer.default_root_dir, "checkpoints"))
        for place in filter(None, places):
            if is_local(place):
                self.folders.claim(Path(place))

    def before_fit(self) -> None:
        """Let all processes of the run end together."""
        processes.watch_children(self.trainer)

    def before_test(self) -> None:
        """Print a message if nothing was trained."""
        self.before_fit()
        if self.config[self.only].ckpt_path is None and self.model.is_untrained:
            rank_zero_info(f"NOTHING WAS TRAINED: {self.only} has no --ckpt_path, so its alignment is random")

    before_validate = before_predict = before_test

    def instantiate_classes(self) -> None:
        """Build all objects, and report an exception of a constructor as an error in the configuration."""
        try:
            super().instantiate_classes()
        except (ValueError, OSError, ImportError, TypeError) as error:
            raise UserError(without_union(str(error))) from error


def run(subcommand: str, arguments: list[str]) -> object:
    """Run `fit`, `validate`, `test` or `predict` with the typed arguments, which begin with the sub-command."""
    with RunFolders() as folders:
        return CLI(
            subcommand,
            folders,
            model_class=AlignmentModule,
            datamodule_class=LightningDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            trainer_defaults={"callbacks": [Cost(), Results()]},
            parser_kwargs={"parser_mode": "omegaconf+", "prog": "patchword"},
            parser_class=Parser,
            args=arguments,
        )


def _is_of_trainer(group: Any) -> bool:
    return any(action.dest.startswith("trainer.") for action in group._group_actions)


def _settle(saving: Namespace) -> None:
    """Set the default interval of checkpoints, and check that their options are consistent."""
    if saving.every_n_train_steps is None and saving.every_n_epochs is None and saving.train_time_interval is None:
        saving.every_n_train_steps = 100
    if saving.monitor is not None and saving.save_top_k == 0:
        raise UserError(
            f"checkpoint.monitor is {saving.monitor}, but checkpoint.save_top_k is 0, which keeps no best "
            "checkpoint: add --checkpoint.save_top_k 1"
        )


def _class_and_options(config: Any) -> tuple[type, dict[str, Any]]:
    """A configured class, and the options to construct it with."""
    module, _, name = config.class_path.rpartition(".")
    return getattr(import_module(module), name), {**config.get("init_args", {}), **config.get("dict_kwargs", {})}
