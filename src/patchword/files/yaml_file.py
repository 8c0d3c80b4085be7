"""Read YAML files as plain data, and refuse duplicate keys."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from patchword.errors import UserError
from patchword.files.printable import printable


class _Loader(yaml.SafeLoader):
    """Loads YAML as plain data. A duplicate key in a mapping is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {printable(key.value)} occurs twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file as text, numbers, lists and mappings.

    Raises:
        UserError: If the file cannot be read, is not valid YAML, is nested too deeply, has a duplicate key, or contains
            other than plain data. The message names the file and, if known, the line.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply to be read as YAML") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:  # ValueError: an invalid date
        reason = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        raise UserError(f"{path} cannot be read as YAML: {printable(reason, 400)}") from error


def line_of(path: Path, word: str) -> int | None:
    """The line of the only key or value `word` of a YAML file, from 1; None if there is no such word or several."""
    scalars = [token for token in yaml.scan(path.read_text(encoding="utf-8")) if isinstance(token, yaml.ScalarToken)]
    lines = {token.start_mark.line + 1 for token in scalars if token.value == word}
    return lines.pop() if len(lines) == 1 else None
