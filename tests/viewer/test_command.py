"""`patchword inspect`, from the command line to the page, and what it says to a mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from patchword.cli import main
from patchword.objectives import CLIP, SPARC
from patchword.viewer.runs import distinct, find
from tests import tiny

TEXT = "a red apple next to a snail"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs as `fit`, `compare` and `make demo` leave them, and files that are none; a photo, and one that is none."""
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


def test_a_scene_with_its_objects(capsys: pytest.CaptureFixture[str]) -> None:
    """For somebody without a photo: a word of a phrase has the outline of the phrase's object, others have none."""
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
        (["--ckpt", "nowhere", "--sample", "0"], "--ckpt nowhere: there is no such file"),
        (["--ckpt", "empty", "--sample", "0"], "--ckpt empty: the folder has neither checkpoints/last.ckpt nor fit/"),
        (["--ckpt", "text.ckpt", "--sample", "0"], "--ckpt text.ckpt: not a checkpoint of patchword"),
        (["--ckpt", "foreign.ckpt", "--sample", "0"], "--ckpt foreign.ckpt: not a checkpoint of patchword"),
        (["--ckpt", "gone.ckpt", "--sample", "0"], "--ckpt gone.ckpt: the model cannot be built again"),
        (["--ckpt", "a=demo", "a=demo", "--sample", "0"], "the name 'a' stands twice"),
        (["--ckpt", "demo"], "there is nothing to look at: give --image and --text, or --sample 0"),
        (["--ckpt", "demo", "--image", "photo.jpg"], "--image needs --text"),
        (["--ckpt", "demo", "--image", "photo.jpg", "--text", "a", "--sample", "1"], "leave out --image and --text"),
        (["--ckpt", "demo", "--image", "none.jpg", "--text", "a"], "none.jpg cannot be read"),
        (["--ckpt", "demo", "--image", "broken.jpg", "--text", "a"], "broken.jpg cannot be read"),
        (["--ckpt", "demo", "--image", "text.ckpt", "--text", "a"], "in no format that Pillow knows"),
        (["--ckpt", "demo", "--image", "photo.jpg", "--text", "a\udcff"], "--text is not UTF-8 from character 2 on"),
        (["--ckpt", "demo", "--sample", "-1"], "--sample"),
        (["--ckpt", "demo", "--sample", "two"], "must be a whole number from 0 on, not 'two'"),
        (["--ckpt", "demo", "--sample", "0", "--out", "empty"], "--out empty: is a folder; name a file"),
        (["--ckpt", "demo", "--sample", "0", "--out", "photo.jpg/page.html"], "photo.jpg"),
        (["--ckpt", "demo", "--sample", "0", "--device", "tpu"], "--device tpu"),
        (["--ckpt", "demo", "--sampel", "0"], "did you mean sample?"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says what to do."""
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("patchword: error: ")
    assert message in line


def test_names_and_places(runs: Path) -> None:
    """Equal names get what tells their folders apart, the same file a number; a checkpoint's name may have a `=`."""
    files = [runs / "grid/a/seed_0/fit/last.ckpt", runs / "grid/b/seed_0/fit/last.ckpt", runs / "c.ckpt"]
    assert distinct(["SPARC", "SPARC", "CLIP"], files) == ["SPARC (a)", "SPARC (b)", "CLIP"]
    assert distinct(["SPARC"] * 3, [files[0]] * 3) == ["SPARC", "SPARC #2", "SPARC #3"]
    assert find(runs / "grid/sparse/seed_0") == runs / "grid/sparse/seed_0/fit/checkpoints/last.ckpt"
    odd = runs / "epoch=0-step=1.ckpt"
    odd.write_bytes((runs / "clip/version_0/checkpoints/last.ckpt").read_bytes())
    main(["inspect", "--ckpt", "epoch=0-step=1.ckpt", "--sample", "1", "--out", "odd.html"])
    assert data_of(Path("odd.html"))["panels"][0]["name"] == "CLIP"
