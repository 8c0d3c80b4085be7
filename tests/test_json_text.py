"""JSON texts of data sets are read completely, or refused with a reason."""

from pathlib import Path

import pytest

from patchword.data.skipping import BrokenSample
from patchword.data.tables.rows import cell
from patchword.errors import UserError
from patchword.files.json_text import parse_json
from patchword.files.published import read_json, read_json_lines

TWICE = '{"a": {"id": 1, "caption": "a dog", "caption": "a cat"}}'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TWICE, "the key 'caption' occurs more than once in one object"),
        ("[" * 100_000 + "]" * 100_000, "it is nested too deeply"),
        ('{"a": 1', "Expecting ',' delimiter"),
    ],
)
def test_nothing_is_lost(text: str, reason: str, tmp_path: Path) -> None:
    """A repeated key, of which Python keeps the last value, is refused in every kind of file, with the file's name."""
    with pytest.raises(ValueError, match=reason):
        parse_json(text)
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(UserError, match=rf"list\.json is not valid JSON \({reason}"):
        read_json(tmp_path / "list.json")
    with pytest.raises(UserError, match=rf"list\.json, line 1: not valid JSON \({reason}"):
        read_json_lines(tmp_path / "list.json")
    with pytest.raises(BrokenSample, match=rf"its json is not JSON \({reason}"):
        cell({"json": text.encode()}, "json.a.caption")


def test_equal_keys_of_different_objects() -> None:
    """Keys may repeat in different objects."""
    assert parse_json('[{"a": 1, "b": {"a": 2}}, {"a": 3}]') == [{"a": 1, "b": {"a": 2}}, {"a": 3}]
