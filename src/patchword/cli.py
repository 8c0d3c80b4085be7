"""The command `patchword`. Each sub-command is imported only when it is used, and errors are printed in one line."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

from patchword.commands import completion, remembered
from patchword.commands.config_files import require_configs
from patchword.commands.explain import explain, fail, foreign_exit
from patchword.commands.keys import Keys
from patchword.errors import UserError
from patchword.training import processes
from patchword.version import __version__

SUBCOMMANDS = {
    "fit": "train, with validation",
    "validate": "measure retrieval and grounding on the validation split",
    "test": "measure retrieval and grounding on all test splits, print tables, draw alignment maps",
    "predict": "write scores and alignment maps for a data set",
    "compare": "train and test a grid of objectives, or of any other keys, over several seeds",
    "report": "summarize finished runs in a table, plots and a page",
    "inspect": "show on a page which patches of an image each word of a text aligned to",
    "bench": "measure what each objective costs, compared with plain formulas and open_clip",
    "export": "export a trained model in the formats of timm and transformers, with a model card",
    "configs": "list the packaged configurations",
    "schema": "print the JSON Schema of the configurations, for editors",
    "check": "check one objective, such as your own, against the contract of all objectives, in seconds",
    "verify": "compare the loss and gradients of several processes with those of one process, in every mode",
}

LIGHTNING = ("fit", "validate", "test", "predict")

HELP = f"""usage: patchword COMMAND [--config FILE ...] [--KEY VALUE ...]

Fine-grained image-text alignment objectives, compared in one Lightning module.

commands:
{chr(10).join(f"  {name:<10}{text}" for name, text in SUBCOMMANDS.items())}

examples:
  patchword configs
  patchword fit --config configs/sparc.yaml
  patchword fit --config configs/sparc.yaml --model.objective.threshold 0.3 --seed_everything 1
  patchword fit --config configs/sparc.yaml --model.objective CLIP --print_config
  patchword fit --config configs/sparc.yaml --ckpt_path runs/sparc/version_0/checkpoints/last.ckpt   (resume)
  patchword test --config configs/sparc.yaml --ckpt_path runs/sparc/version_0/checkpoints/last.ckpt
  patchword compare --config configs/compare.yaml
  patchword report runs/compare
  patchword inspect --ckpt runs/sparc/version_0/checkpoints/last.ckpt --image photo.jpg --text "a red apple"
  patchword bench --objectives CLIP SPARC --batch 32
  patchword check my_module.MyObjective

help:
  patchword COMMAND --help                           list all keys of a command
  patchword COMMAND --model.objective.help SPARC     list the options of one class
  patchword COMMAND --import MODULE ...              import your module, whose classes a checkpoint names
  PATCHWORD_DEBUG=1 patchword ...                    print the complete traceback of an error
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line of `patchword` and `lightning`; None for the arguments in `sys.argv`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if (words := completion.words_to_complete()) is not None:
        _complete(words)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return
    if arguments[0] in ("-V", "--version"):
        print(f"patchword {__version__}")
        return
    if arguments[0] not in SUBCOMMANDS:
        fail(f"'{arguments[0]}' is not a command; choose from {', '.join(SUBCOMMANDS)} (patchword --help)")
    # Threads that wait actively make training ten times slower if other processes use the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.path.append(os.getcwd())  # so that --model.objective mine.MyObjective finds mine.py
    _quieten()
    processes.end_with_launcher()
    try:
        require_configs(arguments)
        if arguments[0] in LIGHTNING:
            _lightning(arguments)
        else:
            _module(arguments[0]).main(_import_named(arguments))
    except (KeyboardInterrupt, SystemExit) as end:
        # Lightning turns a KeyboardInterrupt into a SystemExit.
        if isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt):
            processes.kill_children()
            sys.stderr.write("patchword: interrupted\n")
            raise SystemExit(128 + signal.SIGINT) from None
        if isinstance(end, SystemExit) and (place := foreign_exit(end)) is not None:
            fail(f"{place} ended the program (sys.exit)")
        raise
    except Exception as error:
        message = explain(error)
        if processes.has_lost_another(error):
            processes.let_others_speak()
        processes.kill_children()
        if message is None or os.environ.get("PATCHWORD_DEBUG"):
            raise
        fail(message)
    finally:
        processes.wait_for_children()


def _import_named(arguments: list[str]) -> list[str]:
    """Import the modules that `--import` names, and return the other arguments."""
    rest = []
    words = iter(arguments)
    for word in words:
        option, _, module = word.partition("=")
        if option != "--import":
            rest.append(word)
            continue
        module = module or next(words, "")
        try:
            import_module(module)
        except Exception as error:  # a module may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"--import {module}: this module cannot be imported ({reason})") from error
    return rest


def _quieten() -> None:
    """Suppress messages of other libraries that appear in every run and require no action."""
    import logging

    class NoTips(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return "Tip:" not in record.getMessage()

    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(NoTips())
    for message in (
        "in eval mode at the start of training",  # frozen towers
        "does not have many workers",
        "LeafSpec",
        "You are trying to `self.log.* but `Trainer.barebones=True",
        "instantiate_classes. was deprecated",
        "The dirpath has changed",
        "recommended to use .*sync_dist=True",  # logged values are already means over ranks
        "returned a view tensor",  # T5's blocks with FSDP2; no view is modified
        # patchword's Checkpoint finds its state under another key. Lightning still warns about other missing callbacks.
        r"callbacks used to create the checkpoint.*: \[\"Checkpoint\{[^}]*\}\"\]\.",
    ):
        warnings.filterwarnings("ignore", f".*{message}")


def _complete(words: list[str]) -> None:
    """Let the shell complete the word after `words`, and end the program."""
    command = words[0] if words else ""
    if command in LIGHTNING:
        completion.complete_keys(words)
    elif command in SUBCOMMANDS:
        completion.complete_arguments(_module(command).parser())
    else:
        completion.complete_command(SUBCOMMANDS)


def _lightning(arguments: list[str]) -> None:
    """Run a sub-command of Lightning. Misspelled keys, help and configurations need no torch if they are remembered."""
    answers: AbstractContextManager[None] = nullcontext()
    if not os.environ.get("PATCHWORD_DEBUG"):
        arguments, is_known = _check(arguments)
        if remembered.only_prints(arguments):
            if is_known and (answer := remembered.answer(arguments)) is not None:
                _print(answer)
                raise SystemExit(0)
            answers = remembered.kept(lambda: _check(arguments))
    with answers:
        import_module("patchword.lightning_cli").run(arguments[0], _import_named(arguments))


def _check(arguments: list[str]) -> tuple[list[str], bool]:
    """Check the keys if the schema is remembered.

    Returns:
        The arguments, with the upper and lower case of the class names, and whether all their classes are known.
    """
    schema = remembered.schema(arguments[0])
    if schema is None:
        return arguments, False
    keys = Keys(schema)
    checked = keys.check(arguments)
    return checked, not (keys.has_foreign or keys.is_unsure)


def _print(text: str) -> None:
    """Print a text; a reader that stops early, such as `head`, is no error."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _module(name: str) -> Any:
    """The module of another sub-command, with its functions `parser` and `main`."""
    own = {"configs": "commands.list_configs", "inspect": "viewer.command", "schema": "commands.schema_file"}
    return import_module("patchword." + own.get(name, f"{name}.command"))
