"""Translate the image processors of transformers into `Preprocessing` and `Normalize`."""

from __future__ import annotations

from typing import Any

from patchword.data.pixels import Interpolation, Preprocessing
from patchword.encoders.loading import reason, where
from patchword.encoders.pixels import Normalize
from patchword.errors import UserError
from patchword.provenance.hub import Repository

INTERPOLATIONS: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers

# Preprocessing by the prefix of the model type, for models without a saved image processor. Other types use the
# statistics of ImageNet, and crops.
LIKE_CLIP = ("clip", "chinese_clip", "mlcd", "aimv2")
LIKE_SIGLIP = ("siglip", "beit", "data2vec-vision", "idefics3", "smolvlm")
NOT_NORMALIZED = ("radio", "tipsv2")  # RADIO normalizes pixels itself
STRETCHED = ("siglip", "vit", "beit", "data2vec-vision", "dinov3_vit", "ijepa", "tipsv2", "idefics3", "smolvlm")

# Options of image processors that `Preprocessing` and `Normalize` do not support.
UNSUPPORTED = ("do_flip_channel_order", "do_image_splitting", "do_pad", "keep_aspect_ratio")


def image_processor(model: Repository | None) -> Any:
    """The image processor that was saved with `model`; None if the model has none.

    Raises:
        UserError: If transformers does not know the image processor, or it does not only resize, crop, rescale and
            normalize images.
    """
    if model is None:
        return None
    from transformers import AutoImageProcessor

    try:
        processor: Any = AutoImageProcessor.from_pretrained(model.name, **where(model))
    except OSError:  # no preprocessor_config.json
        return None
    except ValueError as error:
        raise UserError(f"{model.name}: transformers cannot build its image processor ({reason(error)})") from error
    refused = [key for key in UNSUPPORTED if getattr(processor, key, None)]
    if not getattr(processor, "do_resize", True):
        refused = ["do_resize"]
    elif processor.resample not in INTERPOLATIONS:
        refused.append("resample")
    elif not (is_native(processor) or _side(processor.size, "shortest_edge") or _side(processor.size, "height")):
        refused.append("size")
    if refused:
        key = refused[0]
        raise UserError(
            f"{model.name}: {key} of its preprocessor_config.json is not supported ({getattr(processor, key)}): save "
            "the model to a folder, and change the value there"
        )
    return processor


def normalization(processor: Any, model_type: str) -> Normalize:
    """The normalization of pixels in 0 ... 255 by the steps that are enabled in `processor`.

    Without a processor, it uses the statistics that models of this type were trained with.
    """
    from transformers.utils import constants

    if processor is not None:
        scale = 255 * processor.rescale_factor if processor.do_rescale else 255.0
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
        return Normalize([value / scale for value in mean], [value / scale for value in std])
    if model_type.startswith(LIKE_CLIP):
        return Normalize(constants.OPENAI_CLIP_MEAN, constants.OPENAI_CLIP_STD)
    if model_type.startswith(LIKE_SIGLIP) or model_type == "vit":
        return Normalize(constants.IMAGENET_STANDARD_MEAN, constants.IMAGENET_STANDARD_STD)
    if model_type.startswith(NOT_NORMALIZED):
        return Normalize([0.0] * 3, [1.0] * 3)
    return Normalize(constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD)


def preprocessing(processor: Any, model_type: str) -> Preprocessing:
    """How images are resized and cropped to the input size of the model.

    A processor that resizes the shorter side without cropping produces images of all shapes. Their center is cropped.
    """
    if processor is None or is_native(processor):
        return Preprocessing("stretch" if model_type.startswith(STRETCHED) else "crop")
    shorter = _side(processor.size, "shortest_edge")
    edge = shorter or _side(processor.size, "height")
    crop = _side(processor.crop_size, "height") if getattr(processor, "do_center_crop", False) else edge
    interpolation = INTERPOLATIONS[int(processor.resample)]
    return Preprocessing("crop" if shorter else "stretch", min(crop / edge, 1.0), interpolation)


def is_native(processor: Any) -> bool:
    """Whether an image processor keeps the shapes of images (NaFlex)."""
    return hasattr(processor, "max_num_patches")


def _side(size: Any, name: str) -> Any:
    return size.get(name) if isinstance(size, dict) else getattr(size, name)
