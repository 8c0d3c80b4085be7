"""Tests that the detector learns on emoji scenes, what it trains, and its error messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything

from patchword.cli import main as run_patchword
from patchword.data.scenes.datamodule import Scenes
from patchword.detector.__main__ import main
from patchword.detector.matching import set_loss
from patchword.detector.module import Detector, objects_of
from patchword.errors import UserError
from patchword.objectives import SPARC
from tests import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that was trained for some steps."""
    folder = tmp_path_factory.mktemp("start")
    run = tiny.trainer(folder, max_epochs=1, limit_val_batches=0)
    run.fit(tiny.module(SPARC()), tiny.data(train_size=480))
    return str(folder / "last.ckpt")


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(accelerator="cpu", default_root_dir=folder, enable_checkpointing=False, **quiet, **options)


def test_objects_of_a_batch() -> None:
    """Every box of every phrase is an object, as shares of the image, with its phrase as the query."""
    data = tiny.data()
    batch = next(iter(data.val_dataloader()))
    names, objects = objects_of(batch, (64, 64))
    assert names == sorted({*names})
    seen = {(int(n), names[int(q)]) for n, q in zip(objects.image, objects.query, strict=True)}
    expected = set()
    for row, (start, end) in zip(batch.phrase_caption.tolist(), batch.phrase_span.tolist(), strict=True):
        expected.add((int(batch.caption_image[row]), batch.captions[row][start:end]))
    assert seen == expected
    first = batch.boxes[0] / 64
    middle = torch.stack(
        [(first[0] + first[2]) / 2, (first[1] + first[3]) / 2, first[2] - first[0], first[3] - first[1]]
    )
    assert (objects.boxes - middle).abs().sum(1).min() < 1e-6


def test_heads_and_loss_are_in_float32_under_autocast(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --trainer.precision bf16-mixed, only the towers compute in bfloat16; a cosine keeps its digits."""
    seen: list[torch.dtype] = []

    def recorded(logits: torch.Tensor, boxes: torch.Tensor, *rest: Any) -> dict[str, torch.Tensor]:
        seen.extend([logits.dtype, boxes.dtype])
        terms = set_loss(logits, boxes, *rest)
        seen.extend(term.dtype for term in terms.values())
        return terms

    monkeypatch.setattr("patchword.detector.module.set_loss", recorded)
    run = trainer(Path(start).parent, max_steps=1, limit_val_batches=0, precision="bf16-mixed")
    run.fit(Detector(start), tiny.data())
    assert seen == [torch.float32] * 5


@pytest.mark.thorough
def test_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe on the page: the loss falls, and precision rises above permuted names and above the first heads."""
    monkeypatch.chdir(tmp_path)
    sizes = ["--data.train_size", "8000", "--data.val_size", "64", "--data.num_workers", "0"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0"]
    run_patchword(["fit", "--config", "configs/sparc.yaml", "--trainer.max_epochs", "1", *sizes, *quiet])
    seed_everything(0)
    detector = Detector(str(next(Path("runs").rglob("last.ckpt"))), tower_learning_rate=1e-3)
    data = Scenes(train_size=4000, val_size=64)
    run = trainer(tmp_path, max_epochs=2, log_every_n_steps=1, gradient_clip_val=1.0)
    before = run.validate(detector, data, verbose=False)[0]
    losses: list[float] = []
    original = detector.training_step

    def recorded(batch: Any, batch_idx: int) -> torch.Tensor:
        loss = original(batch, batch_idx)
        losses.append(loss.item())
        return loss

    detector.training_step = recorded  # type: ignore[method-assign]
    run.fit(detector, data)
    after = {name: float(value) for name, value in run.callback_metrics.items()}
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert after["val/map@0.3"] > 3 * after["val/chance_map@0.3"], after
    assert after["val/map@0.3"] > 3 * before["val/map@0.3"], (before, after)
    assert after["val/map@0.3"] > 0.05, after
    assert after["val/map@0.5"] <= after["val/map@0.3"]


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_what_is_trained(start: str, tmp_path: Path, rate: float) -> None:
    """The heads always, the image tower if its learning rate is above 0, the text tower and batch norms never."""
    detector = Detector(start, tower_learning_rate=rate)
    first = {name: value.clone() for name, value in detector.state_dict().items()}
    trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(detector, tiny.data())
    changed = {name for name, value in detector.state_dict().items() if not torch.equal(value, first[name])}
    assert any(name.startswith("heads.") for name in changed)
    assert any(name.startswith("encoder.image") for name in changed) == (rate > 0)
    assert not any(name.startswith("encoder.text") or "running" in name for name in changed)


def test_mistakes(start: str, tmp_path: Path) -> None:
    """No checkpoint, and no boxes."""
    with pytest.raises(UserError, match=r"none\.ckpt"):
        Detector(str(tmp_path / "none.ckpt"))
    detector = Detector(start)
    batch = next(iter(tiny.data().val_dataloader()))
    batch.boxes, batch.box_phrase = batch.boxes[:0], batch.box_phrase[:0]
    with pytest.raises(UserError, match="no phrase with a box"):
        detector.training_step(batch, 0)


def test_the_configuration(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The file runs from the command line, and a missing checkpoint is one line."""
    monkeypatch.chdir(tmp_path)
    path = ROOT / "configs/detector/scenes.yaml"
    assert yaml.safe_load(path.read_text())["model"]["weights"]["l1"] == 1
    sizes = ["--data.train_size", "64", "--data.val_size", "8"]
    few = [*sizes, "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    options = ["detector", "fit", "--config", str(path), *few, *quiet, "--trainer.accelerator", "cpu"]
    monkeypatch.setattr("sys.argv", [*options, "--model.checkpoint", start])
    main()
    assert "val/map@0.5" in next(Path("runs/detector").rglob("metrics.csv")).read_text()
    monkeypatch.setattr("sys.argv", [*options, "--model.checkpoint", "nowhere"])
    with pytest.raises(SystemExit, match=r"patchword: error: .*nowhere"):
        main()
