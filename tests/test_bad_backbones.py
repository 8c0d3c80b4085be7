"""User errors with pretrained models, caches, adapters, zero-shot data and export give one line with the fix."""

from __future__ import annotations

import json
import os
from pathlib import Path

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of its first import
import numpy as np
import pytest
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from patchword.cli import main
from tests.encoders.pretrained import TOWER

FIT = ["fit", "--config", "small.yaml"]
SCENES = ["--data", "Scenes", "--data.train_size", "4", "--data.batch_size", "2", "--data.val_size", "2"]
CACHED = [*SCENES, "--data.features", "CachedFeatures", "--data.features.folder", "features"]
VIT = "{name: vit_tiny_patch16_224, image_size: 64, model_args: {depth: 1, embed_dim: 16, num_heads: 2}}"
SMALL = f"""
model:
  objective: CLIP
  encoder:
    class_path: TwoTowers
    init_args:
      embed_dim: 8
      image: {{class_path: TimmImage, init_args: {VIT}}}
      text: {{class_path: HFText, init_args: {{tokenizer: emoji-scenes, config: {{model_type: t5, num_layers: 0}}}}}}
trainer: {{max_steps: 1, enable_progress_bar: false, log_every_n_steps: 1}}
"""
IMAGE, TEXT = "--model.encoder.image", "--model.encoder.text"
PREDICT = ["predict", "--config", "small.yaml", "--data", "ZeroShot"]

MISTAKES = {
    "a cache of one tower that trains": (
        [*FIT, *CACHED, f"{IMAGE}.freeze", "true"],
        "model.encoder.text.freeze to true",
    ),
    "a cache for a pair": (
        ["fit", "--config", "pair.yaml", *CACHED, "--data.image_size", "64"],
        "PretrainedPair has no heads",
    ),
    "frozen with adapters": ([*FIT, *SCENES, f"{IMAGE}.freeze", "true", f"{IMAGE}.lora.rank", "2"], "remove freeze"),
    "adapters without blocks": ([*FIT, *SCENES, f"{TEXT}.lora.rank", "2"], "finds no linear layers in the blocks"),
    "adapters of rank 0": ([*FIT, *SCENES, f"{IMAGE}.lora.rank", "0"], "lora.rank must be 1 or more"),
    "a rate above 1": (
        [*FIT, *SCENES, "--model.fine_tuning.layer_decay", "2"],
        "fine_tuning.layer_decay must be a factor",
    ),
    "a folder that is none": (
        [*FIT, *SCENES, IMAGE, "HFImage", f"{IMAGE}.model", "./none"],
        "there is no folder ./none",
    ),
    "a pair that is half of one": (
        ["fit", "--config", "pair.yaml", *SCENES, "--model.encoder.config", "null", "--model.encoder.model", "half"],
        "is neither CLIP nor SigLIP",
    ),
    "images that are not there": ([*PREDICT, "--data.images", "none", "--data.texts", "[a]"], "no folder or file none"),
    "a file of texts that is none": ([*PREDICT, "--data.images", ".", "--data.texts", "none"], "there is no file none"),
    "training with zero-shot data": (
        [*FIT, "--data", "ZeroShot", "--data.images", "photos", "--data.texts", "[a]"],
        "use it with `patchword predict`",
    ),
    "a run that is none": (["export", "--ckpt", "none", "--out", "out"], "--ckpt none: "),
    "a checkpoint that is none": (["export", "--ckpt", "small.yaml", "--out", "out"], "not a checkpoint of patchword"),
    "a place that is taken": (
        ["export", "--ckpt", "none", "--out", "photos"],
        "--out photos exists",
    ),
    "no place": (["export", "--ckpt", "none"], "required: --out"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write configurations of small models, and a photo."""
    place = tmp_path_factory.mktemp("bad")
    (place / "small.yaml").write_text(SMALL)
    text = TOWER | {"projection_size": 16, "max_position_embeddings": 24}
    config = {
        "model_type": "siglip",
        "text_config": text,
        "vision_config": TOWER | {"image_size": 64, "patch_size": 16},
    }
    options = json.dumps({"config": config, "tokenizer": "emoji-scenes"})
    (place / "pair.yaml").write_text(
        "model: {objective: CLIP, encoder: {class_path: PretrainedPair, init_args: " + options + "}}\n"
        "trainer: {max_steps: 1, enable_progress_bar: false}\n"
    )
    CLIPVisionModel(CLIPVisionConfig(**TOWER)).save_pretrained(place / "half")
    (place / "photos").mkdir()
    Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(place / "photos" / "a.png")
    return place


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("name", MISTAKES)
def test_one_clear_line(name, folder, monkeypatch, capsys):
    """There is no traceback, and no output is left behind."""
    arguments, message = MISTAKES[name]
    monkeypatch.chdir(folder)
    before = dict(os.environ)
    try:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
    finally:
        os.environ.clear()
        os.environ.update(before)
    error = capsys.readouterr().err
    assert ended.value.code == 2, error
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("patchword: error: ")]
    assert message in line
    assert not Path("out").exists()
    assert not list(Path("features").rglob("*.safetensors"))
