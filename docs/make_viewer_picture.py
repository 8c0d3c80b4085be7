"""Draw `docs/viewer.png`: the viewer in Chromium, with two objectives and one phrase selected.

Run as `python docs/make_viewer_picture.py docs/benchmark/runs`, the recorded runs of the benchmark. Graphics: OpenMoji
(https://openmoji.org), CC BY-SA 4.0.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from patchword.maps.alignment import Alignment
from patchword.viewer import AlignmentViewer

SAMPLE = "test_3"
OBJECTIVES = ("SPARC", "CLIP + FILIP")

found = {name: Alignment.load(Path(sys.argv[1], name, "seed_0/test/maps", f"{SAMPLE}.npz")) for name in OBJECTIVES}
with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
    AlignmentViewer(found).save(Path(folder, "viewer.html"))
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 900, "height": 640})
    page.goto(f"file://{folder}/viewer.html")
    page.wait_for_timeout(1000)
    page.screenshot(path=Path(__file__).parent / "viewer.png")
    browser.close()
