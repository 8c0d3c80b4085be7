"""The built package contains all modules, objectives and configurations, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(source: Path, out: Path, kind: str) -> Path:
    """Build an sdist or a wheel of `source` into `out`."""
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(out), str(source)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    (made,) = (path for path in out.iterdir() if path.suffix == (".gz" if kind == "sdist" else ".whl"))
    return made


def tracked() -> list[str]:
    """Return the names of tracked files; some contain spaces."""
    run = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout.rstrip("\0").split("\0")


def test_wheel_from_sdist_holds_the_whole_package(tmp_path: Path) -> None:
    """The wheel has all modules, including those behind symbolic links."""
    source = tmp_path / "source"
    for name in tracked():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        path = ROOT / name
        if path.is_symlink():
            target.symlink_to(path.readlink())
        elif path.exists():
            target.write_bytes(path.read_bytes())
    with tarfile.open(build(source, tmp_path / "sdist", "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    with zipfile.ZipFile(build(unpacked, tmp_path / "wheel", "wheel")) as wheel:
        found = {name for name in wheel.namelist() if name.startswith("patchword/")}
    expected = {name.removeprefix("src/") for name in tracked() if name.startswith("src/patchword/")}
    expected -= {"patchword/objectives", "patchword/configs"}  # the links themselves
    expected |= {f"patchword/{name}" for name in tracked() if name.startswith(("objectives/", "configs/"))}
    assert found == expected


def test_the_folder_objectives_cannot_be_imported_beside_the_package() -> None:
    """A second copy of the classes would break isinstance checks."""
    code = "import objectives"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "import patchword.objectives" in run.stderr


@pytest.mark.parametrize("module", ["patchword", "patchword.encoders", "patchword.cli", "patchword.maps.plots"])
def test_imports_stay_light(module: str) -> None:
    """timm, transformers and matplotlib are imported only when they are needed."""
    code = f"import sys, {module}; assert not {{'timm', 'transformers', 'matplotlib'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
