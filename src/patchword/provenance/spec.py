"""Record the constructor arguments of objects as plain data for checkpoints and YAML files."""

from __future__ import annotations

import functools
import inspect
from copy import deepcopy
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any


class Configurable:
    """Base class whose instances record their constructor arguments.

    With this record, a checkpoint can rebuild the objective and the encoder, whether the model was built in Python or
    on the command line, and it can be loaded with `weights_only=True`.

    A constructor may pass options to its base class, as `def __init__(self, own, **options)` with
    `super().__init__(**options)`. The command line offers these options, and they are recorded with the defaults of the
    base class.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            setattr(cls, "__init__", _recording(cls.__init__))  # noqa: B010 - mypy forbids the plain form

    @property
    def spec(self) -> dict[str, Any]:
        """`{"class_path": ..., "init_args": {...}}` as LightningCLI reads it; `Configurable` arguments are nested."""
        return {"class_path": class_path(type(self)), "init_args": deepcopy(vars(self).get("_init_args", {}))}


def class_path(cls: type) -> str:
    """The dotted path under which `cls` can be imported."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _recording(init: Any) -> Any:
    signature = inspect.signature(init)
    kinds = {parameter.kind: name for name, parameter in signature.parameters.items()}
    options = kinds.get(inspect.Parameter.VAR_KEYWORD, "")

    @functools.wraps(init)
    def wrapper(self: Configurable, *args: Any, **kwargs: Any) -> None:
        outermost = "_init_args" not in vars(self)  # this is the constructor that the user called
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
    """`value` as plain data for YAML files and checkpoints.

    Raises:
        TypeError: If `value` is not plain data, a path, a dataclass, a `Configurable` object, or a container of these.
    """
    if isinstance(value, Configurable):
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
        "use numbers, strings, lists, dictionaries, or objects derived from patchword.provenance.spec.Configurable"
    )


def callable_spec(callable_: Any) -> dict[str, Any] | None:
    """The spec of a class or of a `functools.partial` of a class; None for other callables.

    LightningCLI passes partials of a helper and the class. A run with another callable can only be resumed in Python,
    where the callable is passed again.
    """
    if hasattr(callable_, "spec"):  # the optimizer of a checkpoint, see `patchword.provenance.rebuild.SavedOptimizer`
        return callable_.spec
    for part in (callable_, getattr(callable_, "func", None), *getattr(callable_, "args", ())):
        if isinstance(part, type):
            return {"class_path": class_path(part), "init_args": plain(getattr(callable_, "keywords", {}))}
    return None
