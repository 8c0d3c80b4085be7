"""The list of broken samples."""

import json

import pytest

from patchword.data.batch import Skipped
from patchword.data.skipping import SkippedList
from patchword.errors import InputError


def test_a_resumed_run_lists_no_broken_sample_twice(tmp_path):
    """It goes on with the list of the part before, which a kill may have left with half a line."""
    broken = [Skipped(f"row {i}", "cut off") for i in range(3)]
    with pytest.warns(UserWarning, match="broken sample: row 0"):
        SkippedList(2, tmp_path).add("train", broken[:2])
    path = tmp_path / "skipped.jsonl"
    path.write_text(path.read_text() + '{"split": "tr')
    resumed = SkippedList(2, tmp_path)
    with pytest.warns(UserWarning, match="broken sample: row 1"):
        resumed.add("train", broken[1:])
    with pytest.raises(InputError, match="max_broken = 2"):
        resumed.add("train", broken[:1])
    lines = path.read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines if line.endswith("}")] == ["row 0", "row 1", "row 2"]
