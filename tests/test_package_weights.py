"""The weights of pretrained towers in Python packages are converted correctly and found by configurations."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from patchword.cli import main
from patchword.compare.plan import Plan
from patchword.data.scenes.concepts import Concept
from patchword.data.scenes.sprites import sprite
from patchword.encoders import HFText, TimmImage

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "package_weights.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the script in a folder with the configurations."""
    place = tmp_path_factory.mktemp("weights")
    (place / "configs").symlink_to(ROOT / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "argv", [str(SCRIPT), "runs/weights"])
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return place


@pytest.mark.parametrize(
    ("noun", "label"), [("umbrella", 879), ("soccer ball", 805), ("banana", 954), ("traffic light", 920)]
)
def test_efficientnet_knows_what_it_sees(noun: str, label: int) -> None:
    """The model recognizes emoji among the 1,000 classes of ImageNet, so its weights are in the right order."""
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    model.load_state_dict(runpy.run_path(str(SCRIPT))["efficientnet"]("tf_efficientnet_lite0"), strict=False)
    (concept,) = {concept for concept in _concepts() if concept.noun == noun and not concept.color}
    emoji = Image.fromarray(sprite(concept, 170))
    canvas = Image.new("RGB", (224, 224), "white")
    canvas.paste(emoji, ((224 - emoji.width) // 2, (224 - emoji.height) // 2), emoji)
    pixels = torch.from_numpy(np.array(canvas)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        assert label in model(pixels)[0].topk(2).indices


def test_towers_are_found_where_the_configuration_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both towers load: MiniLM's tokens have 384 dimensions, EfficientNet's patches 112 on a grid of 8 x 8."""
    monkeypatch.chdir(folder)
    towers = yaml.safe_load(Path("configs/pretrained/packages.yaml").read_text())["model"]["encoder"]["init_args"]
    image, text = TimmImage(**towers["image"]["init_args"]), HFText(**towers["text"]["init_args"])
    assert (image.width, image.grid, text.width) == (112, (8, 8), 384)
    saved = runpy.run_path(str(SCRIPT))["efficientnet"]("tf_efficientnet_lite0")["conv_stem.weight"]
    assert torch.equal(image.backbone.conv_stem.weight, saved)
    assert not any(parameter.requires_grad for tower in (image, text) for parameter in tower.parameters())


def test_every_variant_of_the_plan_is_understood(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All objectives of the plan resolve with these towers and cached features."""
    monkeypatch.chdir(folder)
    plan = Plan.read(Path("configs/pretrained/compare.yaml"))
    for settings in plan.variants.values():
        files = [word for file in settings["config"] for word in ("--config", file)]
        with pytest.raises(SystemExit) as ended:
            main(["fit", *files, "--seed_everything", "3", "--print_config"])
        assert ended.value.code in (0, None)
        data = yaml.safe_load(capsys.readouterr().out)["data"]
        assert data["init_args"]["features"]["class_path"].endswith("CachedFeatures")
        assert data["init_args"]["image_size"] == 128
        assert data["init_args"]["seed"] == 3


def _concepts() -> list[Concept]:
    from patchword.data.scenes.concepts import TRAINING_CONCEPTS, UNSEEN_CONCEPTS

    return [*TRAINING_CONCEPTS, *UNSEEN_CONCEPTS]
