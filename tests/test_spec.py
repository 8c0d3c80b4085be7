"""Objects remember their constructor call as plain data."""

from pathlib import Path

import pytest
import torch

from patchword.spec import Specified


class Inner(Specified):
    def __init__(self, size: int = 3) -> None:
        self.size = size


class Outer(Specified):
    def __init__(self, inner: Specified, names: tuple[str, ...] = ("a",), path: Path | None = None) -> None:
        self.inner = inner


class Child(Inner):
    def __init__(self, flag: bool) -> None:
        super().__init__(size=9)


class Silent(Inner):
    pass


def test_records_defaults_and_nested_objects_as_plain_data() -> None:
    assert Outer(Inner(), path=Path("x")).spec == {
        "class_path": f"{__name__}.Outer",
        "init_args": {
            "inner": {"class_path": f"{__name__}.Inner", "init_args": {"size": 3}},
            "names": ["a"],
            "path": "x",
        },
    }


def test_records_the_outermost_constructor_only() -> None:
    assert Child(True).spec["init_args"] == {"flag": True}
    assert Silent(4).spec == {"class_path": f"{__name__}.Silent", "init_args": {"size": 4}}


def test_refuses_what_a_checkpoint_could_not_hold() -> None:
    with pytest.raises(TypeError, match="cannot be written to a checkpoint"):
        Inner(torch.zeros(1))
