"""Finds the typed value that caused an error in another library."""

from __future__ import annotations

import inspect
import itertools
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from patchword.commands.explain import first_line
from patchword.errors import UserError

CONSTRUCTORS = {"__init__", "__post_init__", "__new__"}
# Parts of a key in configurations that are not typed on the command line.
PARTS_OF_FORM = {"init_args", "dict_kwargs", "class_path"}


def blamed(error: BaseException, chosen: Mapping[str, Any], defaults: Mapping[str, Any]) -> str | None:
    """The text `KEY is VALUE` for the typed value that caused an error in another library.

    A value is considered the cause if the message names its key or contains the value, if the constructor that raised
    the error received the value, or if a chosen class raised the error; in this order. The result is None if no value
    is the cause, or if patchword raised the error or the user's code was involved: then the error is in the code, and a
    traceback is useful. The chosen and default values are given by their dotted keys; see `flatten`.
    """
    typed = {key: value for key, value in chosen.items() if value not in (None, "") and defaults.get(key) != value}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or not _is_library(frames[-1]) or any(_is_of_user(frame) for frame in frames):
        return None
    message = str(error)
    causes = itertools.chain(
        _named(message, typed), _shown(message, typed), _given(message, frames, typed), _raised(frames, chosen)
    )
    key = next(causes, None)
    return None if key is None else f"{_plain(key)} is {chosen[key]!r:.80}"


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a configuration with their dotted keys; the keys of list items contain their numbers."""
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)) and any(hasattr(one, "__dict__") for one in value):
        items = enumerate(value)  # type: ignore[assignment]
    elif type(value).__name__ == "Namespace":
        items = vars(value).items()
    else:
        yield key, value
        return
    for name, part in items:
        yield from flatten(part, f"{key}.{name}" if key else str(name))


def line_of_user(error: BaseException) -> str | None:
    """The file and the line of the user's code in which an error was raised; None if there is no such code."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_of_user(frame)]
    return f"{frames[-1][0].f_code.co_filename}, line {frames[-1][1]}" if frames else None


def described(error: BaseException) -> str:
    """The type and the first line of an error, with the place in the user's code where it was raised."""
    place = line_of_user(error)
    message = error.msg if isinstance(error, SyntaxError) else first_line(error)
    kind = "" if isinstance(error, (UserError, AssertionError)) else f"{type(error).__name__}: "
    return f"{kind}{message}" + (f" ({place})" if kind and place else "")


def _named(message: str, typed: Mapping[str, Any]) -> Iterator[str]:
    """Keys whose last part occurs in the message: as an option in code or, if it contains `_`, anywhere."""
    for key in sorted(typed, key=lambda key: -len(_last(key))):
        name = re.escape(_last(key))
        pattern = rf"`{name}[`=]|\b{name}=" + (rf"|(?<![\w.]){name}(?!\w)" if "_" in name else "")
        if re.search(pattern, message):
            yield key


def _shown(message: str, typed: Mapping[str, Any]) -> Iterator[str]:
    """The key whose value occurs in the message and is unlikely to occur by chance: a name or a large number."""
    found = []
    for key, value in typed.items():
        name = isinstance(value, str) and len(value) > 2
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and (value < 0 or value >= 100)
        pattern = rf"(?<![\w.-]){re.escape(str(value))}(?![\w]|\.\d)"
        if not key.endswith("class_path") and (name or number) and re.search(pattern, message):
            found.append(key)
    if len(found) == 1:
        yield found[0]


def _given(message: str, frames: list[FrameType], typed: Mapping[str, Any]) -> Iterator[str]:
    """The key of the typed value that the failing constructor or function received as an argument of that name."""
    yield from (key for key in typed if _last(key) == frames[-1].f_code.co_name)
    for frame in reversed(frames):
        if frame.f_code.co_name in CONSTRUCTORS and _is_library(frame):
            arguments = inspect.getargvalues(frame)
            same = [
                key
                for key, value in typed.items()
                if (name := _last(key)) in arguments.args and _equal(arguments.locals.get(name), value)
            ]
            shown = [key for key in same if any(str(one) in message for one in _parts(typed[key]))]
            if len(shown or same) == 1:
                yield (shown or same)[0]
            return


def _raised(frames: list[FrameType], typed: Mapping[str, Any]) -> Iterator[str]:
    """The keys of typed classes whose methods raised the error or called the function that raised it."""
    for frame in reversed(frames):
        kinds = {kind.__qualname__ for kind in type(frame.f_locals.get("self")).__mro__} - {"object", "Trainer"}
        for key, value in typed.items():
            if key.endswith("class_path") and _is_library(frame) and str(value).rpartition(".")[2] in kinds:
                yield key


def _is_library(frame: FrameType) -> bool:
    """Whether the frame runs code of another package or of Python's standard library, not of patchword."""
    if _module(frame) == "patchword":
        return False
    return "site-packages" in Path(frame.f_code.co_filename).parts or _module(frame) in sys.stdlib_module_names


def _is_of_user(frame: FrameType) -> bool:
    return not _is_library(frame) and _module(frame) != "patchword"


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _equal(x: Any, y: Any) -> bool:
    try:
        return bool(_parts(x) == _parts(y))
    except Exception:  # arrays and tensors can raise
        return False


def _parts(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _last(key: str) -> str:
    return next((part for part in reversed(key.split(".")) if part not in PARTS_OF_FORM), key)


def _plain(key: str) -> str:
    """The key as it is typed on the command line."""
    return ".".join(part for part in key.split(".") if part not in PARTS_OF_FORM)
