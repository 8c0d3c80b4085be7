"""What a run leaves in its loggers: one folder, the same numbers in each, pictures where they can be shown."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of its first import
import pandas as pd
import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

from patchword.cli import main
from patchword.loggers import join

ROOT = Path(__file__).parents[1]
RUN = Path("runs/here/fit")
FIT = [
    *("fit", "--config", "configs/sparc.yaml", "--maps.samples", "1", "--trainer.log_every_n_steps", "1"),
    *("--data.batch_size", "16", "--data.train_size", "48", "--data.val_size", "16", "--data.test_size", "16"),
    *("--data.num_workers", "0", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"),
]
HERE = ["--trainer.logger.name", "here", "--trainer.logger.version", "fit"]


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test runs in an empty folder that can see configs/, and leaves the environment as it was."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    yield
    os.environ.clear()
    os.environ.update(before)


def events(folder: Path) -> EventAccumulator:
    """Everything that TensorBoard would show."""
    found = EventAccumulator(str(folder), size_guidance={SCALARS: 0, IMAGES: 0})
    return found.Reload()


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """`metrics.csv`: the value of each metric at each step."""
    table = pd.read_csv(folder / "metrics.csv").set_index("step")
    return {name: table[name].dropna().to_dict() for name in table}


def shown(accumulator: EventAccumulator) -> dict[str, dict[int, float]]:
    """The scalars of TensorBoard, likewise."""
    return {name: {e.step: e.value for e in accumulator.Scalars(name)} for name in accumulator.Tags()["scalars"]}


def require_equal(folder: Path) -> dict[str, dict[int, float]]:
    """TensorBoard has the metrics and steps of `metrics.csv`; returns them."""
    written, seen = curves(folder), shown(events(folder))
    assert seen.keys() == written.keys()
    for name, values in written.items():
        assert seen[name] == pytest.approx(values, rel=1e-6), name
    return written


def test_tensorboard_shows_what_the_csv_holds_and_the_maps() -> None:
    """In one folder, nothing else in it; a second run in the same folder replaces the first in both."""
    main([*FIT, *HERE])
    assert set(require_equal(RUN)["train/loss"]) == {0, 1, 2}
    (tag,) = events(RUN).Tags()["images"]
    (picture,) = events(RUN).Images(tag)
    assert tag.startswith("maps/val_")
    assert picture.step == 2
    assert min(picture.width, picture.height) > 100
    (events_file,) = RUN.glob("events*")
    names = {path.name for path in RUN.iterdir()}
    assert names == {"checkpoints", "maps", "config.yaml", "hparams.yaml", "metrics.csv", events_file.name}

    main([*FIT, *HERE, "--trainer.limit_train_batches", "2"])
    assert set(require_equal(RUN)["train/loss"]) == {0, 1}


def test_a_resumed_run_goes_on_in_its_folder() -> None:
    """Lightning's CSVLogger would delete what it finds; steps after the checkpoint are there once."""
    main([*FIT, *HERE, "--trainer.max_steps", "1"])
    shutil.copy(RUN / "checkpoints" / "last.ckpt", "first_step.ckpt")
    main([*FIT, *HERE, "--ckpt_path", "first_step.ckpt"])
    once = require_equal(RUN)
    assert set(once["train/loss"]) == {0, 1, 2}
    pictures = events(RUN).Tags()["images"]
    main([*FIT, *HERE, "--ckpt_path", "first_step.ckpt"])
    assert require_equal(RUN) == once
    assert len(pd.read_csv(RUN / "metrics.csv")) == 4
    assert events(RUN).Tags()["images"] == pictures
    main([*FIT, *HERE, "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    longer = require_equal(RUN)["train/loss"]
    assert set(longer) == {0, 1, 2, 3, 4, 5}
    assert {step: longer[step] for step in (0, 1, 2)} == once["train/loss"]


def test_a_test_shows_its_maps() -> None:
    """Pictures of every test split."""
    main([*FIT, *HERE])
    checkpoint = str(RUN / "checkpoints" / "last.ckpt")
    main(["test", *FIT[1:], *HERE, "--trainer.logger.version", "test", "--ckpt_path", checkpoint])
    pictures = {tag.rpartition("_")[0] for tag in events(Path("runs/here/test")).Tags()["images"]}
    assert pictures == {"maps/test", "maps/unseen_combinations", "maps/unseen_concepts"}
    assert "test/loss" in require_equal(Path("runs/here/test"))


def test_weights_and_biases_offline() -> None:
    """Without network and account, beside TensorBoard, in the run's folder, with the run's name and pictures."""
    main([*FIT, *HERE, "--loggers+=WandbLogger", "--loggers.offline=true"])
    run = wandb.run
    assert run.name == "here/fit"
    assert run.config["tokens"] == "content"
    last_loss = run.summary["train/loss"]
    wandb.teardown()  # unlike `finish`, waits for the process that writes
    (place,) = RUN.glob("wandb/offline-run-*")
    assert (place / f"run-{run.id}.wandb").stat().st_size > 1000
    (picture,) = place.glob("files/media/images/maps/val_*.png")
    (drawn,) = (RUN / "maps").glob("*.png")
    assert picture.read_bytes() == drawn.read_bytes()
    loss = require_equal(RUN)["train/loss"]
    assert last_loss == pytest.approx(loss[max(loss)], rel=1e-6)
    assert not Path("wandb").exists()


def test_without_further_loggers() -> None:
    """`--loggers null` leaves CSV alone; without any logger, or in a trial, nothing is logged."""
    main([*FIT, *HERE, "--loggers", "null"])
    assert not list(RUN.glob("events*"))
    assert "train/loss" in curves(RUN)
    for options in (["--trainer.logger", "false", "--maps.samples", "0"], ["--trainer.fast_dev_run", "true"]):
        main([*FIT, *options, "--checkpoint.dirpath", "kept"])
    assert not list(Path.cwd().rglob("version_0"))
    assert len(list(Path.cwd().rglob("metrics.csv"))) == 1


def test_another_logger_of_the_trainer_keeps_its_folder(tmp_path: Path) -> None:
    """One of each kind; CSV beside TensorBoard; what has no folder of its own gets one, which runs do not share."""
    further = [(TensorBoardLogger, {})]
    board, table = join([TensorBoardLogger(tmp_path, name="x", version="1")], further, 0)
    assert isinstance(table, CSVLogger)
    assert Path(table.log_dir) == Path(board.log_dir) == tmp_path / "x" / "1"
    table, only = join([CSVLogger(tmp_path, name="x"), board], further, 0)
    assert only is board
    offline = WandbLogger(save_dir=str(tmp_path), offline=True)
    table, second, board = join([offline], further, 0)
    assert isinstance(table, CSVLogger)
    assert second is offline
    assert Path(board.log_dir) == Path(table.log_dir) == tmp_path / "lightning_logs" / "version_0"
    assert join([], further, 0) == []
    assert len(join([DummyLogger()], further, 0)) == 1
