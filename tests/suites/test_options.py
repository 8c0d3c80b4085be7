"""Tests that options which a suite passes to its base class are validated, documented and recorded."""

from __future__ import annotations

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of its first import
import pytest
from jsonargparse import ArgumentParser

import patchword.suites
from patchword.cli import main
from patchword.suites import Classification, Suite
from patchword.suites.segmentation import Segmentation

SUITES = [
    cls
    for cls in map(patchword.suites.__dict__.get, patchword.suites.__all__)
    if issubclass(cls, Suite) and not cls.__abstractmethods__
]


@pytest.mark.parametrize("cls", SUITES, ids=lambda cls: cls.__name__)
def test_every_option_is_explained_and_remembered(cls: type[Suite]) -> None:
    """An option has a help text and is in the spec, from which the same suite can be built."""
    common = {"root", "image_size", "batch_size", "num_workers"} | (
        {"resize_mode"} if not issubclass(cls, Segmentation) else set()
    )
    parser = ArgumentParser()
    parser.add_class_arguments(cls, "data")
    options = {action.dest.removeprefix("data."): action for action in parser._actions if action.dest != "help"}
    assert common <= {*options}
    without_folder = (patchword.suites.BiVLC, Classification)  # images in Parquet files, and a folder of images
    assert ("images" in options) == (not issubclass(cls, without_folder))
    for name, action in options.items():
        assert action.help or name == "labeling", name
    needed = {"threshold": 0.5} if "threshold" in options else {}
    suite = cls("here", num_workers=3, **needed)
    arguments = suite.spec["init_args"]
    assert common <= {*arguments} <= {*options}
    assert (arguments["root"], arguments["num_workers"]) == ("here", 3)
    given = parser.parse_object({"data": arguments})
    assert parser.instantiate(given).data.spec == suite.spec


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.imagesize=3", "CocoRetrieval has no option 'imagesize'; did you mean image_size or images?"),
        ("--data.spilt=1k", "CocoRetrieval has no option 'spilt'; did you mean split?"),
        ("--data.image_size=x", "data.image_size must be int or null, not x"),
        (
            "--data.resize_mode=cropp",
            "data.resize_mode must be one of 'backbone', 'crop', 'stretch', 'native', not cropp",
        ),
        ("--data.options=3", "CocoRetrieval has no option 'options'; choose from batch_size, captions_per_image"),
    ],
)
def test_a_wrong_option_is_one_clear_line(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The message suggests the nearest name or the allowed values, for options of the class and of its base."""
    with pytest.raises(SystemExit):
        main(["test", "--config", "configs/suites/coco_5k.yaml", option])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("patchword: error: ")]
    assert message in line
