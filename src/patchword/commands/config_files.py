"""Finds configuration files, including those that are packaged with patchword."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patchword.errors import UserError
from patchword.files.yaml_file import read_yaml

PACKAGED = Path(__file__).parents[1] / "configs"


def find_config(name: str) -> Path:
    """The file `name`, or the packaged file if `name` does not exist and begins with `configs/`."""
    shipped = PACKAGED.parent / name
    own = Path(name)
    return shipped if name.startswith("configs/") and not own.exists() and shipped.is_file() else own


def packaged_configs() -> list[str]:
    """The names of all packaged configurations, such as `configs/sparc.yaml`."""
    return sorted(str(path.relative_to(PACKAGED.parent)) for path in PACKAGED.rglob("*.yaml"))


def existing_config(name: str) -> Path:
    """The file `name`, or the packaged file of this name.

    Raises:
        UserError: There is no such file. The message suggests files in the same folder and packaged ones.
    """
    path = find_config(name)
    if path.exists():
        return path
    beside = [str(file) for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(name, dict.fromkeys([*packaged_configs(), *beside]), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`patchword configs` lists the packaged files"
    raise UserError(f"--config {name}: there is no such file; {hint}")


def require_configs(arguments: list[str]) -> None:
    """Check that the configurations on the command line exist and are YAML. This takes no time.

    Raises:
        UserError: A file does not exist, or is not YAML.
    """
    for _, name in _configs(arguments):
        if not name.lstrip().startswith("{") and "://" not in name:
            read_yaml(existing_config(name))


def find_configs(arguments: list[str]) -> list[str]:
    """Replace each `configs/NAME.yaml` in `arguments` that does not exist here by the packaged file.

    Raises:
        UserError: A configuration is not YAML, or not a mapping.
    """
    for position, name in _configs(arguments):
        if Path(name).is_file() and not isinstance(read_yaml(Path(name)), dict):
            raise UserError(f"{name} contains no configuration: it must have keys such as model, data and trainer")
        arguments[position] = arguments[position].replace(name, str(find_config(name)))
    return arguments


def typed(arguments: list[str]) -> set[str]:
    """All strings in the arguments and in the configurations that they name."""
    found = {text for argument in arguments for text in (argument, argument.partition("=")[2])}
    for _, name in _configs(arguments):
        found |= set(_texts(read_yaml(Path(name)))) if Path(name).is_file() else set()
    return found


def value_of(option: str, arguments: list[str]) -> str | None:
    """The last value given to `option`, as `--option value` or `--option=value`."""
    found = None
    for position, argument in enumerate(arguments):
        if argument == option and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif argument.startswith(option + "="):
            found = argument.partition("=")[2]
    return found


def config_values(arguments: list[str]) -> list[str]:
    """The configurations on the command line, in order."""
    return [name for _, name in _configs(arguments)]


def _configs(arguments: list[str]) -> Iterator[tuple[int, str]]:
    """The names of configurations and their positions in the arguments."""
    for position, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        if value and option in ("-c", "--config"):
            yield position, value
        elif position > 0 and arguments[position - 1] in ("-c", "--config"):
            yield position, argument


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
