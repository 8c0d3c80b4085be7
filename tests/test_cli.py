"""The command line, run as a user runs it (in this process where that saves the imports)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of its first import
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from patchword.cli import main

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SMALL = [
    *("--data.batch_size", "16", "--data.train_size", "64", "--data.val_size", "16", "--data.test_size", "16"),
    *("--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--checkpoint.every_n_train_steps", "2"),
    *("--maps.samples", "1", "--trainer.log_every_n_steps", "1"),
]


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test runs in an empty folder that can see configs/, and leaves the environment as it was."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    yield
    os.environ.clear()
    os.environ.update(before)


def resolved(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What `--print_config` prints."""
    with pytest.raises(SystemExit) as ended:
        main(["fit", *arguments, "--print_config"])
    assert ended.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that must fail, in one paragraph, without a traceback."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("patchword: error: ")]
    return line.removeprefix("patchword: error: ")


def test_fit_test_resume_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way: train, look at what was written, test from the checkpoint alone, resume, predict."""
    fit = ["fit", "--config", "configs/sparc.yaml", *SMALL]
    main(fit)
    run = Path("runs/sparc/version_0")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["init_args"]["train_size"] == 64
    assert "${" not in (run / "config.yaml").read_text()
    assert {"train/loss", "val/loss"} <= set(pd.read_csv(run / "metrics.csv").columns)
    assert len(list((run / "maps").glob("val_step_*.png"))) == 1
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 4

    capsys.readouterr()
    data = yaml.safe_dump({"data": config["data"], "trainer": {"logger": config["trainer"]["logger"]}})
    Path("data.yaml").write_text(data)
    main(["test", "--config", "data.yaml", "--ckpt_path", str(checkpoint), "--maps.samples", "1"])
    printed = capsys.readouterr().out
    for word in ("unseen_combinations", "align", "cosine", "dot", "centre", "chance", "results.json"):
        assert word in printed
    results = json.loads(Path("runs/sparc/version_1/results.json").read_text())
    assert results["metrics"]["test/retrieval/images"] == 16
    assert results["measured"]["model"]["objective"]["class_path"].endswith("SPARC")
    assert results["measured"]["data"]["init_args"]["test_size"] == 16
    trained = results["measured"]["trained"]
    assert (trained["patchword"], trained["seed"], trained["steps"], trained["batch"]) == ("0.1.0", 0, 4, 16)
    assert results["measured"]["definition"]["splits"]["test"]["samples"] == 16
    names = {path.name.rpartition("_")[0] for path in Path("runs/sparc/version_1/maps").iterdir()}
    assert names == {"test", "unseen_combinations", "unseen_concepts"}

    main([*fit, "--trainer.max_epochs", "2", "--ckpt_path", str(checkpoint)])
    resumed = torch.load("runs/sparc/version_2/checkpoints/last.ckpt", weights_only=True)
    assert resumed["global_step"] == 8

    main(["predict", "--config", "data.yaml", "--ckpt_path", str(checkpoint)])
    folder = Path("runs/sparc/version_3/predictions")
    table = pd.read_csv(folder / "test.csv")
    assert list(table.columns) == ["id", "caption_number", "caption", "score"]
    assert len(table) == 16
    saved = np.load(folder / "test" / "0_0.npz")
    assert saved["map"].shape == (len(saved["spans"]), saved["grid"].prod())
    np.testing.assert_allclose(saved["map"].sum(-1), 1, atol=1e-5)  # SPARC's weights


def test_the_command_line_wins_over_the_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning lets a checkpoint's hyper-parameters override what was typed."""
    main(["fit", "--config", "configs/clip.yaml", *SMALL, "--model.objective.temperature", "0.2"])
    capsys.readouterr()
    path = ["--ckpt_path", "runs/clip/version_0/checkpoints/last.ckpt"]
    data = ["--data", "Scenes"]
    assert resolved(capsys, *data, *path)["model"]["objective"]["init_args"]["temperature"] == 0.2
    typed = resolved(capsys, *data, *path, "--model.objective.temperature", "0.5", "--model.query", "span")
    assert typed["model"]["objective"]["init_args"]["temperature"] == 0.5
    assert typed["model"]["query"] == "span"


@pytest.mark.parametrize(
    "name", sorted(p.name for p in (ROOT / "configs").glob("*.yaml") if "claim:" not in p.read_text())
)
def test_every_configuration_builds_and_trains_a_step(name: str) -> None:
    main(["fit", "--config", f"configs/{name}", *SMALL, "--trainer.fast_dev_run", "true"])


def test_values_and_classes_are_overridden(capsys: pytest.CaptureFixture[str]) -> None:
    sparc = ["--config", "configs/sparc.yaml"]
    model = resolved(capsys, *sparc, "--model.objective.threshold", "0.3")["model"]
    assert model["objective"]["init_args"]["threshold"] == 0.3
    model = resolved(capsys, *sparc, "--model.objective", "CLIP")["model"]
    assert model["objective"] == {"class_path": "patchword.objectives.CLIP", "init_args": {"temperature": 0.07}}
    clip = resolved(capsys, "--config", "configs/clip.yaml", "--model.objective", "SPARC")["model"]
    assert clip["objective"]["class_path"] == "patchword.objectives.SPARC"


def test_configurations_compose_and_references_follow(capsys: pytest.CaptureFixture[str]) -> None:
    """Later files win, references cross files, and they see what the command line overrides."""
    Path("more.yaml").write_text("model: {objective: {init_args: {local_weight: '${vars.weight}'}}}\nvars: {weight: 5}")
    files = ["--config", "configs/sparc.yaml", "--config", "more.yaml"]
    config = resolved(capsys, *files, "--model.encoder.image.image_size", "96", "--seed_everything", "7")
    assert config["model"]["objective"]["init_args"]["local_weight"] == 5
    assert config["data"]["init_args"]["image_size"] == 96
    assert config["data"]["init_args"]["seed"] == 7
    assert resolved(capsys, *files, "--vars.weight", "2")["model"]["objective"]["init_args"]["local_weight"] == 2


def test_packaged_configurations_are_found_from_any_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "configs").unlink()
    assert resolved(capsys, "--config", "configs/sparc.yaml")["model"]["tokens"] == "content"
    assert resolved(capsys, "--config=configs/sparc.yaml")["model"]["tokens"] == "content"


SPARC = ("fit", "--config", "configs/sparc.yaml")
MISTAKES = {
    "unknown command": (("train",), "'train' is not a command; choose from fit, validate"),
    "unknown option": ((*SPARC, "--model.querry=span"), "no option 'model.querry'; did you mean model.query"),
    "unknown objective": ((*SPARC, "--model.objective", "SPARK"), "no class 'SPARK'; did you mean SPARC?"),
    "unknown suite": (
        ("test", "--config", "configs/sparc.yaml", "--data", "Winogrande"),
        "no class 'Winogrande'; did you mean Winoground?",
    ),
    "unknown objective option": (
        (*SPARC, "--model.objective.treshold", "1"),
        "SPARC has no option 'treshold'; did you mean threshold?",
    ),
    "unknown data option": (
        (*SPARC, "--data.batchsize", "1"),
        "Scenes has no option 'batchsize'; did you mean batch_size",
    ),
    "wrong type": ((*SPARC, "--trainer.max_epochs", "many"), "trainer.max_epochs"),
    "wrong value": ((*SPARC, "--model.tokens", "some"), "model.tokens"),
    "value out of range": ((*SPARC, "--model.objective.threshold", "7"), "threshold must lie in [0, 1]"),
    "missing file": (("fit", "--config", "nowhere.yaml"), "nowhere.yaml"),
    "missing configuration": (("fit",), "model.encoder, fit.model.objective, fit.data"),
    "missing checkpoint": ((*SPARC, "--ckpt_path", "no.ckpt"), "no.ckpt: there is no such file"),
    "a checkpoint that is none": ((*SPARC, "--ckpt_path", "configs/sparc.yaml"), "not a checkpoint of patchword"),
    "unknown timm model": (
        (*SPARC, "--model.encoder.image.name", "mobilenetv4_conv_smal"),
        "timm has no model 'mobilenetv4_conv_smal': did you mean mobilenetv4_conv_small",
    ),
    "reference to nothing": ((*SPARC, "--config", "reference.yaml"), "model.nothing"),
    "sizes that differ": ((*SPARC, *SMALL, "--data.image_size", "96"), "image_size"),
    "a batch larger than the data": ((*SPARC, *SMALL, "--data.batch_size", "65"), "do not fill a batch of 65"),
    "no such folder": (
        (*SPARC, "--data", "CaptionFolder", "--data.root", "nowhere"),
        "nowhere",
    ),
    "no workers": ((*SPARC, "--data.num_workers", "-1"), "num_workers must be 0"),
    "no batch": ((*SPARC, "--data.batch_size", "0"), "batch_size must be 1 or more"),
    "no dimension": ((*SPARC, "--model.encoder.embed_dim", "0"), "embed_dim must be 1 or more"),
    "objects the wrong way round": ((*SPARC, "--data.objects", "[4,2]"), "objects must be a smallest and a largest"),
    "not a number": ((*SPARC, "--model.objective.threshold", "abc"), "abc"),
    "not YAML": (("fit", "--config", "tabs.yaml"), "tabs.yaml is not YAML"),
    "an empty file": (("fit", "--config", "empty.yaml"), "empty.yaml holds no configuration"),
    "a log folder that is a file": ((*SPARC, *SMALL, "--trainer.logger.save_dir", "empty.yaml"), "empty.yaml"),
    "unknown option of a timm model": ((*SPARC, "--model.encoder.image.model_args", "{dept: 3}"), "'dept'"),
    "no such accelerator": ((*SPARC, "--trainer.accelerator", "gpu"), "gpu"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_clear_message(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("reference.yaml").write_text("model: {query: '${model.nothing}'}")
    Path("tabs.yaml").write_text("model:\n\tquery: span\n")
    Path("empty.yaml").write_text("")
    arguments, expected = MISTAKES[mistake]
    assert expected in refused(capsys, *arguments)


def own_images(folder: Path) -> Path:
    """The user's own data as the README describes it: 16 images of each split, one caption each."""
    for split in ("train", "val", "test"):
        (folder / split).mkdir(parents=True)
        rows = []
        for i in range(16):
            Image.new("RGB", (80, 70), (i * 10, 90, 200)).save(folder / split / f"{i}.png")
            rows.append({"file_name": f"{i}.png", "caption": "a red fish"})
        (folder / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


OWN = (
    *("fit", "--config", "configs/sparc.yaml", "--data", "CaptionFolder", "--data.root", "own"),
    *("--data.image_size", "64", "--data.batch_size", "4", "--trainer.max_epochs", "1"),
    *("--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"),
)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_truncated_image_is_named(capsys: pytest.CaptureFixture[str], workers: str) -> None:
    """In the training process as in a loader's worker, which sends its traceback along."""
    path = own_images(Path("own")) / "train" / "7.png"
    path.write_bytes(path.read_bytes()[:60])
    message = refused(capsys, *OWN, "--data.num_workers", workers)
    assert "7.png cannot be read" in message
    assert "metadata.jsonl" in message
    assert "on_error to skip" in message


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"file_name": "3.png", "caption": ""}, "caption"),
        ({"file_name": "3.png"}, "caption"),
        ({"file_name": "../3.png", "caption": "a fish"}, "../3.png"),
        ({"file_name": "3.png", "caption": "a fish", "phrases": [{"start": 2, "end": 99, "box": [0, 0, 9, 9]}]}, "99"),
    ],
    ids=["empty caption", "no caption", "outside the folder", "span outside the caption"],
)
def test_a_bad_row_is_named_before_training(
    capsys: pytest.CaptureFixture[str], row: dict[str, Any], expected: str
) -> None:
    path = own_images(Path("own")) / "train" / "metadata.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], json.dumps(row), *lines[4:]]))
    message = refused(capsys, *OWN)
    assert "metadata.jsonl" in message
    assert "line 4" in message or ":4" in message
    assert expected in message


def test_a_checkpoint_of_another_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    main([*SPARC, *SMALL])
    path = ("--ckpt_path", "runs/sparc/version_0/checkpoints/last.ckpt")
    message = refused(capsys, *SPARC, *SMALL, *path, "--model.encoder.embed_dim", "32")
    assert "made by another model" in message
    assert "adapter" in message


def test_help_needs_no_imports() -> None:
    """`patchword --help` answers at once; `--version` too."""
    code = (
        "import sys; from patchword.cli import main; main(['--help']); main(['--version']);"
        "assert not {'torch', 'lightning', 'timm', 'transformers'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: patchword COMMAND" in run.stdout


def test_help_of_a_command_comes_from_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--model.objective.help", "SPARC"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Min-max similarities below it become 0; null for 1 / number of patches." in printed


def test_lightning_is_the_same_program_and_hands_over_what_is_not_ours(tmp_path: Path) -> None:
    """`lightning fit` is ours; another word goes to whoever else offers the command, or is refused clearly."""
    helped = subprocess.run([BIN / "lightning", "--help"], capture_output=True, text=True, check=True)
    assert "patchword COMMAND" in helped.stdout
    refused = subprocess.run([BIN / "lightning", "studio"], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "'studio' is not a sub-command of patchword" in refused.stderr
    other = tmp_path / "site" / "other-1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[console_scripts]\nlightning = other_command:main\n")
    (tmp_path / "site" / "other_command.py").write_text("def main():\n    print('handed over')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    handed = subprocess.run([BIN / "lightning", "studio"], capture_output=True, text=True, check=True, env=environment)
    assert handed.stdout == "handed over\n"


def test_lightning_fit_literally(tmp_path: Path) -> None:
    """The command of the README, as a process of its own."""
    run = subprocess.run(
        [BIN / "lightning", "fit", "--config", "configs/sparc.yaml", *SMALL],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert (tmp_path / "runs/sparc/version_0/checkpoints/last.ckpt").exists()
