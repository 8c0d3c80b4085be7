"""The harder scenes have 224 pixels, up to eight objects, occlusion and textures; the plain scenes are unchanged."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from patchword.cli import main
from patchword.data.scenes import EmojiScenes
from patchword.data.scenes.datamodule import Scenes
from patchword.data.scenes.textures import texture
from patchword.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"


def options(*names: str) -> dict[str, object]:
    """Merge the data options of configurations; later ones override earlier ones."""
    merged: dict[str, object] = {}
    for name in names:
        merged |= yaml.safe_load((CONFIGS / "data" / f"{name}.yaml").read_text())["data"]["init_args"]
    return merged


@pytest.mark.parametrize("overlay", ["", "occluded", "textured", "hard"])
def test_named_configs_draw_what_they_say(overlay: str) -> None:
    """Every scene has an allowed number of objects, with masks of their visible pixels and allowed occlusion."""
    names = ["scenes_224", *([f"scenes_224_{overlay}"] if overlay else [])]
    asked = options(*names) | {"train_size": 300, "val_size": 1, "test_size": 1, "num_workers": 0}
    tuples = {name: tuple(value) for name, value in asked.items() if isinstance(value, list)}
    scenes = Scenes(**asked | tuples).split("train")  # type: ignore[arg-type]
    samples = [scenes[i] for i in range(12)]
    low, high = asked["objects"]  # type: ignore[misc]
    counts = {len(sample.phrases[0]) for sample in samples}
    assert low <= min(counts) <= max(counts) <= high
    assert max(counts) >= 6
    for sample in samples:
        assert sample.image.shape == (3, 224, 224)
        masks = torch.stack([phrase.mask for phrase in sample.phrases[0]])
        assert masks.flatten(1).any(1).all()
        assert (masks.sum(0) <= 1).all(), "a pixel shows one object"


def test_objects_hide_one_another_as_far_as_allowed() -> None:
    """With `shown` 0.3 some object shows less than 0.6 of its pixels, and no object less than 0.3."""

    def shares(shown: float) -> list[float]:
        scenes = EmojiScenes("train", 12, 224, objects=(6, 8), overlap=0.6, shown=shown)
        found = []
        for i in range(12):
            rng = np.random.default_rng((*scenes.stream, i))
            stamps, _, masks = scenes._arrange(scenes._cast(rng), rng)
            found += [mask.sum() / stamp.solid.sum() for mask, stamp in zip(masks, stamps, strict=True)]
        return found

    assert 0.3 <= min(shares(0.3)) < 0.6 <= min(shares(0.6))


def test_the_command_for_a_gpu_is_understood(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Towers, scenes and overlay merge into a configuration that resolves."""
    monkeypatch.chdir(CONFIGS.parent)
    names = ["sparc", "towers/vit_small", "data/scenes_224", "data/scenes_224_hard"]
    files = [part for name in names for part in ("--config", f"configs/{name}.yaml")]
    with pytest.raises(SystemExit) as end:
        main(["fit", *files, "--print_config"])
    assert end.value.code in (0, None)
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert resolved["data"]["init_args"]["image_size"] == 224
    assert resolved["data"]["init_args"]["textured"] is True
    assert resolved["model"]["encoder"]["init_args"]["image"]["init_args"]["name"] == "vit_small_patch16_224"


def test_shown_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match="shown must be more than 0 and at most 1"):
        EmojiScenes("train", 1, shown=1.5)


def test_textures_are_not_plain_and_depend_on_the_seed_alone() -> None:
    """All four patterns occur, and neighboring pixels differ nearly everywhere."""
    drawn = [texture(96, np.random.default_rng(seed)) for seed in range(16)]
    for image in drawn:
        assert image.shape == (3, 96, 96)
        assert image.min() >= 0
        assert image.max() <= 255
        assert (np.diff(image, axis=2) != 0).mean() > 0.9
    assert len({zlib.crc32(image.tobytes()) for image in drawn}) == 16
    assert np.array_equal(drawn[3], texture(96, np.random.default_rng(3)))


def test_a_texture_changes_nothing_but_what_is_behind_the_objects() -> None:
    """Textured scenes have the right captions, boxes and masks, and objects have the pixels of their emoji."""
    scene = EmojiScenes("train", 4, 224, textured=True)[2]
    (phrase, *_) = scene.phrases[0]
    outside = ~torch.stack([p.mask for p in scene.phrases[0]]).any(0)
    assert scene.image[:, outside].float().std() > 5
    assert phrase.mask.any()


def test_plain_scenes_stay_as_they_were() -> None:
    """The recorded numbers in docs/benchmark belong to exactly these pixels and captions."""
    scenes = EmojiScenes("test", 64)
    found = zlib.crc32(b"".join(scenes[i].image.numpy().tobytes() + scenes[i].captions[0].encode() for i in range(64)))
    assert f"{found:08x}" == "11b0fad4"
