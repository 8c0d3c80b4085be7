"""Image towers from transformers with one token per patch, such as CLIP, SigLIP, ViT, DINOv2 and DINOv3."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from patchword.data.pixels import NativePreprocessing, Preprocessing, require_image_size
from patchword.encoders.base import ImageTower
from patchword.encoders.frozen import Freezable
from patchword.encoders.hf_processor import INTERPOLATIONS, image_processor, normalization, preprocessing
from patchword.encoders.loading import find_model, load, read_config, reason
from patchword.encoders.lora import Lora, add_adapters
from patchword.encoders.naflex import SIGLIP2, patch_mask, siglip2_outputs
from patchword.errors import UserError
from patchword.provenance.hub import record

CLASSES = {
    "clip_vision_model": "CLIPVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    SIGLIP2: "Siglip2VisionModel",
}

# The last norm of models that apply it only to their pooled feature: the class token, or the mean of the patches.
LAST_NORMS = {
    "beit": "pooler.layernorm",
    "chinese_clip_vision_model": "post_layernorm",
    "clip_vision_model": "post_layernorm",
    "mlcd_vision_model": "post_layernorm",
}


class HFImage(Freezable, ImageTower):
    """The patch tokens of a transformers image model, after its last normalization.

    BEiT, CLIP, Chinese-CLIP and MLCD apply that norm only to their pooled feature. This class also applies it to their
    patches. Three types have no norm after their last block, so that their patches are not normalized:
    `data2vec-vision`, `radio` and `sam3_vit_model`.

    SigLIP 2 NaFlex takes images of any shape. They keep their aspect ratio and are padded to a square of `image_size`,
    whose padding the model does not compute. Images that are longer than the square are scaled down to it.

    Args:
        model: A hub name (`OWNER/NAME`, or `OWNER/NAME@REVISION`) or a folder. If it is a pair of towers (CLIP,
            SigLIP), its image tower is used.
        config: An alternative to `model` that starts from random weights: the `model_type` and all values that differ
            from its defaults, as in `{"model_type": "dinov2", "hidden_size": 96}`.
        image_size: Height and width in pixels. Position embeddings are interpolated to this size. The default is the
            size that the model was trained on, or for NaFlex 1.5 times the side of a square image.
        max_num_patches: The largest number of patches of an image, only for NaFlex. The default is that of the model's
            image processor.
        freeze: Whether to freeze the weights and keep the model in eval mode.
        lora: Train low-rank adapters and freeze the original weights. null trains all weights.

    Raises:
        UserError: If not exactly one of `model` and `config` is given, the weights of the model are incomplete, the
            patch size does not divide the image size, or the model does not have one token per patch.
    """

    backbone: Any

    def __init__(
        self,
        model: str | None = None,
        config: dict[str, Any] | None = None,
        image_size: int | None = None,
        max_num_patches: int | None = None,
        freeze: bool = False,
        lora: Lora | None = None,
    ) -> None:
        super().__init__()
        source = find_model(model)
        settings = read_config(source, config)
        settings = getattr(settings, "vision_config", settings)  # the image tower of a pair
        patch_size(settings)  # before its image processor is read, which can be of any kind
        if settings.model_type in ("siglip_vision_model", SIGLIP2):
            settings.vision_use_head = False  # the pooling head; only the patches are used here
        processor = image_processor(source)
        self.preprocessing, image_size = framing(settings, processor, image_size, max_num_patches)
        self.image_size, self.grid = patch_grid(settings, image_size)
        self.normalize = normalization(processor, settings.model_type)
        uses_pooler = LAST_NORMS.get(settings.model_type, "").startswith("pooler")
        self.backbone = load(source, settings, CLASSES, uses_pooler)
        self.commits = record(source)
        if "pooler" in dict(self.backbone.named_children()) and not uses_pooler:  # only the patches are used here
            self.backbone.pooler = None
        add_adapters(self.backbone, lora, freeze)
        tokens = self._measure(settings.model_type)
        self.width = tokens.shape[-1]
        self.prefix = tokens.shape[1] - self.grid[0] * self.grid[1]
        self.has_class_token = self.prefix > 0
        self.settle([tokens], freeze)

    def _measure(self, model_type: str) -> Float[Tensor, "2 N C"]:
        """The tokens of two black images, with their autograd graph.

        Raises:
            UserError: If the model needs other inputs than images, or does not have one token per patch.
        """
        try:
            with torch.enable_grad():
                tokens = self.eval()._tokens(torch.zeros(2, 3, *self.image_size, dtype=torch.uint8))
        except Exception as error:  # models that also need videos, texts or shapes raise many kinds of errors
            raise UserError(
                f"{model_type} computes no tokens from images alone ({reason(error)}): use another model, or TimmImage"
            ) from error
        if tokens.ndim != 3 or len(tokens) != 2 or tokens.shape[1] < self.grid[0] * self.grid[1]:
            raise _no_patches(model_type)
        return tokens

    def _tokens(self, pixels: UInt8[Tensor, "I _ H W"]) -> Float[Tensor, "I N C"]:
        return vision_tokens(self.backbone, self.normalize(pixels[:, :3]), patch_mask(pixels, self.grid))

    def forward(self, pixels: UInt8[Tensor, "I _ H W"]) -> tuple[Float[Tensor, "I P C"], Float[Tensor, "I C"] | None]:
        """Returns the patch features in row-major order, and the class token if the model has one."""
        tokens = self._tokens(pixels)
        return tokens[:, self.prefix :], tokens[:, 0] if self.has_class_token else None


def vision_tokens(
    model: Any, pixels: Float[Tensor, "I 3 H W"], mask: Bool[Tensor, "I P"] | None = None
) -> Float[Tensor, "I N C"]:
    """All tokens of an image model after its last norm (see `LAST_NORMS`), with the prefix tokens first.

    Only NaFlex models accept a mask of patches. Tokens outside of it are zero.
    """
    return vision_outputs(model, pixels, mask)[0]


def vision_outputs(
    model: Any, pixels: Float[Tensor, "I 3 H W"], mask: Bool[Tensor, "I P"] | None = None
) -> tuple[Float[Tensor, "I N C"], Float[Tensor, "I E"] | None]:
    """The `vision_tokens` and what the model itself pools, or None if it does not."""
    if model.config.model_type == SIGLIP2:
        return siglip2_outputs(model, pixels, mask)
    output = model(pixel_values=pixels, interpolate_pos_encoding=True)
    norm = last_norm(model)
    tokens = output.last_hidden_state
    return tokens if norm is None else model.get_submodule(norm)(tokens), getattr(output, "pooler_output", None)


def last_norm(model: Any) -> str | None:
    """The name of the norm that `vision_tokens` applies to the output of the model; None if it applies no norm.

    BEiT models without mean pooling normalize their tokens themselves.
    """
    name = LAST_NORMS.get(model.config.model_type)
    return name if getattr(model.config, "use_mean_pooling", True) else None


def framing(
    config: Any, processor: Any, image_size: int | None, max_num_patches: int | None
) -> tuple[Preprocessing, int | None]:
    """How images become the input of a model, and its `image_size`; None for the size that the model was trained on.

    Raises:
        UserError: If `max_num_patches` is given for a model that takes images of one shape.
    """
    if config.model_type == SIGLIP2:
        interpolation = "bilinear" if processor is None else INTERPOLATIONS[int(processor.resample)]
        most = getattr(processor, "max_num_patches", config.num_patches) if max_num_patches is None else max_num_patches
        native = NativePreprocessing("native", 1.0, interpolation, config.patch_size, most)
        return native, native.square if image_size is None else image_size
    if max_num_patches is not None:
        raise UserError(
            f"max_num_patches is for NaFlex models, but {config.model_type} takes images of one shape: remove it, and "
            "set image_size instead"
        )
    return preprocessing(processor, config.model_type), image_size


def _no_patches(model_type: str) -> UserError:
    return UserError(f"{model_type} does not have one token per patch: use TimmImage for this kind of model")


def patch_size(config: Any) -> int:
    """The height and width of a patch in pixels.

    Raises:
        UserError: If the model does not have square patches.
    """
    size = getattr(config, "patch_size", None)
    if not isinstance(size, int):
        raise _no_patches(config.model_type)
    return size


def patch_grid(config: Any, image_size: int | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """The height and width of the image in pixels, and in patches.

    Raises:
        UserError: If the model does not have square patches, or their size does not divide the image size.
    """
    size = getattr(config, "image_size", None) if image_size is None else image_size
    patch = patch_size(config)
    if not isinstance(size, int):
        raise _no_patches(config.model_type)
    require_image_size(size)
    if size % patch:
        near = max(1, round(size / patch)) * patch
        what = f"patches of {patch} pixels do not divide an image_size of {size}"
        raise UserError(f"{what}: use a multiple, such as {near}")
    return (size, size), (size // patch, size // patch)
