"""Build the objects that a checkpoint names, from expected classes in trusted modules only.

A checkpoint is data from a possibly untrusted source. A class that it names must be a subclass of the class that is
expected for the option, and functions are never called. Names are looked up

1. among the existing subclasses: those of patchword, and those of modules that the user has imported (with `--import`,
   or in Python);
2. in modules of patchword, of the packages that patchword requires, and of installed packages that require patchword;
3. in modules of classes that the user has named on the command line or in a configuration.

No other module is imported.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distributions, requires
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ForwardRef, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch.optim import Optimizer

from patchword.errors import UserError
from patchword.files.printable import printable
from patchword.provenance.spec import Configurable, class_path

PACKAGE = "patchword"


@dataclass(frozen=True)
class SavedOptimizer:
    """The optimizer that a checkpoint names. It is imported only when training needs it.

    Attributes:
        spec: `{"class_path": ..., "init_args": {...}}`, not yet checked; None if the checkpoint names no optimizer.
        name: The checkpoint, for messages.
    """

    spec: dict[str, Any] | None
    name: str

    def __call__(self, parameters: Any) -> Optimizer:
        """Builds the optimizer of `parameters`.

        Raises:
            UserError: If the checkpoint names no optimizer, or a class that is not an optimizer.
        """
        if self.spec is None:
            raise UserError(f"{self.name} does not name an optimizer: set `optimizer`")
        cls, options = _spec(self.spec, (Optimizer,), f"{self.name}: model.optimizer", ())
        return cls(parameters, **options)


def check(cls: type, saved: Mapping[str, Any], name: str, named: Collection[str] = ()) -> None:
    """Require that a checkpoint names only classes that may be built, and options that this version has.

    `saved` are the `hyper_parameters` of the checkpoint `name` of a module of class `cls`. `named` are class paths that
    the user has named, whose modules may be imported.

    Raises:
        UserError: If it does not. The message says how to trust a module.
    """
    optimizer = saved.get("optimizer")
    if optimizer is not None:
        _spec(optimizer, (Optimizer,), f"{name}: model.optimizer", named)
    _arguments(cls, _settings(saved), f"{name}: model", named, make=False)


def arguments(cls: type, saved: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The constructor arguments of the module of a checkpoint: encoder, objective and all settings.

    `saved` are the `hyper_parameters` of the checkpoint `name` of a module of class `cls`.

    Raises:
        UserError: If the checkpoint names a class that may not be built, or this version cannot build it.
    """
    built = _arguments(cls, _settings(saved), f"{name}: model", (), make=True)
    optimizer = saved.get("optimizer")
    if not isinstance(optimizer, (dict, NoneType)):
        raise UserError(f"{name}: model.optimizer: {_not(optimizer)}")
    return built | {"optimizer": SavedOptimizer(optimizer, name)}


def require_optimizer(chosen: Any) -> None:
    """Require that a configuration's optimizer is a subclass of `Optimizer`, or a function annotated to return one.

    The parser accepts any function, and would call it. `chosen` is the parsed value: a function, or a namespace with
    the `class_path` of a class or function.

    Raises:
        UserError: If it is anything else.
    """
    path = getattr(chosen, "class_path", None) or f"{chosen.__module__}.{chosen.__qualname__}"
    module, _, name = path.rpartition(".")
    if not _makes(getattr(sys.modules.get(module), name, None), Optimizer):
        raise UserError(
            f"model.optimizer: {printable(path)} is neither a subclass of torch.optim.Optimizer nor a function that is "
            "annotated to return one"
        )


def _makes(part: Any, base: type) -> bool:
    if isinstance(part, type):
        return issubclass(part, base)
    try:
        made = get_type_hints(part).get("return")
    except Exception:  # the evaluation of annotations can raise any error
        return False
    return isinstance(made, type) and issubclass(made, base)


def _settings(saved: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in saved.items() if not str(key).startswith("_") and key != "optimizer"}


def _arguments(cls: type, given: Mapping[str, Any], place: str, named: Collection[str], make: bool) -> dict[str, Any]:
    hints = _hints(cls)
    made = {}
    for key, value in given.items():
        if key not in hints:
            raise UserError(
                f"{place}: {cls.__name__} has no option {printable(repr(key), 40)}: the checkpoint is of another "
                "version of patchword"
            )
        made[key] = _value(value, hints[key], f"{place}.{key}", named, make)
    return made


def _value(value: Any, hint: Any, place: str, named: Collection[str], make: bool) -> Any:
    """Convert plain data to the type `hint`. This is the inverse of `patchword.provenance.spec.plain`."""
    options = list(_options(hint))
    anything = any(option in (Any, object) or isinstance(option, (TypeVar, ForwardRef, str)) for option in options)
    if isinstance(value, dict) and "class_path" in value:
        bases = tuple(option for option in options if isinstance(option, type) and issubclass(option, Configurable))
        cls, own = _spec(value, bases or ((Configurable,) if anything else ()), place, named)
        own = _arguments(cls, own, place, named, make)
        return _construct(cls, own, place) if make else value
    if isinstance(value, dict):
        for option in options:
            if is_dataclass(option):
                own = _arguments(option, value, place, named, make)  # type: ignore[arg-type]
                return _construct(option, own, place) if make else value  # type: ignore[arg-type]
        found = next((option for option in options if _is_kind(option, Mapping)), None)
        if found is None and not anything:
            raise UserError(f"{place}: {_not(value)}")
        inner = (get_args(found) or (Any, Any))[-1]
        return {_plain(key, place): _value(item, inner, f"{place}.{key}", named, make) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        found = next((option for option in options if _is_kind(option, Sequence)), None)
        if found is None and not anything:
            raise UserError(f"{place}: {_not(value)}")
        inner = get_args(found) or (Any,)
        hints = [*inner, *[inner[-1]] * len(value)] if Ellipsis not in inner else [inner[0]] * len(value)
        made = [_value(item, one, place, named, make) for item, one in zip(value, hints, strict=False)]
        return tuple(made) if make and (get_origin(found) or found) is tuple else made
    _plain(value, place)
    if isinstance(value, str):
        literal = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
        if not (anything or str in options or Path in options or value in literal):
            choices = f": choose from {', '.join(map(str, literal))}" if literal else ""
            raise UserError(f"{place}: {_not(value)}{choices}")
        if str not in options and Path in options:
            return Path(value)
    return value


def _spec(value: Any, bases: tuple[type, ...], place: str, named: Collection[str]) -> tuple[type, dict[str, Any]]:
    """The class and the options of `{"class_path": ..., "init_args": {...}}`."""
    if not isinstance(value, dict) or not value.keys() <= {"class_path", "init_args"}:
        raise UserError(f"{place}: {_not(value)}")
    path, own = value.get("class_path"), value.get("init_args", {})
    if not isinstance(path, str) or not isinstance(own, dict) or not all(isinstance(key, str) for key in own):
        raise UserError(f"{place}: {_not(value)}")
    if not bases:
        raise UserError(f"{place}: {printable(path)} is not expected here")
    return find(path, bases, place, named), own


def find(path: str, bases: tuple[type, ...], place: str, named: Collection[str] = ()) -> type:
    """The class with the dotted path `path`, which a checkpoint names at `place`.

    Raises:
        UserError: If it is no subclass of one of `bases`, or its module may not be imported. Modules of the class paths
            `named` by the user may be imported.
    """
    if (known := _existing(path, bases)) is not None:
        return known
    module, _, attribute = path.rpartition(".")
    top = module.partition(".")[0]
    kinds = " or ".join(base.__name__ for base in bases)
    nothing = f"{place}: {printable(path)} is no subclass of {kinds}"
    if not module or top in sys.stdlib_module_names:
        raise UserError(nothing)
    if path not in named and not _may_import(top):
        if top == "__main__":
            raise UserError(
                f"{place}: {printable(path)} was defined in a script or a notebook: put the class into a module; "
                "in Python, define it again before you load the checkpoint"
            )
        raise UserError(
            f"{place}: the checkpoint names {printable(path)}, and {printable(top)} is neither part of patchword, nor "
            "of a package that patchword requires, nor of an installed package that requires patchword. "
            f"If you trust that module, add --import {printable(module)} (in Python: import {printable(module)} first)"
        )
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # importing a module can raise any error
        raise UserError(f"{place}: {printable(module)} cannot be imported: {printable(str(error))}") from error
    if not isinstance(found, type) or not issubclass(found, bases):
        raise UserError(nothing)
    return found


def _existing(path: str, bases: tuple[type, ...]) -> type | None:
    """The class with this path among `bases` and all their subclasses. If it was defined twice, the last one."""
    found = [cls for base in bases for cls in (base, *_below(base)) if class_path(cls) == path]
    return found[-1] if found else None


def _below(base: type) -> Iterator[type]:
    below: list[type] = base.__subclasses__()
    for cls in below:
        yield cls
        yield from _below(cls)


def _may_import(top: str) -> bool:
    """Whether a package is patchword, a requirement of patchword, or an installed package that requires patchword."""
    if top == PACKAGE:
        return True
    here = Path.cwd()  # files in the current folder are not trusted, and do not count as installed
    places = [place for place in sys.path if place and Path(place).resolve() != here]
    required = _required()
    return any(_is_near(one, required) and _provides(one, top) for one in distributions(path=places))


def _required() -> set[str]:
    """The packages that patchword requires, without its extras."""
    try:
        own = requires(PACKAGE) or []
    except PackageNotFoundError:  # patchword is not installed
        own = []
    return {canonicalize_name(Requirement(one).name) for one in own if "extra ==" not in one}


def _is_near(distribution: Distribution, required: set[str]) -> bool:
    """Whether a distribution is in `required`, or requires patchword."""
    # `distribution.requires` parses the complete file, which takes about a second for all installed distributions.
    head = (distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or "").partition("\n\n")[0]
    names = re.findall(r"^Name: *([\w.-]+)", head, re.MULTILINE)
    needs: list[str] = re.findall(r"^Requires-Dist: *([\w.-]+)", head, re.MULTILINE)
    return PACKAGE in needs or not required.isdisjoint(map(canonicalize_name, names))


def _provides(distribution: Distribution, top: str) -> bool:
    declared = (distribution.read_text("top_level.txt") or "").split()
    return top in declared or any(file.parts[0] in (top, f"{top}.py") for file in distribution.files or ())


def _hints(cls: type) -> dict[str, Any]:
    """The type of each option of a class, including the options that its constructor passes to base classes."""
    if is_dataclass(cls):
        types = get_type_hints(cls)
        return {one.name: types[one.name] for one in fields(cls)}
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            init: Callable[..., None] = vars(base)["__init__"]
            parameters = [one for one in inspect.signature(init).parameters.values() if one.name != "self"]
            found = {one.name: _hint(init, one) for one in parameters if one.kind is not one.VAR_KEYWORD} | found
            if all(one.kind is not one.VAR_KEYWORD for one in parameters):
                break
    return found


def _hint(init: Callable[..., None], parameter: inspect.Parameter) -> Any:
    """The type of a parameter; Any if it has no annotation, or its annotation cannot be evaluated."""
    if parameter.annotation is parameter.empty:
        return Any
    module = sys.modules.get(inspect.unwrap(init).__module__)

    class Holder:
        __annotations__ = {"one": parameter.annotation}

    try:
        return get_type_hints(Holder, vars(module) if module else {})["one"]
    except Exception:  # the evaluation of annotations can raise any error
        return Any


def _options(hint: Any) -> Iterator[Any]:
    """The alternatives of a possibly nested union."""
    if get_origin(hint) is Annotated:
        yield from _options(get_args(hint)[0])
    elif get_origin(hint) in (Union, UnionType):
        for one in get_args(hint):
            yield from _options(one)
    elif hasattr(hint, "__value__"):  # type X = ...
        yield from _options(hint.__value__)
    else:
        yield hint


def _is_kind(option: Any, kind: type) -> bool:
    origin = get_origin(option) or option
    return isinstance(origin, type) and issubclass(origin, kind) and origin is not str


def _plain(value: Any, place: str) -> Any:
    if not isinstance(value, (bool, int, float, str, NoneType)):
        raise UserError(f"{place}: a {type(value).__name__} is not expected here")
    return value


def _not(value: Any) -> str:
    return f"{printable(repr(value), 60)} is not expected here"


def _construct(cls: type, options: dict[str, Any], place: str) -> Any:
    try:
        return cls(**options)
    except Exception as error:  # a constructor can raise any error for unexpected values
        reason = printable(" ".join(str(error).split()), 300)
        raise UserError(f"{place}: {cls.__name__} cannot be built: {reason}") from error
