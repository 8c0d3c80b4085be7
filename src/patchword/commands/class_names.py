"""Finds the classes that an option accepts, for messages about unknown classes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, get_args, get_type_hints

LIBRARIES = ("patchword.", "torch.optim.", "lightning.")  # the modules whose classes are suggested
BASES = {"Callback", "LightningDataModule", "Optimizer"}  # base classes that are not abstract, but useless alone


def class_names(parser: Any, key: str) -> list[str]:
    """The names of the classes that the option `key` of `parser` accepts, or that the options of these classes accept.

    The second kind is included because the parser names only the outermost option of an unknown class.
    """
    found: set[type] = set()
    waiting = [base for action in _actions(parser) if action.dest == key for base in _classes(action._typehint)]
    while waiting:
        base = waiting.pop()
        if base in found or not base.__module__.startswith(LIBRARIES) or base.__module__.endswith("cli"):
            continue
        found.add(base)
        waiting += base.__subclasses__()
        if base.__module__.startswith("patchword."):
            waiting += _accepted(base)
    names = {cls.__name__ for cls in found if not inspect.isabstract(cls)}
    return sorted(name for name in names - BASES if not name.startswith("_"))


def _actions(parser: Any) -> Iterator[Any]:
    """The options with types of a parser and of its sub-commands."""
    for action in parser._actions:
        if hasattr(action, "_typehint"):
            yield action
        for sub in (getattr(action, "_name_parser_map", None) or {}).values():
            yield from _actions(sub)


def _accepted(cls: Any) -> Iterator[type]:
    """The classes in the types of the options of a class."""
    with suppress(Exception):  # the evaluation of annotations can raise any error
        for hint in get_type_hints(cls.__init__).values():
            yield from _classes(hint)


def _classes(hint: Any) -> Iterator[type]:
    """The classes in a type, such as A and B in `dict[str, A] | list[B] | None`."""
    if isinstance(hint, (list, tuple)):  # the parameters of a Callable
        parts = hint
    else:
        parts = get_args(hint)
        if isinstance(hint, type) and not parts:
            yield hint
    for part in parts:
        yield from _classes(part)
