"""Only one process can use the folder of a run, and a refused run leaves no folder behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from patchword.errors import UserError
from patchword.training.run_folder import RunFolders


@pytest.mark.filterwarnings("ignore:.*multi-threaded")
def test_a_folder_is_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    """A second run is refused while the first one uses the folder. Afterwards the folder is free and empty."""
    folder = tmp_path / "runs" / "fit"
    with RunFolders() as folders:
        folders.claim(folder)
        folders.claim(folder)  # the same run may claim its folder twice
        with RunFolders() as others, pytest.raises(UserError, match="is in use by another process"):
            others.claim(folder)
        child = os.fork()
        if child == 0:  # a data worker that outlives the run must not keep its folder locked
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        os.waitpid(child, os.WUNTRACED)
    try:
        with RunFolders() as others:
            others.claim(folder)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not list(folder.iterdir())


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    """A folder is deleted only if the run created it and it contains only files that are written before training."""
    kept, made = tmp_path / "kept", tmp_path / "runs" / "name" / "version_0"
    kept.mkdir()

    def refused(*files: Path) -> None:
        with RunFolders() as folders:
            folders.claim(kept)
            folders.claim(made)
            for file in files:
                file.parent.mkdir(exist_ok=True)
                file.touch()
            raise UserError("refused")

    with pytest.raises(UserError, match="refused"):
        refused(
            made / "config.yaml",
            made / "hparams.yaml",
            made / "events.out.tfevents.1",
            made / "checkpoints" / "config.yaml",
        )
    assert sorted(tmp_path.iterdir()) == [kept]
    with pytest.raises(UserError, match="refused"):
        refused(made / "config.yaml", made / "checkpoints" / "last.ckpt")
    assert {path.name for path in made.iterdir()} == {"config.yaml", "checkpoints"}
