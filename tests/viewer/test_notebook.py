"""The viewer as the output of a notebook's cell: executed by a kernel, shown by a browser."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient
from playwright.sync_api import expect

from tests.browser import opened

CODE = """
import torch
from patchword.maps.alignment import Alignment
from patchword.viewer import AlignmentViewer

maps = {"align": torch.rand(3, 12), "cosine": torch.rand(3, 12) - 0.5}
pixels = torch.full((3, 30, 40), 200, dtype=torch.uint8)
alignment = Alignment(pixels, "red \\"fish\\" & sun", [(0, 3), (5, 9), (13, 16)], maps, (3, 4))
AlignmentViewer({"one": alignment, "two": alignment})
"""


def test_a_cell_shows_the_viewer(tmp_path: Path) -> None:
    """The output is one small piece of HTML that works inside another page and has the height of its content."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)])
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    (output,) = notebook.cells[0].outputs
    shown = output["data"]["text/html"]
    assert len(shown) < 100_000
    style = "<style>button { display: none } p { color: red }</style>"  # a notebook has styles of its own
    (tmp_path / "notebook.html").write_text(f"<!doctype html>{style}<body style='width: 900px'>{shown}<p>end</p>")
    with opened(tmp_path / "notebook.html") as page:
        frame = page.frame_locator("iframe")
        frame.locator(".word").nth(2).click()
        expect(frame.locator('.word[aria-pressed="true"]')).to_have_text(["sun"])
        expect(frame.locator(".panel")).to_have_count(2)
        needed = frame.locator("body").evaluate("e => e.ownerDocument.documentElement.scrollHeight")
        given = page.locator("iframe").bounding_box()["height"]
        assert given - 4 <= needed <= given
        assert frame.locator(".panel").nth(1).bounding_box()["y"] > 0
