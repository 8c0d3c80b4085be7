"""Several processes train, validate, resume, test and predict like one process, and do not hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
COMMON = [
    *("--data.batch_size", "8", "--data.train_size", "64", "--data.val_size", "17", "--data.test_size", "9"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"),
    *("--maps.samples", "1"),
]
TWO = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]


def run(folder: Path, command: str, *arguments: str, program: str = "patchword") -> None:
    """Run a command that must succeed within five minutes."""
    whole = [
        str(Path(sys.executable).parent / program),
        command,
        "--config",
        str(ROOT / "configs/sparc.yaml"),
        *COMMON,
        *arguments,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(whole, cwd=folder, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on two processes for an epoch of four steps with 2 x 8 pairs, and return the folder."""
    folder = tmp_path_factory.mktemp("ddp")
    run(folder, "fit", "--trainer.max_epochs", "1", *TWO)
    return folder


def test_two_processes_train_as_one_with_the_whole_batch(trained: Path, tmp_path: Path) -> None:
    """With the same batches, the first loss equals that of one process with batch size 16."""
    run(tmp_path, "fit", "--trainer.max_epochs", "1", "--data.batch_size", "16")
    one, two = (
        pd.read_csv(folder / "runs/sparc/version_0/metrics.csv")["val/retrieval/images"].dropna()
        for folder in (tmp_path, trained)
    )
    assert one.tolist() == two.tolist() == [17.0]  # although the sampler hands 18 samples to two ranks
    saved = [
        torch.load(folder / "runs/sparc/version_0/checkpoints/last.ckpt", weights_only=True)
        for folder in (tmp_path, trained)
    ]
    assert [checkpoint["global_step"] for checkpoint in saved] == [4, 4]
    assert len(saved[1]["rng_states"]) == 2
    # Batch norms share their statistics; what differs is rounding, which Adam makes larger.
    for name, x in saved[0]["state_dict"].items():
        difference = (saved[1]["state_dict"][name] - x).double().norm()
        assert difference <= 0.01 * x.double().norm() + 1e-3, name


EXACT = """
model:
  encoder:
    init_args:
      image: {class_path: TimmImage, init_args: {name: vit_tiny_patch16_224, image_size: 64, level: -1,
        model_args: {depth: 2, embed_dim: 32, num_heads: 2}}}
      text: {class_path: HFText, init_args: {config: {model_type: t5, num_layers: 1,
        d_model: 32, d_ff: 64, num_heads: 2, d_kv: 16, dropout_rate: 0.0}}}
trainer: {precision: 64-true, max_epochs: 1, limit_val_batches: 0, gradient_clip_val: 1.0}
"""


@pytest.mark.parametrize(
    ("devices", "modes"),
    [(2, []), (3, ["--model.text_exchange", "ring", "--model.chunk_size", "2"])],
    ids=["2", "3-ring-chunks"],
)
def test_processes_end_in_the_weights_of_one(
    one_exact: dict[str, Any], tmp_path: Path, devices: int, modes: list[str]
) -> None:
    """Four steps in float64 with 12 pairs give the same weights on any number of processes."""
    split = ["--data.batch_size", str(12 // devices), "--trainer.devices", str(devices), "--trainer.strategy", "ddp"]
    found = fit_exactly(tmp_path, *split, *modes)
    for name, x in one_exact.items():  # `losses` are those that were logged
        assert_close(found[name], x, rtol=1e-5, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture(scope="module")
def one_exact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the weights after four steps of one process with 12 pairs."""
    return fit_exactly(tmp_path_factory.mktemp("one"), "--data.batch_size", "12")


def fit_exactly(folder: Path, *arguments: str) -> dict[str, Any]:
    """Return the weights and losses of a float64 training of towers without batch norm."""
    (folder / "exact.yaml").write_text(EXACT)
    run(folder, "fit", "--config", "exact.yaml", "--data.train_size", "48", *arguments, program="lightning")
    place = folder / "runs/sparc/version_0"
    losses = pd.read_csv(place / "metrics.csv")["train/loss"].dropna()
    assert len(losses) == 4
    weights = torch.load(place / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return weights | {"losses": torch.tensor(losses.to_numpy())}


def test_two_processes_resume_test_and_predict(trained: Path) -> None:
    """Two processes continue a run, and their test results equal those of one process."""
    checkpoint = ["--ckpt_path", "runs/sparc/version_0/checkpoints/last.ckpt"]
    place = ["--trainer.logger.version"]
    run(trained, "fit", "--trainer.max_epochs", "2", *place, "resumed", *checkpoint, *TWO)
    resumed = torch.load(trained / "runs/sparc/resumed/checkpoints/last.ckpt", weights_only=True)
    assert resumed["global_step"] == 8
    for name, devices in ("one", []), ("two", TWO):
        run(trained, "test", *place, name, *checkpoint, *devices)
    one, two = (json.loads((trained / f"runs/sparc/{name}/results.json").read_text()) for name in ("one", "two"))
    assert one["measured"]["definition"] == two["measured"]["definition"], "the same samples, each once"
    assert (one["measured"]["hardware"]["devices"], two["measured"]["hardware"]["devices"]) == (1, 2)
    one, two = one["metrics"], two["metrics"]
    counted = [name for name in one if not name.endswith(("loss", "/global", "/local"))]  # a loss depends on the batch
    assert len(counted) > 100
    assert {name: two[name] for name in counted} == pytest.approx({name: one[name] for name in counted}, abs=1e-5)
    # No loading process: one has been seen to hang in fork(), before any code of ours, beside the launcher's threads.
    run(trained, "predict", *place, "predicted", *checkpoint, *TWO, "--data.num_workers", "0")
    tables = sorted((trained / "runs/sparc/predicted/predictions").glob("test_rank_*.csv"))
    assert len(tables) == 2
    assert set(pd.concat(map(pd.read_csv, tables))["id"]) == set(range(9))
