"""The command line works as a user would use it. Most tests call `main` in this process to save time on imports."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of its first import
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning import Callback, LightningDataModule

from patchword import AlignmentModule
from patchword.cached import CachedFeatures
from patchword.cli import main
from patchword.data.feature_cache import FeatureCache
from patchword.data.scenes.datamodule import Scenes
from patchword.data.tables.image_text import ImageText
from patchword.provenance.spec import Configurable
from patchword.suites import MSRCv2

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SMALL = [
    *("--data.batch_size", "16", "--data.train_size", "64", "--data.val_size", "16", "--data.test_size", "16"),
    *("--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--checkpoint.every_n_train_steps", "2"),
    *("--maps.samples", "1", "--trainer.log_every_n_steps", "1"),
]


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test in an empty folder with a link to configs/, and restore the environment afterwards."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    yield
    os.environ.clear()
    os.environ.update(before)


def resolved(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Return the configuration that `--print_config` prints."""
    with pytest.raises(SystemExit) as ended:
        main(["fit", *arguments, "--print_config"])
    assert ended.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail, and return its one-line message, which must come without a traceback."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("patchword: error: ")]
    return line.removeprefix("patchword: error: ")


def test_fit_test_resume_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model can be trained, tested from its checkpoint alone, resumed, and used to predict."""
    fit = ["fit", "--config", "configs/sparc.yaml", *SMALL]
    main([*fit, "--trainer.enable_progress_bar", "true"])
    run = Path("runs/sparc/version_0")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["init_args"]["train_size"] == 64
    assert "${" not in (run / "config.yaml").read_text()
    assert {"train/loss", "val/loss"} <= set(pd.read_csv(run / "metrics.csv").columns)
    assert len(list((run / "maps").glob("val_step_*.png"))) == 1
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 4

    printed = capsys.readouterr().out
    assert "Retrieval (16 images, 16 captions)" in printed  # of the last validation
    assert "written: runs/sparc/version_0\n" in printed
    (following,) = [line.removeprefix("next: patchword ") for line in printed.splitlines() if line.startswith("next: ")]
    assert printed.splitlines()[-1].startswith("next: ")  # below the progress bar
    data = yaml.safe_dump({"data": config["data"], "trainer": {"logger": config["trainer"]["logger"]}})
    Path("data.yaml").write_text(data)
    main(["test", "--config", "data.yaml", "--ckpt_path", str(checkpoint), "--maps.samples", "1"])
    printed = capsys.readouterr().out
    for word in ("unseen_combinations", "align", "cosine", "dot", "center prior", "chance", "results.json"):
        assert word in printed
    results = json.loads(Path("runs/sparc/test_0/results.json").read_text())
    assert results["metrics"]["test/retrieval/images"] == 16
    assert results["measured"]["model"]["objective"]["class_path"].endswith("SPARC")
    assert results["measured"]["data"]["init_args"]["test_size"] == 16
    trained = results["measured"]["trained"]
    assert (trained["patchword"], trained["seed"], trained["steps"], trained["batch"]) == ("0.1.0", 0, 4, 16)
    assert results["measured"]["definition"]["splits"]["test"]["samples"] == 16
    names = {path.name.rpartition("_")[0] for path in Path("runs/sparc/test_0/maps").iterdir()}
    assert names == {"test", "unseen_combinations", "unseen_concepts"}

    main([*fit, "--trainer.max_epochs", "2", "--ckpt_path", str(checkpoint)])
    resumed = torch.load("runs/sparc/version_1/checkpoints/last.ckpt", weights_only=True)
    assert resumed["global_step"] == 8

    before = (run / "config.yaml").read_text()
    main([*following.split(), "--maps.samples", "1"])
    assert "written: runs/sparc/test_1/results.json" in capsys.readouterr().out
    assert (run / "config.yaml").read_text() == before
    assert sorted(path.name for path in run.parent.iterdir()) == ["test_0", "test_1", "version_0", "version_1"]

    main(["predict", "--config", "data.yaml", "--ckpt_path", str(checkpoint)])
    assert "written: runs/sparc/predict_0/predictions" in capsys.readouterr().out
    folder = Path("runs/sparc/predict_0/predictions")
    table = pd.read_csv(folder / "test.csv")
    assert list(table.columns) == ["id", "caption_number", "caption", "score"]
    assert len(table) == 16
    with np.load(folder / "test" / "0_0.npz") as file:
        saved = dict(file)
    assert saved["map"].shape == (len(saved["spans"]), saved["grid"].prod())
    np.testing.assert_allclose(saved["map"].sum(-1), 1, atol=1e-5)  # SPARC's weights


def test_the_command_line_wins_over_the_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    """Options on the command line override those in the checkpoint. In stock LightningCLI the checkpoint wins."""
    main(["fit", "--config", "configs/clip.yaml", *SMALL, "--model.objective.temperature", "0.2"])
    capsys.readouterr()
    path = ["--ckpt_path", "runs/clip/version_0/checkpoints/last.ckpt"]
    data = ["--data", "Scenes"]
    assert resolved(capsys, *data, *path)["model"]["objective"]["init_args"]["temperature"] == 0.2
    typed = resolved(capsys, *data, *path, "--model.objective.temperature", "0.5", "--model.phrase_query", "span")
    assert typed["model"]["objective"]["init_args"]["temperature"] == 0.5
    assert typed["model"]["phrase_query"] == "span"


@pytest.mark.parametrize(
    "name", sorted(p.name for p in (ROOT / "configs").glob("*.yaml") if "claim:" not in p.read_text())
)
def test_every_configuration_builds_and_trains_a_step(name: str) -> None:
    """No configuration in configs/ has an option that does not exist or does not work."""
    main(["fit", "--config", f"configs/{name}", *SMALL, "--trainer.fast_dev_run", "true"])


def test_values_and_classes_are_overridden(capsys: pytest.CaptureFixture[str]) -> None:
    """The command line can change an option of the objective, or replace the objective."""
    sparc = ["--config", "configs/sparc.yaml"]
    model = resolved(capsys, *sparc, "--model.objective.threshold", "0.3")["model"]
    assert model["objective"]["init_args"]["threshold"] == 0.3
    model = resolved(capsys, *sparc, "--model.objective", "CLIP")["model"]
    assert model["objective"] == {"class_path": "patchword.objectives.CLIP", "init_args": {"temperature": 0.07}}
    clip = resolved(capsys, "--config", "configs/clip.yaml", "--model.objective", "SPARC")["model"]
    assert clip["objective"]["class_path"] == "patchword.objectives.SPARC"


def test_configurations_compose_and_references_follow(capsys: pytest.CaptureFixture[str]) -> None:
    """Later files override earlier ones, and `${...}` refers to the final values, across files and options."""
    Path("more.yaml").write_text("model: {objective: {init_args: {local_weight: '${vars.weight}'}}}\nvars: {weight: 5}")
    files = ["--config", "configs/sparc.yaml", "--config", "more.yaml"]
    config = resolved(capsys, *files, "--model.encoder.image.image_size", "96", "--seed_everything", "7")
    assert config["model"]["objective"]["init_args"]["local_weight"] == 5
    assert config["data"]["init_args"]["image_size"] == 96
    assert config["data"]["init_args"]["seed"] == 7
    assert resolved(capsys, *files, "--vars.weight", "2")["model"]["objective"]["init_args"]["local_weight"] == 2


def test_classes_inside_options_are_checked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A short class name inside a dict of an option resolves. It does not if the type of the option is unknown."""
    transfer = yaml.safe_load(Path("configs/natural/transfer.yaml").read_text())
    transfer["data"]["init_args"]["test_sets"]["coco"]["init_args"]["features"] = {"class_path": "CachedFeatures"}
    (tmp_path / "cached.yaml").write_text(yaml.safe_dump(transfer))
    files = ["configs/sparc.yaml", "configs/natural/flickr8k.yaml", str(tmp_path / "cached.yaml")]
    sets = resolved(capsys, *(word for file in files for word in ("--config", file)))["data"]["init_args"]["test_sets"]
    assert sets["msrc"]["class_path"] == "patchword.suites.MSRCv2"
    assert sets["coco"]["init_args"]["features"]["class_path"] == "patchword.cached.CachedFeatures"


def test_the_types_of_all_options_are_known() -> None:
    """jsonargparse accepts any value for an option whose annotation cannot be resolved, and builds no class from it."""

    def below(*classes: type) -> set[type]:
        return {*classes}.union(*(below(*cls.__subclasses__()) for cls in classes if cls.__subclasses__()))

    found = below(Configurable, LightningDataModule, Callback, FeatureCache, AlignmentModule)
    ours = [cls for cls in found if cls.__module__.startswith("patchword.") and "__init__" in vars(cls)]
    assert {ImageText, Scenes, MSRCv2, CachedFeatures} <= {*ours}
    for cls in ours:
        get_type_hints(inspect.unwrap(vars(cls)["__init__"]))


def test_packaged_configurations_are_found_from_any_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`configs/...` works in a folder that has no configs/."""
    (tmp_path / "configs").unlink()
    assert resolved(capsys, "--config", "configs/sparc.yaml")["model"]["token_selection"] == "content"
    assert resolved(capsys, "--config=configs/sparc.yaml")["model"]["token_selection"] == "content"


SPARC = ("fit", "--config", "configs/sparc.yaml")
MISTAKES = {
    "unknown command": (("train",), "'train' is not a command; choose from fit, validate"),
    "misspelt folder of a configuration": (
        ("fit", "--config", "confgs/sparc.yaml"),
        "--config confgs/sparc.yaml: there is no such file; did you mean configs/sparc.yaml",
    ),
    "a configuration that does not exist": (
        ("test", "--config=of_another_group.yaml"),
        "--config of_another_group.yaml: there is no such file; `patchword configs` lists the packaged files",
    ),
    "unknown option": (
        (*SPARC, "--model.phrase_querry=span"),
        "no option 'model.phrase_querry'; did you mean model.phrase_query",
    ),
    "unknown objective": ((*SPARC, "--model.objective", "SPARK"), "no class 'SPARK'; did you mean SPARC?"),
    "unknown optimizer": ((*SPARC, "--model.optimizer", "Adamm"), "no class 'Adamm'; did you mean Adam or "),
    "no optimizer": (
        (*SPARC, "--model.optimizer", "torch.optim.Nothing"),
        "model.optimizer: there is no class 'Nothing' in torch.optim; choose from ASGD, Adadelta, ",
    ),
    "an objective as optimizer": (
        (*SPARC, "--model.optimizer", "CLIP"),
        "model.optimizer: there is no class 'CLIP'; choose from ASGD, ",
    ),
    "unknown callback": (
        (*SPARC, "--trainer.callbacks+=Earlystop"),
        "trainer.callbacks: there is no class 'Earlystop'; did you mean EarlyStopping?",
    ),
    "no callback": (
        (*SPARC, "--trainer.callbacks", "[{class_path: lightning.pytorch.callbacks.EarlyStop}]"),
        "there is no class 'EarlyStop' in lightning.pytorch.callbacks; did you mean EarlyStopping?",
    ),
    "unknown logger": (
        (*SPARC, "--loggers", "WandbLoger"),
        "loggers: there is no class 'WandbLoger'; did you mean Wand",
    ),
    "unknown data": (
        (*SPARC, "--data", "nowhere.Foo"),
        "data: nowhere.Foo cannot be imported (No module named 'nowhere'); ",
    ),
    "unknown tower": (
        (*SPARC, "--model.encoder.image", "TimImage"),
        "model.encoder.image: there is no class 'TimImage'; did you mean TimmImage or HFImage?",
    ),
    "unknown cache": (
        (*SPARC, "--data.features", "CachedFeature"),
        "no class 'CachedFeature'; did you mean CachedFeatures?",
    ),
    "no schedule": (
        (*SPARC, "--model.schedule", "Cosine"),
        "there is no configuration file 'Cosine'; its options are model.schedule.final, model.schedule.warmup_steps",
    ),
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
    "wrong value": ((*SPARC, "--model.token_selection", "some"), "model.token_selection"),
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
        (*SPARC, "--data", "ImageText", "--data.source", "imagefolder", "--data.train", "nowhere", "--data.val", "x"),
        "there is no folder nowhere",
    ),
    "no workers": ((*SPARC, "--data.num_workers", "-1"), "num_workers must be 0"),
    "no batch": ((*SPARC, "--data.batch_size", "0"), "batch_size must be 1 or more"),
    "no dimension": ((*SPARC, "--model.encoder.embed_dim", "0"), "embed_dim must be 1 or more"),
    "objects the wrong way round": ((*SPARC, "--data.objects", "[4,2]"), "objects must be a smallest and a largest"),
    "not a number": ((*SPARC, "--model.objective.threshold", "abc"), "abc"),
    "no learning rate": ((*SPARC, "--model.optimizer.lr", "nan"), "model.optimizer.lr must be float, not nan"),
    "no flag": (
        (*SPARC, "--model.optimizer.foreach", "maybe"),
        "model.optimizer.foreach must be bool or null, not maybe",
    ),
    "no choice": (
        (*SPARC, "--model.objective.weights", "max"),
        "weights must be one of 'sparse', 'minmax', 'softmax', not",
    ),
    "a syntax error in a class": ((*SPARC, "--model.objective", "broken.Own"), "SyntaxError"),
    "an error in the module of a class": ((*SPARC, "--model.objective", "boom.Own"), "RuntimeError: boom (/"),
    "a wrong import": (
        (*SPARC, "--model.objective", "importing.Own"),
        "model.objective: importing.Own cannot be imported (No module named 'nothing_here')",
    ),
    "no objective": ((*SPARC, "--model.objective", "null"), "model.objective must name a class, not null"),
    "null for the optimizer": ((*SPARC, "--model.optimizer", "null"), "model.optimizer must name a class, not null"),
    "a list for a class": ((*SPARC, "--model.objective", "[1,2]"), "model.objective must name a class, not [1, 2]"),
    "a class of another kind": (
        (*SPARC, "--model.objective", "torch.nn.Linear"),
        "model.objective: torch.nn.Linear is not a class that inherits Objective",
    ),
    "a function that does not say what it returns": (
        (*SPARC, "--model.optimizer", "making.sgd"),
        "model.optimizer: annotate what making.sgd returns, so that it can be checked: def sgd(...) -> Optimizer:",
    ),
    "not YAML": (("fit", "--config", "tabs.yaml"), "tabs.yaml cannot be read as YAML"),
    "an empty file": (("fit", "--config", "empty.yaml"), "empty.yaml contains no configuration"),
    "a log folder that is a file": ((*SPARC, *SMALL, "--trainer.logger.save_dir", "empty.yaml"), "empty.yaml"),
    "unknown option of a timm model": ((*SPARC, "--model.encoder.image.model_args", "{dept: 3}"), "'dept'"),
    "no such accelerator": ((*SPARC, "--trainer.accelerator", "gpu"), "gpu"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_clear_message(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A user error ends with one line that names the option, file or value."""
    Path("reference.yaml").write_text("model: {chunk_size: '${model.nothing}'}")
    Path("tabs.yaml").write_text("model:\n\tquery: span\n")
    Path("empty.yaml").write_text("")
    Path("broken.py").write_text("from patchword import Objective\nclass Own(Objective:\n    pass\n")
    Path("boom.py").write_text("raise RuntimeError('boom')")
    Path("importing.py").write_text("import nothing_here")
    Path("making.py").write_text("import torch\ndef sgd(params):\n    return torch.optim.SGD(params, 0.1)\n")
    arguments, expected = MISTAKES[mistake]
    assert expected in refused(capsys, *arguments)


@pytest.mark.parametrize(("name", "source"), [("CaptionFolder", "imagefolder"), ("CaptionShards", "webdataset")])
def test_a_class_that_is_gone_names_what_takes_its_place(
    capsys: pytest.CaptureFixture[str], name: str, source: str
) -> None:
    """The message names the replacement if an old class is given on the command line or in an old configuration."""
    for path in (name, f"patchword.data.folder.{name}"):
        Path("old.yaml").write_text(f"data:\n  class_path: {path}\n")
        message = refused(capsys, *SPARC, "--config", "old.yaml")
        assert f"{name} was removed: use ImageText with source: {source}" in message


def test_a_checkpoint_of_another_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The message says that the model differs and names the weights that do not fit."""
    main([*SPARC, *SMALL])
    path = ("--ckpt_path", "runs/sparc/version_0/checkpoints/last.ckpt")
    message = refused(capsys, *SPARC, *SMALL, *path, "--model.encoder.embed_dim", "32")
    assert "made by another model" in message
    assert "adapter" in message


def test_help_and_missing_files_need_no_imports(tmp_path: Path) -> None:
    """Help, the list of configurations and errors in configuration files are fast: they import no large package."""
    (tmp_path / "broken.yaml").write_text("model: [")
    code = (
        "import sys; from patchword.cli import main; main(['--help']); main(['--version']); main(['configs'])\n"
        f"for file in 'spark.yaml', {str(tmp_path / 'broken.yaml')!r}:\n"
        "    try: main(['fit', '--config', file])\n"
        "    except SystemExit as end: assert end.code == 2\n"
        "assert not {'torch', 'lightning', 'timm', 'transformers', 'jsonargparse'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: patchword COMMAND" in run.stdout
    assert re.search(r"^configs/natural/flickr8k\.yaml +Flickr8k: 6,000 photographs", run.stdout, re.MULTILINE)
    assert "--config spark.yaml: there is no such file" in run.stderr
    assert "broken.yaml cannot be read as YAML" in run.stderr
    assert "in line 1" in run.stderr


def test_help_begins_with_our_own_keys(capsys: pytest.CaptureFixture[str]) -> None:
    """The keys of the model and the data come before the many keys of Lightning's trainer, and the usage is short."""
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    printed = capsys.readouterr().out
    places = [printed.index(f"\n  --{key}") for key in ("model.objective ", "data", "checkpoint", "trainer.devices")]
    assert places == sorted(places)
    assert printed.startswith("usage: patchword fit [--config FILE ...] [--KEY VALUE ...]\n\n")


def test_help_of_a_command_comes_from_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    """The help of an option is the `Args:` entry of the class."""
    with pytest.raises(SystemExit):
        main(["fit", "--model.objective.help", "SPARC"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Min-max similarities below it become 0; null for 1 / number of patches." in printed


def test_lightning_is_the_same_program_and_hands_over_what_is_not_ours(tmp_path: Path) -> None:
    """`lightning` runs our commands, and passes unknown commands to another installed `lightning` if there is one."""
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
    """The command in the README works in a new process."""
    run = subprocess.run(
        [BIN / "lightning", "fit", "--config", "configs/sparc.yaml", *SMALL],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert (tmp_path / "runs/sparc/version_0/checkpoints/last.ckpt").exists()
