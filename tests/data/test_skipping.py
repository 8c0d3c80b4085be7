"""The list of broken samples is written safely."""

import json

import pytest

from patchword.data.batch import Skipped
from patchword.data.skipping import SkippedList
from patchword.errors import UserError


def test_a_warning_cannot_steer_a_terminal(tmp_path):
    """Key and reason come from the data; only the list contains them unchanged."""
    broken = Skipped("caf\udce9\x1b[2J", "x" * 10_000)
    with pytest.warns(UserWarning, match=r"broken sample: caf\\udce9\\x1b\[2J: x{497}\.\.\.; .*lists all"):
        SkippedList(2, tmp_path).add("train", [broken])
    assert json.loads((tmp_path / "skipped.jsonl").read_text())["key"] == "caf\udce9\x1b[2J"


def test_a_resumed_run_lists_no_broken_sample_twice(tmp_path):
    """It continues the existing list, in which a kill may have left an incomplete line."""
    broken = [Skipped(f"row {i}", "cut off") for i in range(3)]
    with pytest.warns(UserWarning, match="broken sample: row 0"):
        SkippedList(2, tmp_path).add("train", broken[:2])
    path = tmp_path / "skipped.jsonl"
    path.write_text(path.read_text() + '{"split": "tr')
    resumed = SkippedList(2, tmp_path)
    with pytest.warns(UserWarning, match="broken sample: row 1"):
        resumed.add("train", broken[1:])
    with pytest.raises(UserError, match="max_broken = 2"):
        resumed.add("train", broken[:1])
    lines = path.read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines if line.endswith("}")] == ["row 0", "row 1", "row 2"]
