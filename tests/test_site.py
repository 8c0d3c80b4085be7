"""The documentation site builds without warnings: every link leads to a page or a file, and formulas are converted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_pages_build_without_warnings(tmp_path: Path) -> None:
    """Sphinx renders every page and notebook. A broken link or an unknown anchor fails the build."""
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-c", "docs", "."]
    built = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    home = (tmp_path / "index.html").read_text()
    for page in [*ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/*.ipynb")]:
        if page.name != "contents.md":
            assert f'href="{page.relative_to(ROOT).with_suffix(".html")}"' in home, page
    formulas = (tmp_path / "docs/objectives/sparc.html").read_text()
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in formulas
    assert "\\begin" not in formulas


@pytest.mark.thorough
def test_make_docs(tmp_path: Path) -> None:
    """`make docs` adds the reference of all modules, to which the pages link."""
    for name in ("docs", "notebooks", "benchmarks", "configs", "objectives", "src", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
    for file in [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "LICENSE"]:
        shutil.copy(file, tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    command = ["make", "-o", ".venv/.core", "-o", ".venv/.ready", "docs"]
    subprocess.run(command, cwd=tmp_path, check=True, env=environment)
    assert 'href="api/patchword.html"' in (tmp_path / "site/index.html").read_text()
    assert "How well each image matches each text" in (tmp_path / "site/api/patchword/objective.html").read_text()
