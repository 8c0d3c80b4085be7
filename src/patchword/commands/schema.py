"""The JSON Schema of the configurations that a parser accepts, made by jsonargparse."""

from __future__ import annotations

import sys
from typing import Any

from jsonargparse._completions_jsonschema import ParserJsonschema, anyof_schema
from jsonargparse._typehints import get_all_subclass_paths

from patchword.commands.class_names import LIBRARIES

NAME = "Name of a class"  # the title of the schema of a class's name, which tells it from other texts


def config_schema(parser: Any) -> dict[str, Any]:
    """The JSON Schema of the configurations of `parser`, with the options of the classes in `LIBRARIES`.

    Other classes, such as the user's own, are accepted with any options.
    """
    return _Schema().generate(parser)


class _Schema(ParserJsonschema):
    """jsonargparse's schema, which here also accepts short class names and classes of other packages."""

    def set_dest(self, schema: Any, dest: str, dest_schema: Any, required: bool, descriptions: Any) -> None:
        """Add an option. None is required, since other files and the command line may have it."""
        super().set_dest(schema, dest, dest_schema, False, descriptions)

    def action_schema(self, action: Any, required: bool, consts: list[Any] | None) -> dict[str, Any]:
        """Describe an option, which may also be a reference to another one."""
        schema = super().action_schema(action, required, consts)
        about = {key: schema.pop(key) for key in ("description", "default") if key in schema}
        self.defs["Reference"] = {"type": "string", "pattern": r"^\$\{.+\}"}
        return {"anyOf": [schema, {"$ref": "#/$defs/Reference"}], **about}

    def class_ref(self, class_type: Any, action: Any, subclass: bool) -> dict[str, Any]:
        """Refer to the description of a class. An option whose type is of another package accepts any value."""
        return super().class_ref(class_type, action, subclass) if class_type.__module__.startswith(LIBRARIES) else {}

    def subclass_def(self, class_type: Any, action: Any) -> dict[str, Any]:
        """Describe a class by the options of its subclasses in these packages."""
        paths = [path for path in get_all_subclass_paths(class_type) if path.startswith(LIBRARIES) and _exists(path)]
        known = [self.class_path_schema(path, action) for path in paths]
        taken = [name for path in paths for name in names(path)]
        other = self.unknown_class_path_schema()
        other["properties"]["class_path"] = {"type": "string", "not": {"enum": taken}}
        del other["required"]  # another file may name the class
        return anyof_schema([{"type": "string", "title": NAME}, *known, other])

    def callable_schema(self, typehint: Any, action: Any) -> dict[str, Any]:
        """Describe a function or class by its name; for one that makes an object, also by the object's class."""
        schema: dict[str, Any] = super().callable_schema(typehint, action)
        schema.get("anyOf", [schema])[0]["title"] = NAME
        return schema

    def class_path_schema(self, class_path: str, action: Any) -> dict[str, Any]:
        """Describe a class, which is named with or without its module."""
        schema = super().class_path_schema(class_path, action)
        schema["properties"]["class_path"] = {"enum": names(class_path)}
        return schema


def names(class_path: str) -> list[str]:
    """The names by which a configuration names a class: `patchword.objectives.CLIP` and `CLIP`."""
    return [class_path, class_path.rpartition(".")[2]]


def _exists(class_path: str) -> bool:
    """Whether a class can be imported by its name; Lightning makes some at run time, which cannot."""
    module, _, name = class_path.rpartition(".")
    return hasattr(sys.modules.get(module), name)
