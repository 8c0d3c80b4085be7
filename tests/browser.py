"""Headless Chromium for tests of pages.

Debian's package `chromium`, Chrome, or any program in the environment variable `CHROMIUM` works. Without a browser
these tests are skipped, or fail if `PATCHWORD_BROWSER=required` is set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-quic"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def program() -> str:
    """Return the path of Chromium; skip or fail the test if there is none."""
    named = os.environ.get("CHROMIUM")
    found = next(filter(None, map(shutil.which, [named] if named else PROGRAMS)), None)
    if found is None:
        message = f"no Chromium was found ({named or ', '.join(PROGRAMS)}): apt-get install chromium"
        if os.environ.get("PATCHWORD_BROWSER") == "required":
            pytest.fail(message)
        pytest.skip(message)
    return found


@contextmanager
def running() -> Iterator[Browser]:
    """Start Chromium for several pages. While it runs, nothing else in this process can use asyncio."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    file: Path, width: int = 1400, height: int = 900, browser: Browser | None = None, **options: Any
) -> Iterator[Page]:
    """Open `file` without network. At the end, check that the console has no errors and that nothing was fetched.

    Args:
        file: An HTML file.
        width: Width of the window in pixels.
        height: Height of the window in pixels.
        browser: From `running`; None to start one for this page.
        options: What else playwright's `new_page` takes, such as `color_scheme="dark"`.
    """
    if browser is None:
        with running() as own, opened(file, width, height, own, **options) as page:
            yield page
        return
    said: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": height}, offline=True, **options)
    try:
        page.set_default_timeout(20_000)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: _note(request.url, file, said))
        page.goto(file.resolve().as_uri())
        yield page
    finally:
        page.close()
    assert not said, "\n".join(said)


def _note(url: str, file: Path, said: list[str]) -> None:
    """Record every request except for the file itself and its embedded content."""
    if url != file.resolve().as_uri() and not url.startswith(("data:", "about:", "blob:")):
        said.append(f"request: {url}")
