"""Image towers from transformers: CLIP, SigLIP, ViT, DINOv2, DINOv3 and others with one token per patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from patchword.data.pixels import Interpolation, Preprocessing
from patchword.encoders.base import ImageTower
from patchword.encoders.frozen import Freezable
from patchword.encoders.loading import find_model, load, read_config, where
from patchword.encoders.lora import Lora, add_adapters
from patchword.encoders.pixels import Normalize
from patchword.errors import InputError
from patchword.hub import Repository, record

INTERPOLATIONS: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
CLASSES = {"clip_vision_model": "CLIPVisionModel", "siglip_vision_model": "SiglipVisionModel"}


class HFImage(Freezable, ImageTower):
    """The patch tokens of a transformers image model, after its last normalisation.

    Args:
        model: A hub name (`OWNER/NAME`, or `OWNER/NAME@REVISION`) or a folder. One that holds a pair of towers (CLIP,
            SigLIP) gives its image tower.
        config: Instead of `model`, to start from random weights: `model_type` and what differs from its defaults,
            as in `{"model_type": "dinov2", "hidden_size": 96}`.
        image_size: Height and width in pixels. Position embeddings are interpolated to it. Left out, the size
            that the model was trained on.
        freeze: Whether to keep the weights as they are, in eval mode.
        lora: Train low-rank adapters and keep the weights as they are; null trains all weights.

    Raises:
        InputError: If not exactly one of `model` and `config` is given, the patch size does not divide the image
            size, or the model does not make one token per patch.
    """

    backbone: Any

    def __init__(
        self,
        model: str | None = None,
        config: dict[str, Any] | None = None,
        image_size: int | None = None,
        freeze: bool = False,
        lora: Lora | None = None,
    ) -> None:
        super().__init__()
        source = find_model(model)
        settings = read_config(source, config)
        settings = getattr(settings, "vision_config", settings)  # of a pair, the image half
        if settings.model_type == "siglip_vision_model":
            settings.vision_use_head = False  # its pooling; only the patches are wanted here
        self.image_size, self.grid = patch_grid(settings, image_size)
        processor = image_processor(source)
        self.normalize = Normalize(*pixel_statistics(processor, settings.model_type))
        self.preprocessing = preprocessing(processor, settings.model_type)
        self.backbone = load(source, settings, CLASSES)
        self.commits = record(source)
        if "pooler" in dict(self.backbone.named_children()):
            self.backbone.pooler = None
        add_adapters(self.backbone, lora, freeze)
        self.width = settings.hidden_size
        with torch.enable_grad():
            tokens = self.eval()._tokens(torch.zeros(1, 3, *self.image_size, dtype=torch.uint8))
        self.prefix = tokens.shape[1] - self.grid[0] * self.grid[1]
        if self.prefix < 0:
            raise InputError(f"{settings.model_type} does not make one token per patch: use TimmImage for such models")
        self.has_class_token = self.prefix > 0
        self.settle([tokens], freeze)

    def _tokens(self, pixels: UInt8[Tensor, "I 3 H W"]) -> Float[Tensor, "I N C"]:
        return vision_tokens(self.backbone, self.normalize(pixels))

    def forward(self, pixels: UInt8[Tensor, "I 3 H W"]) -> tuple[Float[Tensor, "I P C"], Float[Tensor, "I C"] | None]:
        """Patch features, row by row, and the class token if the model has one."""
        tokens = self._tokens(pixels)
        return tokens[:, self.prefix :], tokens[:, 0] if self.has_class_token else None


def vision_tokens(model: Any, pixels: Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I N C"]:
    """All tokens of an image model after its last layer norm, prefix first.

    CLIP applies that norm to the class token alone; here it is applied to the patches as well.
    """
    tokens = model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    return model.post_layernorm(tokens) if model.config.model_type == "clip_vision_model" else tokens


def patch_grid(config: Any, image_size: int | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width in pixels, and in patches.

    Raises:
        InputError: If the model has no square patches, or their size does not divide the image size.
    """
    size, patch = image_size or getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if not isinstance(patch, int) or not isinstance(size, int):
        raise InputError(f"{config.model_type} does not make one token per patch: use TimmImage for such models")
    if size % patch:
        near = max(1, round(size / patch)) * patch
        raise InputError(f"patches of {patch} pixels do not divide an image_size of {size}: use a multiple, as {near}")
    return (size, size), (size // patch, size // patch)


def image_processor(model: Repository | None) -> dict[str, Any]:
    """The settings of the image processor that was saved with `model`; empty if there is none."""
    from transformers.image_processing_base import ImageProcessingMixin

    if model is None:
        return {}
    try:
        return ImageProcessingMixin.get_image_processor_dict(model.name, **where(model))[0]
    except OSError:  # no preprocessor_config.json
        return {}


def pixel_statistics(processor: dict[str, Any], model_type: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of each channel, from the settings of an image processor.

    Without them, what the models of this type were trained with.
    """
    from transformers.utils import constants

    if "image_mean" in processor and "image_std" in processor:
        return processor["image_mean"], processor["image_std"]
    if model_type.startswith("clip"):
        return constants.OPENAI_CLIP_MEAN, constants.OPENAI_CLIP_STD
    if model_type.startswith("siglip") or model_type in {"vit", "beit"}:
        return constants.IMAGENET_STANDARD_MEAN, constants.IMAGENET_STANDARD_STD
    return constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD


def preprocessing(processor: dict[str, Any], model_type: str) -> Preprocessing:
    """How images are brought to the model's size, from the settings of an image processor.

    Without them, as the models of this type were trained: SigLIP and ViT stretch, others crop at the centre.
    """
    size = processor.get("size", {})
    if not isinstance(size, dict) or not size:
        return Preprocessing("stretch" if model_type.startswith(("siglip", "vit", "beit")) else "crop")
    method: Interpolation = INTERPOLATIONS.get(processor.get("resample", 3), "bicubic")
    if "shortest_edge" not in size:
        return Preprocessing("stretch", interpolation=method)
    crop = processor.get("crop_size", {}) if processor.get("do_center_crop", True) else {}
    edge = crop.get("height", size["shortest_edge"]) if isinstance(crop, dict) else crop
    return Preprocessing("crop", min(edge / size["shortest_edge"], 1.0), method)
