"""Headless Chromium for tests of pages: what a person would see, click and type.

Debian's package `chromium` will do, as will Chrome, or any program that the environment variable `CHROMIUM` names.
Without one such tests are skipped, unless `PATCHWORD_BROWSER=required` is set: then they fail.
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
    """The path of Chromium; skips the test, or fails it, where there is none."""
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
    """Chromium, for several pages; while it runs, nothing else in this process can use asyncio."""
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
    """`file` in a window without network; at the end no error may stand in the console, and nothing was fetched.

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
    """Anything but the file itself and what stands in it."""
    if url != file.resolve().as_uri() and not url.startswith(("data:", "about:", "blob:")):
        said.append(f"request: {url}")
