"""All loggers of a run write to one folder, contain the same numbers, and contain pictures if they can show them."""

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
from patchword.errors import UserError
from patchword.training.loggers import join

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
    """Run each test in an empty folder with a link to configs/, and restore the environment afterwards."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    yield
    os.environ.clear()
    os.environ.update(before)


def events(folder: Path) -> EventAccumulator:
    """Return everything that TensorBoard shows."""
    found = EventAccumulator(str(folder), size_guidance={SCALARS: 0, IMAGES: 0})
    return found.Reload()


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """Return the value of each metric at each step in `metrics.csv`."""
    table = pd.read_csv(folder / "metrics.csv").set_index("step")
    return {name: table[name].dropna().to_dict() for name in table}


def shown(accumulator: EventAccumulator) -> dict[str, dict[int, float]]:
    """Return the value of each scalar at each step in TensorBoard."""
    return {name: {e.step: e.value for e in accumulator.Scalars(name)} for name in accumulator.Tags()["scalars"]}


def require_equal(folder: Path) -> dict[str, dict[int, float]]:
    """Check that TensorBoard has the metrics and steps of `metrics.csv`, and return them."""
    written, seen = curves(folder), shown(events(folder))
    assert seen.keys() == written.keys()
    for name, values in written.items():
        assert seen[name] == pytest.approx(values, rel=1e-6), name
    return written


def test_tensorboard_has_the_metrics_of_the_csv_and_the_maps() -> None:
    """Both are in one folder with no other files, and a second run in the same folder replaces both."""
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


def test_a_resumed_run_continues_in_its_folder() -> None:
    """Earlier metrics are kept, which Lightning's CSVLogger would delete, and each later step occurs once."""
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
    """TensorBoard has pictures of every test split."""
    main([*FIT, *HERE])
    checkpoint = str(RUN / "checkpoints" / "last.ckpt")
    main(["test", *FIT[1:], *HERE, "--trainer.logger.version", "test", "--ckpt_path", checkpoint])
    pictures = {tag.rpartition("_")[0] for tag in events(Path("runs/here/test")).Tags()["images"]}
    assert pictures == {"maps/test", "maps/unseen_combinations", "maps/unseen_concepts"}
    assert "test/loss" in require_equal(Path("runs/here/test"))


def test_weights_and_biases_offline() -> None:
    """Offline, W&B gets the name, metrics and pictures of the run, and writes to the run's folder."""
    main([*FIT, *HERE, "--loggers+=WandbLogger", "--loggers.offline=true"])
    run = wandb.run
    assert run.name == "here/fit"
    assert run.config["token_selection"] == "content"
    last_loss = run.summary["train/loss"]
    wandb.teardown()  # unlike `finish`, this waits for the process that writes the files
    (place,) = RUN.glob("wandb/offline-run-*")
    assert (place / f"run-{run.id}.wandb").stat().st_size > 1000
    (picture,) = place.glob("files/media/images/maps/val_*.png")
    (drawn,) = (RUN / "maps").glob("*.png")
    assert picture.read_bytes() == drawn.read_bytes()
    loss = require_equal(RUN)["train/loss"]
    assert last_loss == pytest.approx(loss[max(loss)], rel=1e-6)
    assert not Path("wandb").exists()


def test_without_further_loggers() -> None:
    """`--loggers null` keeps only the CSV file, and a run without a logger, or a trial run, logs nothing."""
    main([*FIT, *HERE, "--loggers", "null"])
    assert not list(RUN.glob("events*"))
    assert "train/loss" in curves(RUN)
    for options in (["--trainer.logger", "false", "--maps.samples", "0"], ["--trainer.fast_dev_run", "true"]):
        main([*FIT, *options, "--checkpoint.dirpath", "kept"])
    assert not list(Path.cwd().rglob("version_0"))
    assert len(list(Path.cwd().rglob("metrics.csv"))) == 1


def test_another_logger_of_the_trainer_keeps_its_folder(tmp_path: Path) -> None:
    """Each kind of logger occurs once, CSV is added to the folder of others, and a logger without a folder gets one."""
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


def test_an_incomplete_last_row_is_dropped(tmp_path: Path) -> None:
    """A killed run may leave an incomplete last line. A broken line elsewhere is an error that names file and line."""
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss\r\n0,0,2.5\r\n0,1,2.0\r\n0,2,1.")
    join([CSVLogger(tmp_path, name="", version="")], [], 2)
    assert curves(tmp_path) == {"epoch": {0: 0, 1: 0}, "train/loss": {0: 2.5, 1: 2.0}}
    path.write_text("epoch,step,train/loss\r\n0,0,2.5\r\n0,\r\n0,2,1.5\r\n")
    with pytest.raises(UserError, match=r"metrics.csv, line 3: this line is not a row of metrics"):
        join([CSVLogger(tmp_path, name="", version="")], [], 2)


def test_a_new_metric_keeps_the_rows_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new metric needs a new header, so the file is rewritten; if that fails, the old file is kept."""
    (logger,) = join([CSVLogger(tmp_path, name="", version="")], [], 0)
    logger.log_metrics({"train/loss": 2.0}, 0)
    logger.save()
    with monkeypatch.context() as context:
        context.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
        logger.log_metrics({"val/loss": 1.0}, 0)
        with pytest.raises(OSError, match="full"):
            logger.save()
    assert curves(tmp_path) == {"train/loss": {0: 2.0}}
