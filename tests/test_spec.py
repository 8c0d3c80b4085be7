"""Objects record their constructor arguments as plain data."""

from pathlib import Path
from typing import Any

import pytest
import torch

from patchword.provenance.spec import Configurable


class Inner(Configurable):
    def __init__(self, size: int = 3) -> None:
        self.size = size


class Outer(Configurable):
    def __init__(self, inner: Configurable, names: tuple[str, ...] = ("a",), path: Path | None = None) -> None:
        self.inner = inner


class Child(Inner):
    def __init__(self, flag: bool) -> None:
        super().__init__(size=9)


class Silent(Inner):
    pass


class Sized(Configurable):
    def __init__(self, size: int = 3, color: str = "red", weight: float = 0.5) -> None:
        self.size, self.color, self.weight = size, color, weight


class Named(Sized):
    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(color=name, **options)


class Numbered(Named):
    def __init__(self, number: int = 1, **options: Any) -> None:
        super().__init__(name="one", **options)


def test_records_defaults_and_nested_objects_as_plain_data() -> None:
    """The record includes defaults and nested objects."""
    assert Outer(Inner(), path=Path("x")).spec == {
        "class_path": f"{__name__}.Outer",
        "init_args": {
            "inner": {"class_path": f"{__name__}.Inner", "init_args": {"size": 3}},
            "names": ["a"],
            "path": "x",
        },
    }


def test_records_the_outermost_constructor_only() -> None:
    """The constructor of a base class does not overwrite the record."""
    assert Child(True).spec["init_args"] == {"flag": True}
    assert Silent(4).spec == {"class_path": f"{__name__}.Silent", "init_args": {"size": 4}}


def test_records_options_that_are_handed_on() -> None:
    """The record includes the defaults of the base class, but not what a constructor sets itself, and can be built."""
    assert Named("x", size=4).spec["init_args"] == {"name": "x", "size": 4, "weight": 0.5}
    assert Numbered(2, weight=0.25).spec["init_args"] == {"number": 2, "size": 3, "weight": 0.25}
    for made in (Named("x", size=4), Numbered(2, weight=0.25), Named("y")):
        again = type(made)(**made.spec["init_args"])
        assert again.spec == made.spec
        assert (again.size, again.color, again.weight) == (made.size, made.color, made.weight)
    with pytest.raises(TypeError, match="color"):
        Named("x", color="blue")
    with pytest.raises(TypeError, match="hue"):
        Named("x", hue=1)


def test_refuses_what_a_checkpoint_could_not_hold() -> None:
    """An argument that is not plain data raises an error."""
    with pytest.raises(TypeError, match="cannot be written to a checkpoint"):
        Inner(torch.zeros(1))
