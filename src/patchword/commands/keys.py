"""Finds misspelled keys in configurations and options from a JSON Schema, before torch is imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from patchword.commands.config_files import find_config
from patchword.commands.hints import GONE, nearest, removed
from patchword.errors import UserError
from patchword.files.yaml_file import line_of, read_yaml

FLAGS = {"print_config", "help", "import"}  # options of the command itself


class Keys:
    """The keys that a schema accepts, and the classes that the files and options have chosen so far.

    Args:
        schema: The schema of `commands.schema.config_schema`.

    Attributes:
        has_foreign: A class that the schema does not describe was chosen. Its options are not checked.
        is_unsure: A part of the configuration is in another file, or written in another way, so the chosen classes are
            not known. Options of classes are not checked.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema
        self.classes: dict[str, str] = {}
        self.has_foreign = False
        self.is_unsure = False
        self.has_own = False  # a module of the user is imported, which may have classes of any name
        self.has_defaults = True  # False with a checkpoint, whose classes are the defaults

    def check(self, arguments: list[str]) -> list[str]:
        """Check the keys of all configurations and options.

        Returns:
            The arguments, in which the names of the described classes have their own upper and lower case.

        Raises:
            UserError: A key or the short name of a class is not accepted. The message names it, the file and the line,
                and suggests the nearest one.
        """
        try:
            return self._checked(arguments)
        except RecursionError:  # a YAML file that contains itself; the parser reports it
            self.is_unsure = True
            return arguments

    def _checked(self, arguments: list[str]) -> list[str]:
        self.has_defaults = not any(word.startswith("--ckpt_path") for word in arguments)
        self.has_own = any(word.partition("=")[0] == "--import" for word in arguments)
        checked = list(arguments)
        for position, word in enumerate(arguments):
            option, equals, value = word.partition("=")
            if not equals:
                value = arguments[position + 1] if position + 1 < len(arguments) else ""
            key = option.removeprefix("--").removesuffix("+")
            if option in ("-c", "--config"):
                self._check_file(value)
            elif option.startswith("--") and key.endswith(".help") and (not value or value.startswith("-")):
                continue  # the class is the one that was chosen
            elif option.startswith("--") and key not in FLAGS:
                spelled = self._check_option(key.removesuffix(".help"), value)
                if spelled != value:
                    checked[position if equals else position + 1] = f"{option}={spelled}" if equals else spelled
        return checked

    def _check_file(self, name: str) -> None:
        """Check the keys of a configuration."""
        path = find_config(name)
        if path.is_file():
            config = read_yaml(path)
        elif name.lstrip().startswith("{"):
            config = _parsed(name)
        else:
            self.is_unsure = True  # a URL
            return
        if isinstance(config, dict) and "variants" in config:
            raise UserError(f"{name} is a plan of several runs: use it with `patchword compare --config {name}`")
        if isinstance(config, dict) and "ckpt_path" in config:
            self.has_defaults = False
        self._check_value(config, self.schema, "", path if path.is_file() else None)

    def _check_option(self, key: str, value: str) -> str:
        """Check one option and return its value, with a class name spelled right."""
        node, path = self.schema, ""
        parts = key.split(".")
        for position, part in enumerate(parts):
            if described := self._classes(node):
                if part == "class_path":
                    return self._choose(node, path, self._spelled(described, value), None)
                if part in ("init_args", "dict_kwargs"):
                    if part == "dict_kwargs":
                        return value
                    continue
                options = self._options(node, described, path)
                if options is None:
                    return value
                if part not in options:
                    raise self._no_option(path, part, options, None)
                node = options[part]
            elif options := self._properties(node):
                if part not in options:
                    raise self._unknown(f"{path}.{part}", options, None)
                node = options[part]
            else:
                return value
            path = ".".join(parts[: position + 1]).replace(".init_args", "")
        parsed = _parsed(value)
        if isinstance(parsed, str) and (described := self._classes(node)):
            return self._choose(node, path, self._spelled(described, value), None)
        self._check_value(parsed, node, path, None)
        return value

    def _spelled(self, described: dict[str, Any], name: str) -> str:
        """The name of a described class in its own upper and lower case; other names as they are."""
        if name in described or self.has_own:
            return name
        return {one.lower(): one for one in described}.get(name.lower(), name)

    def _check_value(self, value: Any, node: dict[str, Any], path: str, source: Path | None) -> None:
        """Check the keys of a value of a configuration; `source` is its file, None for the command line."""
        if isinstance(value, str) and self._classes(node):
            self._choose(node, path, value, source)
        elif isinstance(value, str) and self._properties(node):
            self.is_unsure = True  # the name of another file
        elif isinstance(value, list):
            for item in value:
                for place in self._alternatives(node):
                    if isinstance(place.get("items"), dict):
                        self.classes.pop(f"{path}[]", None)
                        self._check_value(item, place["items"], f"{path}[]", source)
        elif isinstance(value, dict) and (described := self._classes(node)):
            if isinstance(name := value.get("class_path"), str):
                self._choose(node, path, name, source)
            options, given = self._options(node, described, path), value.get("init_args")
            if options is not None and isinstance(given, dict):
                for key, inner in self._texts(given):
                    if key not in options:
                        raise self._no_option(path, key, options, source)
                    self._check_value(inner, options[key], f"{path}.{key}", source)
        elif isinstance(value, dict) and (options := self._properties(node)):
            for key, inner in self._texts(value):
                if key not in options:
                    raise self._unknown(f"{path}.{key}", options, source)
                self._check_value(inner, options[key], f"{path}.{key}".removeprefix("."), source)
        elif isinstance(value, dict):
            for part in self._alternatives(node):
                for key, inner in value.items():
                    self._check_value(inner, part.get("additionalProperties") or {}, f"{path}.{key}", source)

    def _texts(self, value: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
        """The items of a mapping, without keys with dots and keys that are no text, which only the parser knows."""
        for key, inner in value.items():
            if isinstance(key, str) and "." not in key:
                yield key, inner
            else:
                self.is_unsure = True

    def _unknown(self, wrong: str, options: dict[str, Any], source: Path | None) -> UserError:
        """The error about a key of a group that is not one of its options."""
        wrong = wrong.removeprefix(".")
        group, _, key = wrong.rpartition(".")
        beside = (f"{group}.{one}".removeprefix(".") for one in options if one != "$schema")
        known = [*dict.fromkeys([*beside, *(name for name, _ in self.options())])]
        # `lr` instead of `model.optimizer.lr`, or `seed` instead of `seed_everything`
        longer = [one for one in known if one.endswith(f".{wrong}") or one.startswith(f"{wrong}_")]
        near = f"; did you mean {' or '.join(longer[:3])}?" if longer else nearest(wrong, known)
        return _error(source, key, f"there is no option '{wrong}'{near}")

    def _no_option(self, path: str, wrong: str, options: dict[str, Any], source: Path | None) -> UserError:
        """The error about a key that is not an option of the class of `path`."""
        name = self.classes[path].rpartition(".")[2]
        near = nearest(wrong, options.keys() - {"$schema"})
        return _error(source, wrong, f"{_key(path)}: {name} has no option '{wrong}'{near}")

    def _choose(self, node: dict[str, Any], path: str, name: str, source: Path | None) -> str:
        """Remember the class that `path` now has, and return its name."""
        described = self._classes(node)
        is_own = self.has_own or self.has_foreign  # the user's module may have a class of this name
        if name not in described and name.isidentifier() and not (is_own or self._accepts_text(node)):
            short = [one for one in described if "." not in one]
            missing = f"{_key(path)}: there is no class '{name}'{nearest(name, short)}"
            raise _error(source, name, removed(name) if name in GONE else missing)
        if name.endswith((".yaml", ".yml", ".json")):
            self.is_unsure = True  # another file names the class
        self.classes[path] = name
        self.has_foreign = self.has_foreign or name not in described
        return name

    def _options(self, node: dict[str, Any], described: dict[str, Any], path: str) -> dict[str, Any] | None:
        """The options of the class that `path` has; None if that class is unknown."""
        if self.is_unsure:
            return None
        if path not in self.classes and self.has_defaults and isinstance(default := node.get("default"), dict):
            self.classes[path] = default.get("class_path", "")
        return described.get(self.classes.get(path, ""))

    def _classes(self, node: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The options of each class that `node` describes, by the class's names; empty if it describes no class."""
        found = {}
        for part in self._alternatives(node):
            properties = part.get("properties", {})
            for name in properties.get("class_path", {}).get("enum", []):
                found[name] = properties["init_args"].get("properties", {})
        return found

    def _accepts_text(self, node: dict[str, Any]) -> bool:
        """Whether a value can be a text other than the name of a class or a reference, such as `ddp`."""
        # a type is a name, such as "string", or a list of names
        texts = [part for part in self._alternatives(node) if "string" in part.get("type", ()) or "enum" in part]
        return any("title" not in part and "pattern" not in part for part in texts)

    def _properties(self, node: dict[str, Any]) -> dict[str, Any]:
        """The keys of a group of options; empty if `node` is no group."""
        groups = [part["properties"] for part in self._alternatives(node) if "properties" in part]
        return groups[0] if len(groups) == 1 and "class_path" not in groups[0] else {}

    def _alternatives(self, node: Any) -> list[dict[str, Any]]:
        """The schemas of which `node` accepts any, without references."""
        if not isinstance(node, dict):
            return []
        if "$ref" in node:
            return self._alternatives(self.schema["$defs"][node["$ref"].rpartition("/")[2]])
        if "anyOf" in node:
            return [part for one in node["anyOf"] for part in self._alternatives(one)]
        return [node]

    def options(self) -> Iterator[tuple[str, list[str]]]:
        """All keys, also those of the classes chosen so far, with the values of those that have a list of values."""
        return self._within(self.schema, "")

    def _within(self, node: dict[str, Any], path: str) -> Iterator[tuple[str, list[str]]]:
        described = self._classes(node)
        inner = (self._options(node, described, path) or {}) if described else self._properties(node)
        if path and described:
            yield path, [name for name in described if "." not in name]
        elif path and not inner:
            yield path, [str(value) for part in self._alternatives(node) for value in part.get("enum", [])]
        for key, one in inner.items():
            if key != "$schema":
                yield from self._within(one, f"{path}.{key}".removeprefix("."))


def _parsed(text: str) -> Any:
    """The value of an option; None if it is not YAML, which the parser reports."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _key(path: str) -> str:
    """The key of an option in messages."""
    return path.replace("[]", "")


def _error(source: Path | None, word: str, message: str) -> UserError:
    """The error about `word` of the file `source`, or of the command line."""
    if source is None:
        return UserError(message)
    line = line_of(source, word)
    return UserError(f"{source}, line {line}: {message}" if line else f"{source}: {message}")
