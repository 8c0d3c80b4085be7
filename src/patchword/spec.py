"""Remember how an object was built, as plain data that a checkpoint or a YAML file can hold."""

from __future__ import annotations

import functools
import inspect
from copy import deepcopy
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any


class Specified:
    """Base class whose instances know their own constructor call.

    It is what makes a checkpoint rebuild the right objective and encoder whether the model was built in
    Python or on the command line, and load with `weights_only=True`.

    A constructor may hand options on, as `def __init__(self, own, **options)` with `super().__init__(**options)`: the
    command line knows them, and they are remembered with the defaults of the class that takes them.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            setattr(cls, "__init__", _recording(cls.__init__))  # noqa: B010 - mypy forbids the plain form

    @property
    def spec(self) -> dict[str, Any]:
        """`{"class_path": ..., "init_args": {...}}`, as LightningCLI reads it; nested `Specified` values nest."""
        return {"class_path": class_path(type(self)), "init_args": deepcopy(vars(self).get("_init_args", {}))}


def class_path(cls: type) -> str:
    """The dotted path under which `cls` can be imported."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _recording(init: Any) -> Any:
    signature = inspect.signature(init)
    kinds = {parameter.kind: name for name, parameter in signature.parameters.items()}
    options = kinds.get(inspect.Parameter.VAR_KEYWORD, "")

    @functools.wraps(init)
    def wrapper(self: Specified, *args: Any, **kwargs: Any) -> None:
        outermost = "_init_args" not in vars(self)  # that constructor is the call that the user wrote
        if outermost or vars(self)["_init_hands_on"]:
            given = signature.bind(self, *args, **kwargs)
            recorded = {} if outermost else vars(self)["_init_args"]
            settled = {"self", options} if outermost else {options, *given.arguments, *recorded}
            given.apply_defaults()
            arguments = {**given.arguments, **given.arguments.get(options, {})}
            new = {name: plain(value) for name, value in arguments.items() if name not in settled}
            object.__setattr__(self, "_init_args", recorded | new)
            object.__setattr__(self, "_init_hands_on", options != "")
        init(self, *args, **kwargs)

    return wrapper


def plain(value: Any) -> Any:
    """`value` as the plain data of which YAML files and checkpoints are made.

    Raises:
        TypeError: If `value` is none of: plain data, a path, a dataclass, a `Specified` object, or a container of them.
    """
    if isinstance(value, Specified):
        return value.spec
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    raise TypeError(
        f"a constructor argument of type {type(value).__name__} cannot be written to a checkpoint: "
        "use numbers, strings, lists, dictionaries, or objects derived from patchword.spec.Specified"
    )


def callable_spec(callable_: Any) -> dict[str, Any] | None:
    """A class, or a `functools.partial` of one (LightningCLI passes partials of a helper and the class), as a spec.

    None for other callables: a run with one of those resumes from Python, where it is given again.
    """
    for part in (callable_, getattr(callable_, "func", None), *getattr(callable_, "args", ())):
        if isinstance(part, type):
            return {"class_path": class_path(part), "init_args": plain(getattr(callable_, "keywords", {}))}
    return None
