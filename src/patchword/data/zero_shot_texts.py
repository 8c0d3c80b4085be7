"""Read the texts that zero-shot prediction compares with images."""

from __future__ import annotations

from pathlib import Path

from patchword.errors import UserError


def read_texts(given: list[str] | str) -> list[str]:
    """Return a list of texts, or read them from a text file with one text per line; empty lines are ignored.

    Raises:
        UserError: If there are no texts, or if a text is empty or occurs twice.
    """
    if isinstance(given, str):
        path = Path(given).expanduser()
        if not path.is_file():
            raise UserError(
                f"data.texts: there is no file {given}; to pass texts directly, write a list: '[a dog, a red car]'"
            )
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines would also split at U+2028
        except ValueError as error:
            raise UserError(f"data.texts: {given} is not UTF-8 text ({error})") from error
        given = [line for line in lines if line.strip()]
    texts = [text.strip() for text in given]
    if not texts or not all(texts):
        raise UserError("data.texts: the list of texts is empty, or a text is empty")
    twice = next((text for number, text in enumerate(texts) if text in texts[:number]), None)
    if twice is not None:
        raise UserError(f"data.texts: {twice!r} occurs twice: remove one, because each text becomes one column")
    return texts
