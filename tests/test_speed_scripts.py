"""The scripts that measure retrieval and loaders compare ways that compute the same, and write their tables."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import loader, retrieval
from torch.testing import assert_close

ROOT = Path(__file__).parents[1]


def run(script: str, *options: str) -> str:
    """What a script prints."""
    command = [sys.executable, f"benchmarks/{script}.py", *options]
    done = subprocess.run(command, cwd=ROOT, check=True, timeout=600, capture_output=True, text=True, env=os.environ)
    return done.stdout


def test_all_ways_of_retrieval_compute_the_same_scores() -> None:
    """The bare loop, the kernel and the metric agree, so that their times can be compared."""
    sizes = (3, 9, 8)
    calls = retrieval.calls(7, sizes)
    stored = retrieval.stored(7, sizes)
    positions = torch.arange(7), torch.arange(7 * retrieval.CAPTIONS)
    for found in calls["kernel"](), stored._scores(*positions):
        assert_close(tuple(found), calls["bare"](), atol=1e-6, rtol=0)  # type: ignore[arg-type]


def test_scaled_decoding_is_compared_at_the_same_place() -> None:
    """A quarter of a smooth picture has nearly the same values, and a small picture is not reduced."""
    mean, most = loader.difference([loader.photograph(0, (1000, 904), noise=0)])
    assert 0 < mean < 1
    assert most < 10
    assert loader.difference([loader.photograph(0, (300, 280))]) == (0, 0)


@pytest.mark.slow
def test_retrieval_writes_a_row_for_each_number_of_images(tmp_path: Path) -> None:
    sizes = ("--side", "2", "--length", "3", "--width", "4")
    run("retrieval", "--images", "3", "5", *sizes, "--turns", "1", "--csv", str(tmp_path / "a.csv"))
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [(row["images"], row["captions"]) for row in rows] == [("3", "15"), ("5", "25")]


@pytest.mark.slow
def test_loader_measures_every_way(tmp_path: Path) -> None:
    """Also an image folder with several captions, and scaled decoding."""
    run(
        "loader",
        "--images",
        "512",
        "--size",
        "64",
        "48",
        "--turns",
        "1",
        "--workers",
        "1",
        "--csv",
        str(tmp_path / "a.csv"),
    )
    ways = [row["way"] for row in csv.DictReader((tmp_path / "a.csv").read_text().splitlines())]
    assert ways[0] == "bare Pillow"
    assert {"parquet", "WebDataset", "image folder, 5 captions", "parquet, scaled decoding"} < {*ways}
