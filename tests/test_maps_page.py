"""docs/maps.md: its commands run, and it lists the sources and their files."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of its first import
import pytest

from patchword.cli import main
from patchword.maps.sources import TOKEN_SOURCES, TOWER_SOURCES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/maps.md").read_text()
LESS = ("--data.test_size", "8", "--data.num_workers", "0", "--trainer.enable_progress_bar", "false")


def test_the_table_lists_the_sources() -> None:
    """Each source has a row, and a file with its name if it runs the towers."""
    rows = re.findall(r"^\| (`.+?`) \|", PAGE.partition("## Use them")[0], re.MULTILINE)
    assert tuple(re.findall(r"`(\w+)`", " ".join(rows))) == TOKEN_SOURCES
    for source in TOWER_SOURCES:
        assert f"def {source}(" in (ROOT / f"src/patchword/maps/{source}.py").read_text()


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands of the page run in its order, on a tiny model and a few images."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    logger = ("--trainer.logger.name", "demo", "--trainer.logger.version", "fit")
    few = ("--data.train_size", "32", "--data.val_size", "8", "--data.batch_size", "32", *LESS)
    steps = ("--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1")
    main(["fit", "--config", "configs/sparc.yaml", *few, *logger, *steps])
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in "".join(blocks).splitlines():
        _, *command = shlex.split(line)
        if command[0] == "test":
            command += LESS
        if "configs/maps/insertion_deletion.yaml" in command:
            main([*command, "--trainer.callbacks.init_args.samples", "4"])
        else:
            main(command)
    assert "banzhaf" in Path("inspect.html").read_text()
    report = Path("runs/truth/report.md").read_text()
    assert "Grad-CAM" in report
    assert "Insertion and deletion: patches removed by mean" in report
    assert list(Path("runs/truth").glob("report_removal_*.png"))
