"""Export of towers to folders that timm and transformers can load; each folder is loaded again and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchword.contrast import LogitScale
from patchword.data.pixels import NativePreprocessing
from patchword.encoders import HFImage, HFText, PretrainedPair, TimmImage
from patchword.encoders.base import ImageTower, TextTower
from patchword.encoders.hf_image import last_norm, vision_tokens
from patchword.encoders.hf_processor import INTERPOLATIONS
from patchword.encoders.hf_text import attention
from patchword.encoders.lora import merged
from patchword.encoders.naflex import SIGLIP2, Sequences, siglip2_inputs
from patchword.errors import UserError
from patchword.objective import Objective
from patchword.objectives import CLIP, SigLIP

CAPTION = "a red apple next to a snail"


def export_image(tower: ImageTower, folder: Path) -> str:
    """Write an image tower, and return a description of how to load it and which outputs the heads use.

    Raises:
        UserError: If timm or transformers cannot load the tower.
    """
    if isinstance(tower, TimmImage):
        return _timm(tower, folder)
    if not isinstance(tower, HFImage):
        raise UserError(f"{type(tower).__name__} is not a timm or transformers tower; save its state_dict yourself")
    backbone = merged(tower.backbone).eval()
    backbone.save_pretrained(folder)
    _image_processor(tower).save_pretrained(folder)
    loaded, pixels = _load(type(backbone), folder), _pixels(tower)
    with torch.no_grad():
        _require_equal(vision_tokens(loaded, pixels), vision_tokens(backbone, pixels), folder)
    name = last_norm(backbone)
    norm = "" if name is None else f", normalized by {name}"
    if backbone.config.model_type == SIGLIP2:
        return (
            f"{_name(backbone)}.from_pretrained(FOLDER/image), with AutoImageProcessor from the same folder: patches "
            "are its last_hidden_state"
        )
    return (
        f"{_name(backbone)}.from_pretrained(FOLDER/image): patches are its last_hidden_state"
        f"{norm}, without the first {tower.prefix} token(s); the class token is the first of these, if any"
    )


def export_text(tower: TextTower, folder: Path) -> str:
    """Write a text tower with its tokenizer, and return a description of how to load it and which outputs heads use.

    Raises:
        UserError: If transformers cannot load the tower.
    """
    if not isinstance(tower, HFText):
        raise UserError(f"{type(tower).__name__} is not a transformers tower; save its state_dict yourself")
    backbone = merged(tower.backbone).eval()
    backbone.save_pretrained(folder)
    tower.captions.save_pretrained(folder)
    loaded = _load(type(backbone), folder)
    tokens = tower.tokenize([CAPTION])
    inputs = {"input_ids": tokens.ids, "attention_mask": attention(tokens.mask, tower.attend_all)}
    with torch.no_grad():
        _require_equal(loaded(**inputs).last_hidden_state, backbone(**inputs).last_hidden_state, folder)
    mask = "padding to max_length, attention to all of it" if tower.attend_all else "with its attention_mask"
    return (
        f"{_name(backbone)}.from_pretrained(FOLDER/text): tokens are its last_hidden_state "
        f"({mask}); the tokenizer is AutoTokenizer.from_pretrained(FOLDER/text)"
    )


def export_pair(pair: PretrainedPair, objective: Objective, folder: Path) -> str:
    """Write a CLIP or SigLIP with tokenizer and image processor, and return a description of how to load it.

    If the objective is of the same kind, its temperature (and for SigLIP its bias) replaces that of the model.

    Raises:
        UserError: If the model that transformers loads gives other embeddings.
    """
    model = merged(pair.model).eval()
    if type(objective) is (CLIP if pair.is_clip else SigLIP):
        scale: Any = next(part for part in objective.modules() if isinstance(part, LogitScale))
        model.logit_scale.data.fill_(scale().detach().log().item())
        if isinstance(objective, SigLIP):
            model.logit_bias.data.fill_(objective.bias.item())
    model.save_pretrained(folder)
    pair.captions.save_pretrained(folder)
    _image_processor(pair).save_pretrained(folder)
    loaded = _load(type(model), folder)
    tokens = pair.tokenize([CAPTION])
    image = {"pixel_values": _pixels(pair), "interpolate_pos_encoding": True}
    if model.config.model_type == "siglip2":
        image = siglip2_inputs(Sequences.of(_pixels(pair), None, pair.grid))
    text = {"input_ids": tokens.ids, "attention_mask": attention(tokens.mask, attend_all=not pair.is_clip)}
    with torch.no_grad():
        for method, inputs in (("get_image_features", image), ("get_text_features", text)):
            found, expected = (getattr(one, method)(**inputs).pooler_output for one in (loaded, model))
            _require_equal(found, expected, folder)
    return (
        f"transformers.{type(model).__name__}.from_pretrained(FOLDER/model), with AutoTokenizer and AutoImageProcessor "
        "from the same folder; pooled embeddings are its get_image_features and get_text_features"
    )


def _timm(tower: TimmImage, folder: Path) -> str:
    """Write a timm model without a classifier, and return a description of how to load it.

    timm can only load complete models. If the tower ends at an earlier feature level, the layers after it are written
    as timm initializes them.
    """
    import timm
    from timm.models import save_for_hf

    backbone: Any = merged(tower.backbone).eval()
    options: dict[str, Any] = {"safe_serialization": True, "data_config": {"input_size": (3, *tower.image_size)}}
    save_for_hf(backbone, str(folder), **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        complete = timm.create_model(f"local-dir:{folder}", pretrained=False)
    difference = complete.load_state_dict(backbone.state_dict(), strict=False)
    if difference.unexpected_keys:
        name = type(backbone).__name__
        raise UserError(
            f"timm builds {name} without the trained parameter {difference.unexpected_keys[0]}, so the model cannot be "
            "exported; save its state_dict yourself"
        )
    save_for_hf(complete, str(folder), **options)
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
        f"forward_intermediates(pixels, indices=[{level}], norm={tower.final}, intermediates_only=True), row by row"
        + (", normalized by fc_norm" if tower.has_pooled_norm else "")
        + "; the class token is the first prefix token, if the model has one"
        + (f"; the weights after that level are random and must not be used ({untrained})" if untrained else "")
    )


def _name(model: Any) -> str:
    """Return the import path of the class of `model`."""
    import transformers

    name = type(model).__name__
    return f"transformers.{name}" if hasattr(transformers, name) else f"{type(model).__module__}.{name}"


def _load(kind: Any, folder: Path) -> Any:
    return kind.from_pretrained(folder).eval()


def _pixels(encoder: Any) -> Tensor:
    """Return a normalized image with many different values."""
    height, width = encoder.image_size
    raw = torch.arange(3 * height * width).view(1, 3, height, width).remainder(251).to(torch.uint8)
    return encoder.normalize(raw)


def _image_processor(encoder: Any) -> Any:
    """Return an image processor that resizes, crops and normalizes as the encoder does, up to rounding to pixels."""
    import transformers

    (height, width), ours = encoder.image_size, encoder.preprocessing
    crop = {"height": height, "width": width}
    options = {
        "image_mean": encoder.normalize.mean.flatten().tolist(),
        "image_std": encoder.normalize.std.flatten().tolist(),
        "resample": next(number for number, name in INTERPOLATIONS.items() if name == ours.interpolation),
    }
    if isinstance(ours, NativePreprocessing):
        native: dict[str, Any] = options | {"patch_size": ours.patch_size, "max_num_patches": ours.max_num_patches}
        return transformers.Siglip2ImageProcessor(**native)
    if ours.resize_mode == "stretch" and ours.fraction == 1:
        return transformers.SiglipImageProcessor(size=crop, **options)
    edge = round(height / ours.fraction)
    if ours.resize_mode == "stretch":
        return transformers.DeiTImageProcessor(size={"height": edge, "width": edge}, crop_size=crop, **options)
    return transformers.CLIPImageProcessor(size={"shortest_edge": edge}, crop_size=crop, **options)


def _require_equal(found: Tensor, expected: Tensor, folder: Path) -> None:
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
        raise UserError(f"the model that is loaded from {folder} gives other features than the trained tower")
