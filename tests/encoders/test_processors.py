"""The pixels of a tower from transformers equal those of the model's image processor."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import AutoImageProcessor

from patchword.encoders.hf_processor import image_processor, normalization, preprocessing
from patchword.encoders.loading import find_model
from patchword.errors import UserError
from tests.encoders.pretrained import photo

SIZE, SHAPE = 64, (300, 200)
# The image processors of all types that `HFImage` supports.
PROCESSORS = ["Beit", "Bit", "CLIP", "ChineseCLIP", "DPT", "DeiT", "DINOv3ViT", "Siglip", "ViT"]
WHOLE = {"size": {"height": 64, "width": 64}, "do_center_crop": False}
SETTINGS = {
    "an integer": {"size": 64, "do_center_crop": False},
    "an integer, then a crop": {"size": 72, "do_center_crop": True, "crop_size": 64},
    "a stretch, then a crop": {"size": {"height": 72, "width": 72}, "do_center_crop": True, "crop_size": 64},
    "the shorter edge, then a crop": {"size": {"shortest_edge": 72}, "do_center_crop": True, "crop_size": 64},
    "not normalized": WHOLE | {"do_normalize": False},
    "not rescaled": WHOLE | {"do_rescale": False},
    "rescaled to [0, 2]": WHOLE | {"rescale_factor": 1 / 127.5},
    "nearest": WHOLE | {"resample": 0},
    "lanczos": WHOLE | {"resample": 1},
    "bilinear": WHOLE | {"resample": 2},
}
# transformers itself fails for these
FAILS = {("DPT", "the shorter edge, then a crop"), ("DINOv3ViT", "not rescaled")}


def save(folder, kind, settings):
    processor = {"image_processor_type": f"{kind}ImageProcessor", "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | settings))
    return find_model(str(folder))


@pytest.mark.parametrize("kind", PROCESSORS)
def test_pixels_are_those_of_the_image_processor(kind, tmp_path):
    """Size, crop, interpolation, scale and statistics: differences are rounding, at most one of 255 gray levels."""
    for name, settings in SETTINGS.items():
        if (kind, name) in FAILS:
            continue
        ours = image_processor(save(tmp_path, kind, settings))
        theirs = AutoImageProcessor.from_pretrained(tmp_path)
        expected = theirs(photo(*SHAPE), return_tensors="pt")["pixel_values"]
        if expected.shape[-2:] != (SIZE, SIZE):  # some classes interpret an integer as the shorter edge
            continue
        view = preprocessing(ours, "").view(*SHAPE, SIZE)
        found = normalization(ours, "")(view.image(photo(*SHAPE))[None])
        level = (1 / 0.2 if theirs.do_normalize else 1) * (theirs.rescale_factor if theirs.do_rescale else 1)
        assert (found - expected).abs().max() < 1.1 * level, name


@pytest.mark.parametrize(
    "settings",
    [
        {"image_processor_type": "ViTFeatureExtractor"},
        {"do_resize": False},
        {"do_pad": True},
        {"size": {"longest_edge": 64}},
        {"resample": 4},
    ],
)
def test_unsupported_processors_are_refused(settings, tmp_path):
    """The message is one line that names the key."""
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}: ")) as raised:
        image_processor(save(tmp_path, "ViT", settings))
    key = next(iter(settings))
    assert key == "image_processor_type" or key in str(raised.value)
    assert len(str(raised.value)) < 500 + len(str(tmp_path))


def test_names_of_old_files(tmp_path):
    """Old files have `feature_extractor_type` and an integer size. Without a file, there is no image processor."""
    assert image_processor(find_model(str(tmp_path))) is None
    old = {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    seen = preprocessing(image_processor(find_model(str(tmp_path))), "deit")
    assert (seen.resize_mode, seen.fraction, seen.interpolation) == ("stretch", 224 / 256, "bicubic")
    assert seen.view(512, 256, 224).source == (32.0, 16.0, 480.0, 240.0)


@pytest.mark.parametrize(("kind", "mean"), [("chinese_clip_vision_model", 0.481), ("vit", 0.5), ("radio", 0.0)])
def test_without_a_file(kind, mean):
    """The defaults of each type are those of its training. RADIO normalizes pixels itself."""
    assert normalization(None, kind).mean.flatten()[0].item() == pytest.approx(mean, abs=1e-3)
    assert normalization(None, "dinov2").std.flatten()[0] == torch.tensor(0.229)
