"""Runs of an evaluation suite: the tables have its own numbers with chance and differences."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from patchword.errors import UserError
from patchword.report import read_runs
from patchword.report.content import make
from tests.report import fake

DEFINITIONS = {
    "accuracy@1": "share of images whose own class has the highest score",
    "winoground/group": "share of quadruples that are right both ways",
    "retrieval/image_to_text/r@1": "share of images with an own caption at the top",
}


def run(folder: Path, variant: str, seed: int, quality: float, **protocol: Any) -> None:
    """Write a run with the metrics of a suite."""
    about = copy.deepcopy(fake.measured(seed, variant))
    suite = {"data_set": "ImageNet", "protocol": {"prompts": "label"} | protocol, "definitions": DEFINITIONS}
    about["definition"]["splits"] = {"imagenet": {"samples": 10, "checksum": "00"}}
    about["definition"]["suites"] = {"imagenet": suite}
    numbers = dict.fromkeys(DEFINITIONS, quality + 0.01 * seed)
    numbers |= {"chance_accuracy@1": 0.1, "winoground/chance_group": 1 / 6, "images": 10.0}
    numbers = {f"imagenet/{name}": value for name, value in numbers.items()}
    fake.write(folder / variant / f"seed_{seed}" / "test" / "results.json", numbers, about)


def test_a_suites_numbers_stand_in_a_table(tmp_path: Path) -> None:
    """Metrics such as R@1 are only in the first table; counts and chance are not columns."""
    for seed in range(3):
        run(tmp_path, "CLIP", seed, 0.5)
        run(tmp_path, "SPARC", seed, 0.6 + 0.001 * seed)
    report = make(read_runs(tmp_path, baseline="CLIP"))
    *_, table = report.splits["imagenet"]
    assert [(column.subtitle, column.title) for column in table.columns] == [
        ("", "accuracy@1"),
        ("winoground", "group"),
    ]
    sparc = next(row for row in table.rows if row.name == "SPARC")
    assert sparc.cells[0].value == "0.611"
    assert sparc.cells[0].difference == "+0.101"
    assert sparc.cells[0].interval
    (chance,) = table.references
    assert [cell.value for cell in chance.cells] == ["0.100", "0.167"]


def test_another_protocol_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "CLIP", 0, 0.5)
    run(tmp_path, "SPARC", 0, 0.6, prompts="clip")
    with pytest.raises(UserError, match=r"suites.imagenet.protocol.prompts is .label. in .* but .clip. in"):
        read_runs(tmp_path)
