"""The content security policy of our pages: no network access, and no scripts except ours."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256


def content_policy(*scripts: str) -> str:
    """Return the value of a page's `Content-Security-Policy`.

    The page runs only the given scripts and loads nothing. It cannot turn text into markup: assigning to `innerHTML`
    throws an error in browsers that support trusted types. Text from data therefore never runs as a script, even if it
    ends up in the markup.

    Args:
        scripts: The exact text between the tags of each `<script>` of the page.
    """
    hashes = " ".join(dict.fromkeys(f"'sha256-{b64encode(sha256(one.encode()).digest()).decode()}'" for one in scripts))
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'"
    )
