"""`patchword inspect` from the command line to the page, and its error messages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from patchword import AlignmentModule
from patchword.cli import main
from patchword.encoders import HFImage, HFText, PretrainedPair, TimmImage, TwoTowers
from patchword.encoders.base import Encoder
from patchword.objectives import CLIP, SPARC
from patchword.suites.zero_shot import ZeroShot
from patchword.training.last_checkpoint import find
from patchword.viewer.runs import distinct
from tests import tiny
from tests.encoders.pretrained import TOWER

TEXT = "a red apple next to a snail"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in the formats of `fit`, `compare` and `make demo`, a photo, and invalid files of both kinds."""
    folder = tmp_path_factory.mktemp("runs")
    places = {"clip/version_0": CLIP(), "demo/fit": SPARC(), "grid/sparse/seed_0/fit": SPARC(threshold=0.5)}
    for place, objective in places.items():
        module = tiny.module(objective)
        trainer = tiny.trainer(folder / "logs", max_epochs=1, limit_train_batches=1, limit_val_batches=0)
        trainer.fit(module, tiny.data())
        trainer.save_checkpoint(folder / place / "checkpoints" / "last.ckpt")
    (folder / "empty").mkdir()
    (folder / "text.ckpt").write_text("not a checkpoint")
    torch.save({"state_dict": {}}, folder / "foreign.ckpt")
    broken = torch.load(folder / "clip/version_0/checkpoints/last.ckpt", weights_only=True)
    broken["hyper_parameters"]["objective"]["class_path"] = "nowhere.Gone"
    torch.save(broken, folder / "gone.ckpt")
    Image.effect_noise((200, 100), 90).save(folder / "photo.jpg")
    (folder / "broken.jpg").write_bytes((folder / "photo.jpg").read_bytes()[:300])
    return folder


@pytest.fixture(autouse=True)
def _in_the_folder(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)


def data_of(page: Path) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page.read_text(), re.DOTALL)[1])


def test_runs_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    """Folders and files of every kind, with names made from what differs, on a photo of the user's own."""
    runs = ["clip/version_0", "demo", "grid/sparse/seed_0", "mine=clip/version_0/checkpoints/last.ckpt"]
    main(["inspect", "--ckpt", *runs[:2], "--ckpt", *runs[2:], "--image", "photo.jpg", "--text", TEXT, "--whole"])
    assert capsys.readouterr().out.startswith("written: inspect.html")
    data = data_of(Path("inspect.html"))
    names = [panel["name"] for panel in data["panels"]]
    assert names == ["CLIP", "SPARC (demo)", "SPARC (grid/sparse/seed_0)", "mine"]
    assert {tuple(panel["size"]) for panel in data["panels"]} == {(200, 100)}
    assert {tuple(panel["seen"]) for panel in data["panels"]} == {(0, 0, 1, 1)}


@pytest.mark.parametrize("size", [(90, 60), (64, 64)])
def test_scores_are_those_of_predict(size: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each model sees a photo as its backbone was trained, here as there.

    EfficientNet crops .875 of the shorter side, SigLIP stretches, the DINOv2 in the folder crops 56 of 64 pixels.
    """
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    expected = {}
    for name, encoder in encoders(tmp_path / "dino").items():
        kept = Scores()
        trainer = tiny.trainer(tmp_path, kept, max_steps=1, logger=False)
        data = ZeroShot(str(tmp_path / "photo.png"), [TEXT])
        trainer.predict(AlignmentModule(encoder, CLIP()), data, return_predictions=False)
        expected[name] = kept.scores.item()
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
    named = [f"{name}={tmp_path / name}.ckpt" for name in expected]
    main(["inspect", "--ckpt", *named, "--image", str(tmp_path / "photo.png"), "--text", TEXT, "--out", "scores.html"])
    panels = data_of(Path("scores.html"))["panels"]
    assert {panel["name"]: panel["score"] for panel in panels} == pytest.approx(expected, abs=1e-5)
    if size == (90, 60):
        shares = {panel["name"]: panel["seen"][2] - panel["seen"][0] for panel in panels}
        assert shares == pytest.approx({"efficientnet": 2 / 3 * 64 / 73, "siglip": 1.0, "dino": 2 / 3 * 56 / 64})


class Scores(Callback):
    """Keeps those of the last batch."""

    def on_predict_batch_end(self, trainer, pl_module, outputs, *rest) -> None:
        self.scores = outputs.scores


def encoders(folder: Path) -> dict[str, Encoder]:
    """Small ones whose preprocessing differs."""
    seed_everything(0)
    words = {"model_type": "t5", "num_layers": 0, "d_model": 16}
    vision = TOWER | {"image_size": 64, "patch_size": 16}
    text = TOWER | {"projection_size": 16, "max_position_embeddings": 24}
    Dinov2Model(Dinov2Config(**TOWER, image_size=56, patch_size=14)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}).save_pretrained(folder)
    images = {"efficientnet": TimmImage("tf_efficientnet_lite0", level=2, image_size=64), "dino": HFImage(str(folder))}
    towers = {
        name: TwoTowers(image, HFText(config=words, tokenizer="emoji-scenes"), embed_dim=16)
        for name, image in images.items()
    }
    config = {"model_type": "siglip", "text_config": text, "vision_config": vision}
    return towers | {"siglip": PretrainedPair(config=config, tokenizer="emoji-scenes")}


def test_a_scene_with_its_objects(capsys: pytest.CaptureFixture[str]) -> None:
    """With `--sample`, a word of a phrase has the outline of the phrase's object, and other words have none."""
    main(["inspect", "--ckpt", "demo", "--sample", "5", "--out", "new/scene.html"])
    assert "new/scene.html" in capsys.readouterr().out
    (panel,) = data_of(Path("new/scene.html"))["panels"]
    function = [
        part[3] is False and not outline for part, outline in zip(panel["parts"], panel["outlines"], strict=True)
    ]
    assert any(panel["outlines"])
    assert any(function)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sample", "0"], "--ckpt"),
        (["--ckpt", "nowhere", "--sample", "0"], "--ckpt nowhere: "),
        (["--ckpt", "empty", "--sample", "0"], "--ckpt empty: the folder has neither checkpoints/last.ckpt nor fit/"),
        (["--ckpt", "text.ckpt", "--sample", "0"], "--ckpt text.ckpt: not a checkpoint of patchword"),
        (["--ckpt", "foreign.ckpt", "--sample", "0"], "--ckpt foreign.ckpt: not a checkpoint of patchword"),
        (
            ["--ckpt", "gone.ckpt", "--sample", "0"],
            "gone.ckpt: model.objective: the checkpoint names nowhere.Gone",
        ),
        (["--ckpt", "a=demo", "a=demo", "--sample", "0"], "--ckpt: the name 'a'"),
        (["--ckpt", "demo"], "use --image and --text, or --sample 0"),
        (["--ckpt", "demo", "--image", "photo.jpg"], "--image needs --text"),
        (["--ckpt", "demo", "--image", "photo.jpg", "--text", "a", "--sample", "1"], "--sample"),
        (["--ckpt", "demo", "--image", "none.jpg", "--text", "a"], "none.jpg cannot be read"),
        (["--ckpt", "demo", "--image", "broken.jpg", "--text", "a"], "broken.jpg cannot be read"),
        (["--ckpt", "demo", "--image", "text.ckpt", "--text", "a"], "supported formats: JPEG"),
        (
            ["--ckpt", "demo", "--image", "photo.jpg", "--text", "a\udcff"],
            "--text is not valid UTF-8, starting at character 2",
        ),
        (["--ckpt", "demo", "--image", "photo.jpg", "--text", ""], "--text is empty"),
        (["--ckpt", "demo", "--image", "photo.jpg", "--text", " "], "--text is empty"),
        (["--ckpt", "demo", "--sample", "-1"], "--sample"),
        (["--ckpt", "demo", "--sample", "two"], "--sample: must be a whole number of at least 0, not 'two'"),
        (["--ckpt", "demo", "--sample", "0", "--out", "empty"], "--out empty is a folder"),
        (["--ckpt", "demo", "--sample", "0", "--out", "photo.jpg/page.html"], "photo.jpg"),
        (["--ckpt", "demo", "--sample", "0", "--device", "tpu"], "--device tpu"),
        (["--ckpt", "demo", "--sampel", "0"], "did you mean sample?"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors are reported in one line."""
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("patchword: error: ")
    assert message in line


def test_names_and_places(runs: Path) -> None:
    """Equal names get the folders that differ, or a number for the same file; file names may contain `=`."""
    files = [runs / "grid/a/seed_0/fit/last.ckpt", runs / "grid/b/seed_0/fit/last.ckpt", runs / "c.ckpt"]
    assert distinct(["SPARC", "SPARC", "CLIP"], files) == ["SPARC (a)", "SPARC (b)", "CLIP"]
    assert distinct(["SPARC"] * 3, [files[0]] * 3) == ["SPARC", "SPARC #2", "SPARC #3"]
    assert find(runs / "grid/sparse/seed_0", "--ckpt") == runs / "grid/sparse/seed_0/fit/checkpoints/last.ckpt"
    odd = runs / "epoch=0-step=1.ckpt"
    odd.write_bytes((runs / "clip/version_0/checkpoints/last.ckpt").read_bytes())
    main(["inspect", "--ckpt", "epoch=0-step=1.ckpt", "--sample", "1", "--out", "odd.html"])
    assert data_of(Path("odd.html"))["panels"][0]["name"] == "CLIP"
