"""Captions of rows are read unchanged, or raise an error."""

from pathlib import Path
from random import Random

import pytest

from patchword.data.pixels import Preprocessing
from patchword.data.tables.rows import BrokenSample, Columns, RowReader, cell
from tests.data import formats

RECORDS = {
    "sentences": [{"raw": "a dog", "tokens": ["a", "dog"]}, {"raw": "it runs"}],
    "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a dog"}],
    "json": {"caption": "a cat", "more": [{"text": None}]},
    "a.b": "with a dot",
    "empty": [],
}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("json.caption", "a cat"),
        ("sentences.raw", ["a dog", "it runs"]),
        ("sentences.tokens", ["a", "dog", None]),
        ("sentences.1.raw", "it runs"),
        ("conversations.1.value", "a dog"),
        ("conversations.value", ["<image>", "a dog"]),
        ("a.b", "with a dot"),
        *(
            (name, None)
            for name in ("json.more.text", "json.none", "sentences.2.raw", "sentences.x", "empty.raw", "x.y")
        ),
    ],
)
def test_dots_lead_into_records_and_lists(name, found):
    assert cell(RECORDS, name) == found


def captions(value):
    """Return the captions that training sees for a caption cell."""
    reader = RowReader(Columns("image", ["caption"], None), Path(), Preprocessing("crop"), 4, captions="all")
    return reader.train({"image": formats.jpeg(0), "caption": value}, 0, "row 0", Random(0)).captions


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ('["a dog", "it\'s \\"here\\""]', ["a dog", 'it\'s "here"']),
        ("['a dog', \"it's here\"]", ["a dog", "it's here"]),
        ('["a dog", 3]', ['["a dog", 3]']),
        ('["a \\d dog"]', ["a \\d dog"]),
        ("[a dog]", ["[a dog]"]),
        ('["quoted"] is what it says', ['["quoted"] is what it says']),
        ("\ufeffein Hündchen".encode(), ["ein Hündchen"]),
    ],
)
def test_a_list_of_captions_may_be_text(value, found):
    """Lists as written by pandas into a CSV or as JSON are parsed; other texts are unchanged."""
    assert captions(value) == found


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("ein Hündchen".encode("latin-1"), "not UTF-8 text"),
        ("half a character \ud800", "not UTF-8 text"),
        ("a" * 1_000_001, "has 1000001 characters, more than 1000000"),
    ],
)
def test_what_is_no_caption_is_a_broken_sample(value, reason):
    """It does not give another text, a traceback of the tokenizer, or gigabytes of tokens."""
    with pytest.raises(BrokenSample, match=reason):
        captions(value)


def test_a_name_that_no_file_can_have_is_a_broken_sample(tmp_path):
    """A path column can contain a whole text; the run goes on, and the reason is short."""
    reader = RowReader(Columns("image", ["caption"], None), tmp_path, Preprocessing("crop"), 4)
    with pytest.raises(BrokenSample, match="there is no image") as raised:
        reader.train({"image": "x" * 5_000, "caption": "a"}, 0, "row 0", Random(0))
    assert len(str(raised.value)) < 300
