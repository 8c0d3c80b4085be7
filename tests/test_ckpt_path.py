"""Commands find the right checkpoint, and do not overwrite the files of a training run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from patchword.cli import main
from patchword.errors import UserError
from patchword.module import AlignmentModule
from patchword.training import checkpoint_file
from patchword.training.run_folder import RunFolders

ROOT = Path(__file__).parents[1]
RUN = Path("runs/here/fit")
OPTIONS = [
    *("--config", "configs/clip.yaml", "--maps.samples", "0", "--trainer.log_every_n_steps", "1"),
    *("--data.batch_size", "8", "--data.train_size", "24", "--data.val_size", "8", "--data.test_size", "8"),
    *("--data.num_workers", "0", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"),
    *("--trainer.logger.name", "here", "--loggers", "null"),
]
HERE = ["--trainer.logger.version", "fit"]
BEST = ["--checkpoint.monitor", "val/loss", "--checkpoint.save_top_k", "1"]


@pytest.fixture(scope="module", autouse=True)
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Train one run with a best checkpoint in a new folder, and restore the environment at the end."""
    before, folder = dict(os.environ), Path.cwd()
    os.chdir(tmp_path_factory.mktemp("trained"))
    Path("configs").symlink_to(ROOT / "configs")
    main(["fit", *OPTIONS, *HERE, *BEST])
    yield
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(before)


def refused(capsys: Any, *arguments: str) -> str:
    """Run a command that must fail, and return its one-line message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("patchword: error: ")]
    return line.removeprefix("patchword: error: ")


@pytest.mark.parametrize("word", ["last", "best"])
def test_last_and_best_are_those_of_the_named_folder(word: str) -> None:
    """A test in the folder of the training names its checkpoint, and keeps the training's configuration and metrics."""
    before = (RUN / "config.yaml").read_bytes()
    main(["test", *OPTIONS, *HERE, "--ckpt_path", word])
    measured = json.loads((RUN / "results.json").read_text())["measured"]
    assert Path(measured["checkpoint"]).name == {"last": "last.ckpt", "best": "epoch=0-step=3.ckpt"}[word]
    assert measured["trained"]["steps"] == 3
    assert (RUN / "config.yaml").read_bytes() == before
    assert yaml.safe_load((RUN / "config_test.yaml").read_text())["ckpt_path"] == measured["checkpoint"]
    assert pd.read_csv(RUN / "metrics.csv")["train/loss"].notna().sum() == 3


def test_a_last_or_best_that_is_not_there_is_refused(capsys: Any) -> None:
    """A missing `last` or `best` ends with an error and leaves no folder, instead of using random weights."""
    before = sorted(Path("runs/here").iterdir())
    for command in ("fit", "test"):
        assert refused(capsys, command, *OPTIONS, "--ckpt_path", "last").startswith(
            "--ckpt_path last: every run gets a new folder, which has no checkpoint yet"
        )
    other = ["--trainer.logger.version", "other"]
    assert "there is no runs/here/other/checkpoints/last.ckpt" in refused(
        capsys, "test", *OPTIONS, *other, "--ckpt_path=best"
    )
    assert "there is no such file or folder" in refused(capsys, "test", *OPTIONS, "--ckpt_path", "registry")
    assert sorted(Path("runs/here").iterdir()) == before


def test_the_folder_of_a_run_is_its_last_checkpoint(capsys: Any) -> None:
    """`test`, `fit` and Python accept a run's folder as `inspect` does; a folder without a checkpoint is refused."""
    for place in (RUN, RUN / "checkpoints"):
        main(["test", *OPTIONS, *HERE, "--ckpt_path", str(place)])
        measured = json.loads((RUN / "results.json").read_text())["measured"]
        assert (measured["checkpoint"], measured["trained"]["steps"]) == (str(RUN / "checkpoints/last.ckpt"), 3)
    resumed = ["--trainer.logger.version", "more", "--trainer.max_epochs", "2"]
    main(["fit", *OPTIONS, *resumed, "--ckpt_path", str(RUN)])
    assert checkpoint_file.read(Path("runs/here/more/checkpoints/last.ckpt"))["global_step"] == 6
    assert (
        AlignmentModule.load_from_checkpoint(RUN).trained
        == AlignmentModule.load_from_checkpoint(RUN / "checkpoints/last.ckpt").trained
    )
    message = refused(capsys, "test", *OPTIONS, "--ckpt_path", "configs")
    assert message.startswith("--ckpt_path configs: the folder has neither checkpoints/last.ckpt nor fit/checkpoints/")
    with pytest.raises(UserError, match=r"^runs: the folder has neither"):
        AlignmentModule.load_from_checkpoint("runs")
    with pytest.raises(UserError, match=r"fit: this is a folder; name a file in it"):
        checkpoint_file.load(RUN)


def test_ckpt_path_in_a_configuration_works_as_on_the_command_line(capsys: Any) -> None:
    """Its model is the default, earlier metrics stay, the command line overrides it, and errors name the file."""
    main(["fit", *OPTIONS, "--trainer.logger.version", "resumed", "--model.objective.temperature", "0.2"])
    first = Path("runs/here/resumed/checkpoints/last.ckpt")
    config = yaml.safe_load(Path("runs/here/resumed/config.yaml").read_text())
    del config["model"]
    Path("again.yaml").write_text(yaml.safe_dump(config | {"ckpt_path": str(first)}))
    main(["fit", "--config", "again.yaml", "--trainer.max_epochs", "2"])
    assert pd.read_csv("runs/here/resumed/metrics.csv").dropna(subset=["train/loss"])["step"].tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
    ]
    saved = torch.load(first, weights_only=True)
    assert saved["hyper_parameters"]["objective"]["init_args"]["temperature"] == 0.2
    typed = "runs/here/nowhere.ckpt"
    for order in (["--config", "again.yaml", "--ckpt_path", typed], ["--ckpt_path", typed, "--config", "again.yaml"]):
        assert refused(capsys, "fit", *order) == f"--ckpt_path {typed}: there is no such file or folder"
    Path("gone.yaml").write_text(yaml.safe_dump({"ckpt_path": typed}))
    assert refused(capsys, "fit", *OPTIONS, "--config", "gone.yaml").startswith(f"ckpt_path {typed} in gone.yaml")


def test_a_test_of_random_weights_says_so(capsys: Any) -> None:
    """A test without a checkpoint is allowed, and both the terminal and the results say that nothing was trained."""
    main(["test", *OPTIONS, "--trainer.logger.version", "untrained"])
    printed = capsys.readouterr()
    assert "Nothing was trained" in printed.out
    assert json.loads(Path("runs/here/untrained/results.json").read_text())["measured"]["trained"] is False


def test_a_refused_fit_leaves_no_folder(capsys: Any) -> None:
    """No folder is left if a run is refused while it is built, or at the start of training."""
    before = sorted(Path("runs/here").iterdir())
    refused(capsys, "fit", *OPTIONS, "--data.train_size", "4")
    refused(capsys, "fit", *OPTIONS, "--trainer.precision", "bf16-true")
    refused(
        capsys,
        "fit",
        *OPTIONS,
        "--checkpoint.monitor",
        "val/los",
        "--checkpoint.save_top_k",
        "1",
        "--trainer.logger.name",
        "x",
    )
    assert sorted(Path("runs/here").iterdir()) == before


def test_a_folder_in_use_is_refused(capsys: Any) -> None:
    """A second training in the same folder is refused, because the two would mix their metrics and checkpoints."""
    with RunFolders() as folders:
        folders.claim(RUN)
        assert "runs/here/fit is in use by another process" in refused(capsys, "fit", *OPTIONS, *HERE)


def test_the_default_checkpoint_interval(capsys: Any) -> None:
    """Checkpoints are saved every 100 steps unless another interval is set, and a monitor needs `save_top_k`."""
    main(["fit", *OPTIONS, "--checkpoint.every_n_epochs", "1", "--trainer.logger.version", "epochs"])
    saving = yaml.safe_load(Path("runs/here/epochs/config.yaml").read_text())["checkpoint"]
    assert (saving["every_n_epochs"], saving["every_n_train_steps"]) == (1, None)
    assert yaml.safe_load((RUN / "config.yaml").read_text())["checkpoint"]["every_n_train_steps"] == 100
    message = refused(capsys, "fit", *OPTIONS, "--checkpoint.monitor", "val/loss")
    assert message.endswith("add --checkpoint.save_top_k 1")
