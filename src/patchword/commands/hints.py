"""Turns the parser's messages into shorter ones that suggest a correct name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable
from typing import Any

from patchword.commands.class_names import class_names
from patchword.files.printable import printable

# Removed classes, and what to use instead.
GONE = {
    "CaptionFolder": "ImageText with source: imagefolder, train: FOLDER/train and val: FOLDER/val (captions: "
    "`caption: captions`, boxes: `phrases: data`, hard negatives: `negatives: negatives`)",
    "CaptionShards": "ImageText with source: webdataset and the same train, val and test (`caption: txt`, or "
    "`caption: json.FIELD` for json:FIELD)",
}


def improve(message: str, parser: Any) -> str:
    """A shorter message with the nearest accepted name if this message of `parser` is of a known kind."""
    option = re.search(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", message)
    if option:
        cls, wrong = _import(option[1]), option[2]
        keys = re.findall(r'key "([\w.]+)"', message)
        return f"{'.'.join(keys)}: {cls.__name__} has no option '{wrong}'{nearest(wrong, _accepted(cls))}"
    for name in GONE:
        if re.search(rf"\b{name}\b", message):
            return removed(name)
    inner = re.findall(r'key "([\w.]+)"', message)
    expected = re.findall(r"Expected an? (?!path|dot)(.+?)(?:\. Got value.*)?$", message, re.MULTILINE)
    given = re.search(r"(?:Given|Got) value: (.+?)(?:\. Got value.*)?$", message, re.MULTILINE)
    if len(inner) == 2 and expected and given and "NestedArg(" not in message:
        return f"{'.'.join(inner)} must be {_kinds(expected)}, not {given[1]}"
    path = re.search(r'key "([\w.]+)".*dot import path string: ([\w.]+)', message, re.DOTALL)
    if path:
        return f"{path[1]}: there is no class '{path[2]}'{nearest(path[2], class_names(parser, path[1]))}"
    dotted = re.search(
        r"""key "([\w.]+)".*?(?:path but|class_path) '?([\w.]+).*?"""
        r"""(?:module '[\w.]+' has no attribute|(No module named '[\w.]+'))""",
        message,
        re.DOTALL,
    )
    if dotted:
        module, _, name = dotted[2].rpartition(".")
        if dotted[3] and f"'{module}'" not in dotted[3]:  # the module exists, and imports another one
            return f"{dotted[1]}: {dotted[2]} cannot be imported ({dotted[3]})"
        if dotted[3]:
            what, name = f"{dotted[2]} cannot be imported ({dotted[3]})", ""
        else:
            what = f"there is no class '{name}' in {module}"
        return f"{dotted[1]}: {what}{nearest(name, class_names(parser, dotted[1]))}"
    wrong_kind = _wrong_kind(message)
    if wrong_kind:
        return wrong_kind
    config = re.search(r"""key "([\w.]+)":\s+Unable to load config '(.+?)'""", message)
    if config:
        own = sorted({name for name in _options(parser) if name.startswith(f"{config[1]}.")})
        return f"{config[1]}: there is no configuration file '{config[2]}'; its options are {', '.join(own)}"
    unknown = re.search(r"(?:unrecognized arguments: --|does not accept option '|[Kk]ey ')([\w.]+)", message)
    if unknown:
        wrong = unknown[1]
        return f"there is no option '{wrong}'{nearest(wrong, _options(parser))}"
    nested = re.search(r"Given value: NestedArg\(key='([\w.]+)', val='?(.+?)'?\)", message)
    if nested:
        key = re.search(r'key "([\w.]+)"', message)
        place = key[1] if key else "the configuration"
        wrong = re.search(rf'Parser key "{re.escape(nested[1])}":(.*?)(?=\n {{,4}}- Expected|\Z)', message, re.DOTALL)
        if wrong and (expected := re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", wrong[1], re.MULTILINE)):
            return f"{place}.{nested[1]} must be {_kinds(expected)}, not {nested[2]}"
        return f"{place} does not accept '{nested[1]}'"
    return without_union(message)


def _wrong_kind(message: str) -> str | None:
    """The message about a value that is not a class of the expected kind, or None."""
    key = re.search(r'key "([\w.]+)"', message)
    if not key:
        return None
    function = re.search(r"Expected '([\w.]+)' to be a function that returns <class '(\w+)'>", message)
    if function:
        path, returned = function.groups()
        name = path.rpartition(".")[2]
        return f"{key[1]}: annotate what {path} returns, so that it can be checked: def {name}(...) -> {returned}:"
    other = re.search(r"Import path ([\w.]+) does not correspond to a subclass of (\w+)", message)
    if other:
        return f"{key[1]}: {other[1]} is not a class that inherits {other[2]}"
    value = re.search(
        r"(?:Not a valid subclass of \w+|subclass spec, but got .*)\. Got value: (None|[^\w\n].*)$", message, re.M
    )
    if value:
        return f"{key[1]} must name a class, not {'null' if value[1] == 'None' else printable(value[1], 60)}"
    return None


def removed(name: str) -> str:
    """The message about a class in `GONE`."""
    return f"{name} was removed: use {GONE[name]}"


def without_union(message: str) -> str:
    """The part of a message about the value, without the alternative None."""
    parts = re.findall(r"^ *- (.+(?:\n(?! *- | *Given value).+)*)", message, re.MULTILINE)
    telling = [part for part in parts if "NoneType" not in part]
    if "Union subtypes" not in message or len(telling) != 1:
        return message
    key = re.search(r'key "([\w.]+)"', message)
    given = re.search(r"Given value: (.{1,60})$", message, re.MULTILINE)
    where = f"{key[1]}: " if key else ""
    shown = f", not {given[1]}" if given and not given[1].startswith("Namespace(") else ""
    return f"{where}{telling[0].strip()}{shown}"


def _kinds(expected: Iterable[str]) -> str:
    """The accepted types as a readable text, without repetitions."""
    return " or ".join(dict.fromkeys(map(_readable, expected)))


def _readable(kind: str) -> str:
    """A readable name for a type in jsonargparse's messages, such as `<class 'int'>`."""
    literal = re.fullmatch(r"typing\.Literal\[(.+)\]", kind)
    plain = re.sub(r"<class '(\w+)'>", r"\1", kind)
    return f"one of {literal[1]}" if literal else "null" if plain == "NoneType" else plain


def nearest(wrong: str, accepted: Iterable[str]) -> str:
    """The hint `; did you mean X?`, or the complete list if no name is similar."""
    accepted = sorted(set(accepted))
    lower = {name.lower(): name for name in accepted}
    close = difflib.get_close_matches(wrong.lower(), lower, n=3)
    if close:
        return f"; did you mean {' or '.join(lower[name] for name in close)}?"
    return f"; choose from {', '.join(accepted)}" if len(accepted) < 50 else ""


def _accepted(cls: type) -> list[str]:
    """The options of a class and of the base classes to which its constructor passes other options."""
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


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
