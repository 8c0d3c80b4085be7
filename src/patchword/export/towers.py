"""Towers as folders that timm and transformers load, each loaded back and compared before it counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchword.contrast import Scale
from patchword.encoders import HFImage, HFText, PretrainedPair, TimmImage
from patchword.encoders.base import ImageTower, TextTower
from patchword.encoders.hf_image import INTERPOLATIONS, vision_tokens
from patchword.encoders.hf_text import attention
from patchword.encoders.lora import merged
from patchword.errors import InputError
from patchword.objective import Objective
from patchword.objectives import CLIP, SigLIP

CAPTION = "a red apple next to a snail"


def export_image(tower: ImageTower, folder: Path) -> str:
    """Write an image tower; returns in a sentence how it is loaded, and what of its output the heads take.

    Raises:
        InputError: If its own library cannot load what the tower is.
    """
    if isinstance(tower, TimmImage):
        return _timm(tower, folder)
    if isinstance(tower, HFImage):
        backbone = merged(tower.backbone).eval()
        backbone.save_pretrained(folder)
        _image_processor(tower).save_pretrained(folder)
        loaded = _load(type(backbone), folder)
        pixels = _pixels(tower)
        with torch.no_grad():
            _require_equal(vision_tokens(loaded, pixels), vision_tokens(backbone, pixels), folder)
        norm = ", put through post_layernorm" if backbone.config.model_type == "clip_vision_model" else ""
        return (
            f"transformers.{type(backbone).__name__}.from_pretrained(FOLDER/image): patches are its last_hidden_state"
            f"{norm}, without the first {tower.prefix} token(s); the class token is the first one, if there are any"
        )
    raise InputError(f"{type(tower).__name__} is no tower of timm or transformers: save its state_dict yourself")


def export_text(tower: TextTower, folder: Path) -> str:
    """Write a text tower with its tokenizer; returns in a sentence how it is loaded, and what the heads take.

    Raises:
        InputError: If its own library cannot load what the tower is.
    """
    if not isinstance(tower, HFText):
        raise InputError(f"{type(tower).__name__} is no tower of transformers: save its state_dict yourself")
    backbone = merged(tower.backbone).eval()
    backbone.save_pretrained(folder)
    tower.captions.save_pretrained(folder)
    loaded = _load(type(backbone), folder)
    tokens = tower.tokenize([CAPTION])
    inputs = {"input_ids": tokens.ids, "attention_mask": attention(tokens, tower.attend_all)}
    with torch.no_grad():
        _require_equal(loaded(**inputs).last_hidden_state, backbone(**inputs).last_hidden_state, folder)
    mask = "padding to max_length, attention to all of it" if tower.attend_all else "with its attention_mask"
    return (
        f"transformers.{type(backbone).__name__}.from_pretrained(FOLDER/text): tokens are its last_hidden_state "
        f"({mask}); the tokenizer is AutoTokenizer.from_pretrained(FOLDER/text)"
    )


def export_pair(pair: PretrainedPair, objective: Objective, folder: Path) -> str:
    """Write a CLIP or SigLIP with tokenizer and image processor; returns in a sentence how it is loaded.

    The temperature, and of SigLIP the bias, become the model's own, if the objective has learned them.

    Raises:
        InputError: If transformers loads something else.
    """
    model = merged(pair.model).eval()
    if type(objective) is (CLIP if pair.is_clip else SigLIP):
        scale: Any = next(part for part in objective.modules() if isinstance(part, Scale))
        model.logit_scale.data.fill_(scale().detach().log().item())
        if isinstance(objective, SigLIP):
            model.logit_bias.data.fill_(objective.bias.item())
    model.save_pretrained(folder)
    pair.captions.save_pretrained(folder)
    _image_processor(pair).save_pretrained(folder)
    loaded = _load(type(model), folder)
    pixels, tokens = _pixels(pair), pair.tokenize([CAPTION])
    inputs = {"input_ids": tokens.ids, "attention_mask": attention(tokens, attend_all=not pair.is_clip)}
    with torch.no_grad():
        images = [
            m.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
            for m in (loaded, model)
        ]
        texts = [m.get_text_features(**inputs).pooler_output for m in (loaded, model)]
    _require_equal(images[0], images[1], folder)
    _require_equal(texts[0], texts[1], folder)
    return (
        f"transformers.{type(model).__name__}.from_pretrained(FOLDER/model), with AutoTokenizer and AutoImageProcessor "
        "from the same folder; pooled embeddings are its get_image_features and get_text_features"
    )


def _timm(tower: TimmImage, folder: Path) -> str:
    """Write a timm model without a classifier.

    timm loads whole models alone: layers that the tower does not have, behind its feature level, are written as timm
    initialises them.
    """
    import timm
    from timm.models import save_for_hf

    backbone: Any = merged(tower.backbone).eval()
    options: dict[str, Any] = {"safe_serialization": True, "data_config": {"input_size": (3, *tower.image_size)}}
    save_for_hf(backbone, str(folder), **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = timm.create_model(f"local-dir:{folder}", pretrained=False)
    difference = whole.load_state_dict(backbone.state_dict(), strict=False)
    if difference.unexpected_keys:
        name = type(backbone).__name__
        raise InputError(
            f"timm builds {name} without {difference.unexpected_keys[0]}, which was trained: export it yourself"
        )
    save_for_hf(whole, str(folder), **options)
    loaded: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels, level = _pixels(tower), tower.indices[0]
    with torch.no_grad():
        found, expected = (
            model.forward_intermediates(pixels, indices=indices, norm=tower.final, intermediates_only=True)[-1]
            for model, indices in ((loaded, [level]), (backbone, tower.indices))
        )
    _require_equal(found, expected, folder)
    untrained = ", ".join(dict.fromkeys(".".join(key.split(".")[:-1][:2]) for key in difference.missing_keys))
    return (
        "timm.create_model('local-dir:FOLDER/image', pretrained=True): patches are the last of its "
        f"forward_intermediates(pixels, indices=[{level}], norm={tower.final}, intermediates_only=True), row by row; "
        "the class token is the first prefix token, if it has one"
        + (f"; behind that level the weights are random, and mean nothing ({untrained})" if untrained else "")
    )


def _load(kind: Any, folder: Path) -> Any:
    return kind.from_pretrained(folder).eval()


def _pixels(encoder: Any) -> Tensor:
    """A normalised image with all kinds of values."""
    height, width = encoder.image_size
    raw = torch.arange(3 * height * width).view(1, 3, height, width).remainder(251).to(torch.uint8)
    return encoder.normalize(raw)


def _image_processor(encoder: Any) -> Any:
    """Resizes, crops and normalises as the encoder does, up to its rounding to whole pixels."""
    import transformers

    height, width = encoder.image_size
    ours = encoder.preprocessing
    options = {
        "image_mean": encoder.normalize.mean.flatten().tolist(),
        "image_std": encoder.normalize.std.flatten().tolist(),
        "resample": next(number for number, name in INTERPOLATIONS.items() if name == ours.interpolation),
    }
    if ours.fit == "stretch":
        return transformers.SiglipImageProcessor(size={"height": height, "width": width}, **options)
    size = {"shortest_edge": round(height / ours.fraction)}
    return transformers.CLIPImageProcessor(size=size, crop_size={"height": height, "width": width}, **options)


def _require_equal(found: Tensor, expected: Tensor, folder: Path) -> None:
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
        raise InputError(f"what is loaded from {folder} makes other features than the tower that was trained")
