"""Turn the parser's messages into one that says what would have been right."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any


def improve(message: str, parser: Any) -> str:
    """A shorter message with the nearest accepted name, where `message` is of a kind that is known here.

    Args:
        message: What jsonargparse says.
        parser: The parser that says it.
    """
    option = re.search(r"class_path '([\w.]+)':\s+Option '(\w+)' is not accepted", message)
    if option:
        cls, wrong = _import(option[1]), option[2]
        return f"{cls.__name__} has no option '{wrong}'{_nearest(wrong, _accepted(cls))}"
    path = re.search(r'key "([\w.]+)".*dot import path string: ([\w.]+)', message, re.DOTALL)
    if path:
        return f"{path[1]}: there is no class '{path[2]}'{_nearest(path[2], _class_names(path[1]))}"
    unknown = re.search(r"(?:unrecognized arguments: --|does not accept option '|[Kk]ey ')([\w.]+)", message)
    if unknown:
        wrong = unknown[1]
        return f"there is no option '{wrong}'{_nearest(wrong, _options(parser))}"
    nested = re.search(r"Given value: NestedArg\(key='([\w.]+)', val=(.+)\)", message)
    if nested:
        key = re.search(r'key "([\w.]+)"', message)
        place = key[1] if key else "the configuration"
        wrong = re.search(rf'Parser key "{re.escape(nested[1])}":(.*?)(?=\n {{,4}}- Expected|\Z)', message, re.DOTALL)
        if wrong and (expected := re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", wrong[1], re.MULTILINE)):
            return f"{place}.{nested[1]} must be {' or '.join(map(_readable, expected))}, not {nested[2]}"
        return f"{place} does not accept '{nested[1]}'"
    return without_union(message)


def without_union(message: str) -> str:
    """Only what is wrong with the value, where the alternative was to give none."""
    parts = re.findall(r"^ *- (.+(?:\n(?! *- | *Given value).+)*)", message, re.MULTILINE)
    telling = [part for part in parts if "NoneType" not in part]
    if "Union subtypes" not in message or len(telling) != 1:
        return message
    key = re.search(r'key "([\w.]+)"', message)
    given = re.search(r"Given value: (.{1,60})$", message, re.MULTILINE)
    where = f"{key[1]}: " if key else ""
    shown = f", not {given[1]}" if given and not given[1].startswith("Namespace(") else ""
    return f"{where}{telling[0].strip()}{shown}"


def _readable(kind: str) -> str:
    """A type as jsonargparse writes it, such as `<class 'int'>`, in words."""
    literal = re.fullmatch(r"typing\.Literal\[(.+)\]", kind)
    plain = re.sub(r"<class '(\w+)'>", r"\1", kind)
    return f"one of {literal[1]}" if literal else "null" if plain == "NoneType" else plain


def _nearest(wrong: str, accepted: Iterable[str]) -> str:
    """`; did you mean X?`, or the whole list where nothing is near."""
    accepted = sorted(set(accepted))
    lower = {name.lower(): name for name in accepted}
    close = difflib.get_close_matches(wrong.lower(), lower, n=3)
    if close:
        return f"; did you mean {' or '.join(lower[name] for name in close)}?"
    return f"; choose from {', '.join(accepted)}" if len(accepted) < 50 else ""


def _accepted(cls: type) -> list[str]:
    """The options of a class, and of those to which its constructor hands on what it does not know."""
    found = []
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            found += [one.name for one in parameters if one.name != "self" and one.kind is not one.VAR_KEYWORD]
            if all(one.kind is not one.VAR_KEYWORD for one in parameters):
                break
    return found


def _options(parser: Any) -> list[str]:
    """The names of all options of a parser and of its sub-commands."""
    found = []
    for action in parser._actions:
        found.append(action.dest)
        for sub in (getattr(action, "_name_parser_map", None) or {}).values():
            found += _options(sub)
    return found


def _class_names(key: str) -> list[str]:
    """Short names that the `class_path` at `key` can be."""
    from lightning import LightningDataModule

    from patchword.encoders.base import Encoder, ImageTower, TextTower
    from patchword.objective import Objective

    bases = [LightningDataModule] if "data" in key.split(".") else [Encoder, ImageTower, TextTower, Objective]
    found = {cls for base in bases for cls in _below(base) if cls.__module__.startswith("patchword.")}
    return [cls.__name__ for cls in found if not inspect.isabstract(cls)]


def _below(base: type) -> Iterator[type]:
    """All classes that derive from `base`."""
    below: list[type] = base.__subclasses__()
    for cls in below:
        yield cls
        yield from _below(cls)


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
