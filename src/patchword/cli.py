"""The command line: LightningCLI with our module, its defaults, and errors of one line.

What this adds to LightningCLI: references (`${...}`) across configuration files and to command-line
overrides; a checkpoint's own model configuration as the default that files and the command line override
(LightningCLI lets the checkpoint override what was typed); packaged configurations found from any folder;
one clear line for a mistake.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from patchword import __version__, ranks
from patchword.configs_path import find_config
from patchword.errors import InputError, TrainingError

SUBCOMMANDS = {
    "fit": "train, validating on the way",
    "validate": "measure retrieval and grounding on the validation split",
    "test": "measure them on every test split, print a table, draw alignment maps",
    "predict": "write scores and alignment maps of a data set",
    "compare": "train and test a grid of objectives, or of any keys, over several seeds",
    "report": "gather finished runs into a table, plots and a page",
    "inspect": "see which patches of an image each word of a text aligned to, on a page",
    "bench": "measure what each objective costs, beside plain formulas and open_clip",
    "export": "write a trained model as timm and transformers load it, with a model card",
    "verify": "compare loss and gradients on several processes, in every mode, with one process",
}

HELP = f"""usage: patchword COMMAND [--config FILE ...] [--KEY VALUE ...]

Fine-grained image-text alignment objectives, compared in one Lightning module.

commands:
{chr(10).join(f"  {name:<10}{text}" for name, text in SUBCOMMANDS.items())}

examples:
  patchword fit --config configs/sparc.yaml
  patchword fit --config configs/sparc.yaml --model.objective.threshold 0.3 --seed_everything 1
  patchword fit --config configs/sparc.yaml --model.objective CLIP --print_config
  patchword fit --config configs/sparc.yaml --ckpt_path runs/sparc/version_0/checkpoints/last.ckpt   (resume)
  patchword test --config configs/sparc.yaml --ckpt_path runs/sparc/version_0/checkpoints/last.ckpt
  patchword compare --config configs/compare.yaml
  patchword report runs/compare
  patchword inspect --ckpt runs/sparc/version_0/checkpoints/last.ckpt --image photo.jpg --text "a red apple"
  patchword bench --objectives CLIP SPARC --batch 32

help:
  patchword COMMAND --help                           every key of a command
  patchword COMMAND --model.objective.help SPARC     the options of one class
  PATCHWORD_DEBUG=1 patchword ...                    the whole traceback of an error
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; `lightning` and `patchword` both end here.

    Args:
        arguments: What would be typed after the program's name; None for `sys.argv`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return
    if arguments[0] in ("-V", "--version"):
        print(f"patchword {__version__}")
        return
    if arguments[0] not in SUBCOMMANDS:
        _fail(f"'{arguments[0]}' is not a command; choose from {', '.join(SUBCOMMANDS)} (patchword --help)")
    # Threads that wait actively make training ten times slower where other processes want the cores, too.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.path.append(os.getcwd())  # so that --model.objective mine.MyObjective finds mine.py
    _quieten()
    ranks.end_with_launcher()
    try:
        _command(arguments[0])(arguments)
    except (KeyboardInterrupt, SystemExit) as end:
        # Lightning makes a SystemExit of a KeyboardInterrupt.
        if isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt):
            ranks.kill_children()
            sys.stderr.write("patchword: interrupted\n")
            raise SystemExit(128 + signal.SIGINT) from None
        raise
    except Exception as error:
        message = _explain(error)
        if ranks.has_lost_another(error):
            ranks.let_others_speak()
        ranks.kill_children()
        if message is None or os.environ.get("PATCHWORD_DEBUG"):
            raise
        _fail(message)
    finally:
        ranks.wait_for_children()


def _fail(message: str) -> None:
    ranks.let_the_first_speak()
    sys.stderr.write(f"patchword: error: {message}\n")
    raise SystemExit(2)


def _explain(error: BaseException) -> str | None:
    """One line for an error that the user can mend, or that came from elsewhere; None for one that is the program's."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, OSError) and isinstance(error.__context__, (InputError, TrainingError)):
        return _explain(error.__context__)  # loggers, closed because of a full disk, meet it, too
    if isinstance(error, TrainingError):
        return str(error)
    if ranks.has_lost_another(error):
        return f"another process of this run has ended or does not answer; see what it said ({_first_line(error)})"
    if isinstance(error, InputError):
        # A DataLoader's worker sends its traceback along; the last line is ours.
        return str(error).rpartition("InputError: ")[2].strip()
    if isinstance(error, OmegaConfBaseException):
        return f"a reference in the configuration cannot be resolved: {_first_line(error)}"
    if isinstance(error, MisconfigurationException):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error.strerror}: a file cannot be written; mend that, then resume with --ckpt_path from last.ckpt"
    if isinstance(error, RuntimeError) and str(error).startswith("The sizes `data_parallel_size="):
        return str(error)
    if isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict"):
        return "the checkpoint was made by another model than the configuration describes: " + _first_difference(error)
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _first_difference(error: Exception) -> str:
    """The first of torch's complaints about weights."""
    return " ".join(str(error).splitlines()[1:2]).strip()


def _quieten() -> None:
    """Silence what third parties print on every run and nobody can act on."""
    import logging

    class NoTips(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return "Tip:" not in record.getMessage()

    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(NoTips())
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # frozen towers
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*instantiate_classes. was deprecated.*")
    warnings.filterwarnings("ignore", ".*The dirpath has changed.*")
    warnings.filterwarnings("ignore", ".*recommended to use .*sync_dist=True.*")  # what we log is a mean over ranks
    warnings.filterwarnings("ignore", ".*returned a view tensor.*")  # T5's blocks under FSDP2; nothing changes them
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided.*")
    warnings.filterwarnings("ignore", ".*Experiment logs directory .* exists and is not empty.*")


def _command(name: str) -> Callable[[list[str]], object]:
    """The sub-command as a function of the arguments."""
    modules = {
        "bench": "patchword.bench.command",
        "compare": "patchword.compare.command",
        "export": "patchword.export.command",
        "inspect": "patchword.viewer.command",
        "report": "patchword.report.command",
        "verify": "patchword.verify.command",
    }
    if name in modules:
        return import_module(modules[name]).main
    return _cli(name)


def _cli(subcommand: str) -> Callable[[list[str]], object]:
    """The CLI as a function of the arguments, with one sub-command: building the others' parsers takes seconds."""
    import torch
    from jsonargparse import set_parsing_settings
    from lightning.pytorch import LightningDataModule, Trainer
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.loggers import Logger

    import patchword.cached
    import patchword.data.datamodule
    import patchword.data.folder
    import patchword.data.image_text
    import patchword.data.shards
    import patchword.data.zero_shot
    import patchword.encoders
    import patchword.objectives
    import patchword.suites  # noqa: F401 - imported so that short class names resolve
    from patchword.callbacks.checkpoint import Checkpoint
    from patchword.callbacks.cost import Cost
    from patchword.callbacks.maps import AlignmentMaps
    from patchword.callbacks.predictions import PredictionWriter
    from patchword.callbacks.results import Results
    from patchword.hints import improve, without_union
    from patchword.loggers import PLACE, TENSORBOARD, join
    from patchword.module import AlignmentModule

    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)

    class Parser(LightningArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> Any:
            if not self.exit_on_error:
                super().error(message, ex)
            if os.environ.get("PATCHWORD_DEBUG") and ex is not None:
                raise ex
            _fail(improve(message, self))

    class CLI(LightningCLI):
        first_step: int | None = 0  # None if Lightning is to find the checkpoint from which training goes on

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {subcommand: LightningCLI.subcommands()[subcommand]}

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_argument("--vars", type=dict, default={}, help="Free values for ${vars.NAME} references.")
            parser.add_lightning_class_args(Checkpoint, "checkpoint")
            parser.set_defaults(
                {"checkpoint.save_last": True, "checkpoint.save_top_k": 0, "checkpoint.every_n_train_steps": 100}
            )
            parser.add_lightning_class_args(AlignmentMaps, "maps")
            if subcommand == "predict":
                parser.add_lightning_class_args(PredictionWriter, "predictions")
            parser.add_subclass_arguments((Logger, list[Logger]), "loggers", skip=PLACE, instantiate=False)
            parser.set_defaults({"loggers": [TENSORBOARD]})

        def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
            parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
            if subcommand in ("validate", "test"):
                parser.set_defaults({"verbose": False})  # `Results` prints a table that can be read
            if subcommand == "predict":
                parser.set_defaults({"return_predictions": False})  # `PredictionWriter` has written them
            return parser

        def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
            arguments = _find_configs(list(args))
            checkpoint = _value_of("--ckpt_path", arguments)
            if checkpoint in ("last", "best", "hpc", "registry"):
                self.first_step = None
            elif checkpoint not in (None, "null"):
                saved = _saved(Path(str(checkpoint)))
                defaults = {f"model.{k}": v for k, v in saved["hyper_parameters"].items() if not k.startswith("_")}
                self._subcommand_parsers[subcommand].set_defaults(defaults)
                self.first_step = saved["global_step"] if subcommand == "fit" else 0
            self.config = parser.parse_args(arguments)

        def instantiate_trainer(self, **kwargs: Any) -> Trainer:
            trainer = super().instantiate_trainer(**kwargs)
            chosen = self.config_init[subcommand].loggers or []
            further = [_class_and_options(one) for one in (chosen if isinstance(chosen, list) else [chosen])]
            if trainer._checkpoint_connector._hpc_resume_path is not None:  # of a job that SLURM has requeued
                self.first_step = None
            trainer.loggers = join(trainer.loggers, further, self.first_step)
            return trainer

        def _parse_ckpt_path(self) -> None:
            """Nothing: `parse_arguments` has done it, with the command line in the right."""

        def before_fit(self) -> None:
            """Let no process outlive another."""
            ranks.watch_children(self.trainer)

        before_validate = before_test = before_predict = before_fit

        def instantiate_classes(self) -> None:
            try:
                super().instantiate_classes()
            except (ValueError, OSError, ImportError, TypeError) as error:
                # Raised by a constructor on a value from the configuration.
                raise InputError(without_union(str(error))) from error

    def _saved(path: Path) -> dict[str, Any]:
        if not path.is_file():
            raise InputError(f"--ckpt_path {path}: there is no such file")
        try:
            saved = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
            return {key: saved[key] for key in ("hyper_parameters", "global_step")}
        except Exception as error:
            raise InputError(f"--ckpt_path {path}: not a checkpoint of patchword ({_first_line(error)})") from error

    def run(arguments: list[str]) -> object:
        return CLI(
            AlignmentModule,
            LightningDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            trainer_defaults={"callbacks": [Cost(), Results()]},
            parser_kwargs={"parser_mode": "omegaconf+", "prog": "patchword"},
            parser_class=Parser,
            args=arguments,
        )

    return run


def _class_and_options(config: Any) -> tuple[type, dict[str, Any]]:
    """A class that the command line chose, and what to construct it with."""
    module, _, name = config.class_path.rpartition(".")
    return getattr(import_module(module), name), {**config.get("init_args", {}), **config.get("dict_kwargs", {})}


def _value_of(option: str, arguments: list[str]) -> str | None:
    """The last value given to `option`, as `--option value` or `--option=value`."""
    found = None
    for position, argument in enumerate(arguments):
        if argument == option and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif argument.startswith(option + "="):
            found = argument.partition("=")[2]
    return found


def _find_configs(arguments: list[str]) -> list[str]:
    """`arguments`, where `configs/NAME.yaml` that does not exist here means the one that patchword ships."""
    for position, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        name = value if value else argument
        is_config = (
            option in ("-c", "--config") if value else position > 0 and arguments[position - 1] in ("-c", "--config")
        )
        if is_config:
            arguments[position] = argument.replace(name, str(find_config(name)))
        if is_config and Path(name).is_file():
            _require_yaml(Path(name))
    return arguments


def _require_yaml(path: Path) -> None:
    """Name the file and the line, where a configuration is not what YAML allows."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no configuration: it must have keys such as model, data and trainer")
