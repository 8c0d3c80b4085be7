"""Tab completion in the shell, by argcomplete (`pip install patchword[completion]`).

Bash and zsh call `patchword` at each press of the tab key after `eval "$(register-python-argcomplete patchword)"`.
Torch is not imported: the keys of `fit` and its like come from the remembered schema (see `remembered`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterable

from patchword.commands import remembered
from patchword.commands.config_files import packaged_configs
from patchword.commands.keys import Keys
from patchword.errors import UserError


def words_to_complete() -> list[str] | None:
    """The words after `patchword`, without the unfinished one, if the shell asks for completions; otherwise None."""
    if "_ARGCOMPLETE" not in os.environ:
        return None
    typed = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    words = typed.split()
    return words[1:] if typed.endswith(" ") else words[1:-1]


def complete_command(commands: Iterable[str]) -> None:
    """Complete the name of a command, and end the program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=list(commands))
    _complete(parser)


def complete_keys(words: list[str]) -> None:
    """Complete a key or a value of a command of Lightning, and end the program; `words` begin with the command."""
    parser = argparse.ArgumentParser()
    files = parser.add_argument("--config", nargs="*")
    files.completer = _configs  # type: ignore[attr-defined]
    parser.add_argument("--print_config", nargs="?")
    keys = Keys(remembered.schema(words[0]) or {})
    with contextlib.suppress(UserError):
        keys.check(words)
    for key, values in keys.options():
        parser.add_argument(f"--{key}", choices=values or None)
    complete_arguments(parser)


def complete_arguments(parser: argparse.ArgumentParser) -> None:
    """Complete the words after the name of a command with its parser, and end the program."""
    os.environ["_ARGCOMPLETE"] = "2"  # the number of words before the first argument: patchword and the command
    _complete(parser)


def _complete(parser: argparse.ArgumentParser) -> None:
    import argcomplete

    argcomplete.autocomplete(parser)


def _configs(prefix: str, **_: object) -> list[str]:
    """The packaged configurations and the YAML files that begin with `prefix`."""
    from argcomplete.completers import FilesCompleter

    files = FilesCompleter(["yaml", "yml"])(prefix)
    return sorted({*files, *(name for name in packaged_configs() if name.startswith(prefix))})
