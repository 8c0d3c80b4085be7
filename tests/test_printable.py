"""Text from data on the terminal."""

from pathlib import Path

import pytest

from patchword.commands.explain import fail
from patchword.files.printable import printable


@pytest.mark.parametrize("text", ["a red dog", "два пса, 犬が二匹, ≥ 2 é", "C:\\images\\a.png", "", "[bold]=SUM(A1)"])
def test_keeps(text):
    """Text that is printable stays as it is, whatever its script."""
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b]0;title\x07b", "a\\x1b]0;title\\x07b"),
        ("a\x9b31mb", "a\\x9b31mb"),
        ("one\ntwo\r\tthree\u2028four", "one\\ntwo\\r\\tthree\\u2028four"),
        ("gnp.\u202egpj", "gnp.\\u202egpj"),
        ("caf\udce9.png", "caf\\udce9.png"),
    ],
)
def test_escapes(text, shown):
    """Escape sequences, line ends, turned directions and bytes that are not UTF-8 are written out."""
    assert printable(text) == shown
    assert printable(text).encode().isascii()


@pytest.mark.parametrize("limit", [0, 1, 3, 4, 50])
@pytest.mark.parametrize("text", ["x" * 51, "\n" * 51, "é" * 10_000_000])
def test_limit(text, limit):
    """No result is longer than the limit, and one that was cut says so."""
    shown = printable(text, limit)
    assert len(shown) == limit
    assert shown.endswith("..."[:limit])


def test_path():
    """A path is shown like its text."""
    assert printable(Path("a\x1b/b")) == "a\\x1b/b"


def test_errors(capsys):
    """What an error quotes of data is cleaned and cut; lines of a library's message stay lines."""
    with pytest.raises(SystemExit):
        fail("a.json: '\x1b[2J\udce9'\nsecond" + "\n" + "x" * 1_000_000)
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "patchword: error: a.json: '\\x1b[2J\\udce9'"
    assert second == "second"
    assert len(third) == 2000
