"""Image towers from timm: one interface to the features of about 1000 architectures."""

from __future__ import annotations

import difflib
import inspect
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn

from patchword.data.pixels import Interpolation, NativePreprocessing, Preprocessing, ResizeMode, require_image_size
from patchword.encoders.base import ImageTower
from patchword.encoders.frozen import Freezable, leaves
from patchword.encoders.loading import missing_error, reason, weights_error
from patchword.encoders.lora import Lora, add_adapters
from patchword.encoders.naflex import Sequences, patch_mask
from patchword.encoders.pixels import Normalize
from patchword.errors import UserError
from patchword.provenance.hub import Repository, cached, explain, find, record


class TimmImage(Freezable, ImageTower):
    """One feature level of a timm model. The layers after this level are removed.

    The last level of a transformer consists of its tokens after the last norm. Some models apply this norm only to the
    mean of their tokens (BEiT, EVA-02, ViTs with `gap` in their names and others with an `fc_norm`). This class applies
    it to every token of these models. The last level is not normalized if the norm belongs to the classifier (Hiera and
    SAM 2's Hiera, DaViT, CAFormer, EdgeNeXt, TinyViT and, among convolutional networks, ConvNeXt) or to the class token
    (PiT), or if the model has no such norm (`vit_pe_spatial_*`, `vit_pe_lang_*`). Pixels are normalized with the mean
    and standard deviation of the model's data configuration.

    Args:
        name: An architecture (`timm.list_models()`), with or without a tag; `hf_hub:OWNER/NAME` or
            `hf_hub:OWNER/NAME@REVISION`; or `local-dir:/path`, a folder that timm saved. The weights of a folder are
            always loaded.
        pretrained: Whether to download timm's weights for `name`. False starts from random weights.
        weights: A local file of weights for `name` (.safetensors or .pth) that is used instead of a download. It must
            have all weights that the features depend on. A classifier in it is ignored.
        image_size: Height and width in pixels. Position embeddings are interpolated to this size. The default is the
            size that the model was trained on.
        max_num_patches: Keep the shapes of images, with at most this number of patches (NaFlexVit only): images are
            padded to a square of `image_size`, whose padding the model does not compute. The default of `image_size` is
            then 1.5 times the side of a square image. null resizes all images to squares.
        level: The index of the feature level. Negative values count from the last level. A transformer has one level
            per block. Most convolutional networks have five, with strides 2, 4, 8, 16, 32.
        freeze: Whether to freeze the weights and keep the model in eval mode.
        model_args: Additional arguments for `timm.create_model`, such as `depth` or `drop_path_rate`.
        lora: Train low-rank adapters and freeze the original weights. null trains all weights.

    Raises:
        UserError: If timm does not know `name`, there is no file `weights`, the weights are incomplete, the model has
            no such `level`, the stride of the level does not divide the image size, or timm cannot run the model with
            these arguments.
    """

    backbone: Any

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        weights: str | None = None,
        image_size: int | None = None,
        max_num_patches: int | None = None,
        level: int = -1,
        freeze: bool = False,
        model_args: dict[str, Any] | None = None,
        lora: Lora | None = None,
    ) -> None:
        super().__init__()
        require_image_size(image_size)
        source = _find(name)
        with _key_differences() as differences:
            self.backbone = _create(source, name, pretrained, weights, image_size, model_args or {})
        self.commits = record(source or _downloaded(self.backbone, pretrained and weights is None))
        from timm.data.config import resolve_model_data_config

        data = resolve_model_data_config(self.backbone)
        self.normalize = Normalize(data["mean"], data["std"])
        resize_mode: ResizeMode = "stretch" if data["crop_mode"] == "squash" else "crop"
        self.image_size = (image_size, image_size) if image_size else data["input_size"][-2:]
        # timm resizes images to `edge` and crops their center.
        edge = math.floor(self.image_size[0] / data["crop_pct"])
        fraction = self.image_size[0] / edge if resize_mode == "crop" else 1.0
        self.preprocessing = Preprocessing(resize_mode, fraction, data["interpolation"])
        if max_num_patches is not None:
            native = _native(self.backbone, name, data["interpolation"], max_num_patches)
            self.preprocessing, self.image_size = native, (image_size or native.square,) * 2
        self.indices, self.final = _prune(self.backbone, name, level, self.image_size)
        self.has_pooled_norm = self.final and _has_pooled_norm(self.backbone)
        # Models without a class token, and those that add it after the patch tokens (CaiT), return no prefix.
        takes = inspect.signature(self.backbone.forward_intermediates).parameters
        has_class = getattr(self.backbone, "cls_token", None) is not None
        self.has_class_token = has_class and "return_prefix_tokens" in takes
        place = f"{name} at level {level}"
        for missing, unexpected in differences:
            self._require_weights(missing, unexpected, weights or name, place)
        add_adapters(self.backbone, lora, freeze)
        outputs = self._measure(place)
        _, self.width, *grid = outputs[0].shape
        self.grid = (grid[0], grid[1])
        self.settle(outputs, freeze)

    def _require_weights(self, missing: list[str], unexpected: list[str], file: str, place: str) -> None:
        """Refuse weights without a parameter in the graph of the features, or a running statistic.

        The classifier may be missing. `file` (the weights) and `place` (the model and the level) are for the message.
        """
        if not missing:
            return
        used = leaves(self._measure(place))
        lacking = [key for key, parameter in self.backbone.named_parameters() if key in missing and parameter in used]
        statistics = [key for key, _ in self.backbone.named_buffers() if key.endswith(("running_mean", "running_var"))]
        lacking += [key for key in statistics if key in missing]
        if lacking:
            raise UserError(missing_error(file, place, lacking, unexpected))

    def _measure(self, place: str) -> list[Tensor]:
        """The feature map of a black image and, if there are any, its prefix tokens, with a graph.

        Raises:
            UserError: If timm cannot run the model, which the message calls `place`.
        """
        pixels = torch.zeros(1, 3, *self.image_size, dtype=torch.uint8)
        try:
            with torch.enable_grad():
                try:
                    outputs = self.eval()._features(pixels)
                except AssertionError as error:
                    if "normalization" not in str(error):
                        raise
                    self.final = False  # Hiera: timm has no norm for the features of this model
                    outputs = self._features(pixels)
        except Exception as error:  # each model has its own checks
            raise UserError(f"timm cannot run {place} on {self.image_size} pixels ({reason(error)})") from error
        if not outputs[0].numel():
            raise UserError(f"{place} has features without channels: correct the sizes in model_args")
        return [output for output in outputs if output is not None]

    def _features(
        self, pixels: UInt8[Tensor, "I _ H W"]
    ) -> tuple[Float[Tensor, "I C h w"], Float[Tensor, "I N C"] | None]:
        """Returns the feature map and the prefix tokens."""
        inputs: Any = self.normalize(pixels[:, :3])
        images = None
        if pixels.shape[1] == 4:
            images = Sequences.of(inputs, patch_mask(pixels, self.grid), self.grid)
            inputs = _inputs(images, self.grid[1])
        (features,) = self.backbone.forward_intermediates(
            inputs,
            indices=self.indices,
            norm=self.final,
            output_fmt="NCHW" if images is None else "NLC",
            intermediates_only=True,
            **({"return_prefix_tokens": True} if self.has_class_token else {}),
        )
        features, prefix = features if self.has_class_token else (features, None)
        if images is not None:
            features = images.on_grid(features).mT.unflatten(-1, self.grid)
        if self.has_pooled_norm:
            norm = self.backbone.fc_norm
            features = norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            prefix = None if prefix is None else norm(prefix)
        return features, prefix

    def forward(self, pixels: UInt8[Tensor, "I _ H W"]) -> tuple[Float[Tensor, "I P C"], Float[Tensor, "I C"] | None]:
        """Returns the patch features in row-major order, and the class token if the model has one."""
        # Convolutions are faster on channels-last images: EfficientNet-Lite0 trains 1.6 times as fast on a CPU.
        features, prefix = self._features(pixels.contiguous(memory_format=torch.channels_last))
        return features.flatten(2).mT, None if prefix is None else prefix[:, 0]


def _find(name: str) -> Repository | None:
    """The hub repository of a name that begins with `hf_hub:`; None for other names."""
    prefix, _, rest = name.partition(":")
    return find(rest, "model") if prefix in ("hf_hub", "hf-hub") else None


def _downloaded(model: Any, pretrained: bool) -> Repository | None:
    """The hub repository from which timm downloaded the weights of an architecture; None if it used no hub."""
    place = model.pretrained_cfg.get("hf_hub_id") if pretrained else None
    return cached(place, "model") if place else None


@contextmanager
def _key_differences() -> Iterator[list[tuple[list[str], list[str]]]]:
    """Context that collects the missing and the unexpected keys of every state dict that is loaded in it.

    timm only logs these keys.
    """
    found: list[tuple[list[str], list[str]]] = []
    load: Any = nn.Module.load_state_dict

    def load_state_dict(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = load(module, *args, **kwargs)
        found.append((list(result.missing_keys), list(result.unexpected_keys)))
        return result

    nn.Module.load_state_dict = load_state_dict  # type: ignore[assignment, method-assign]
    try:
        yield found
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]


def _create(
    source: Repository | None, name: str, pretrained: bool, weights: str | None, size: int | None, args: dict[str, Any]
) -> nn.Module:
    """The timm model without its classifier."""
    import timm
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    local = name.startswith("local-dir:")
    if ":" not in name and not timm.is_model(name):
        if "/" in name:
            raise UserError(f"timm has no model {name!r}: write hf_hub:{name} or local-dir:{name}")
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        raise UserError(f"timm has no model {name!r}{': did you mean ' + ', '.join(close) + '?' if close else ''}")
    if local and not os.path.isdir(name.removeprefix("local-dir:")):
        raise UserError(f"there is no folder {name.removeprefix('local-dir:')}")
    if weights is not None and not os.path.isfile(weights):
        raise UserError(f"there is no file of weights {weights}")
    try:
        # Models with a fixed input size are built for `size`. Other models accept any size.
        wanted = timm.models.resolve_model_input_args(
            name if source is None else f"hf-hub:{source.name}@{source.commit}",
            {} if size is None else {"img_size": size},
            pretrained_cfg_overlay={} if weights is None else {"file": weights},
            num_classes=0,
            **args,
        )
        return timm.create_model(pretrained=pretrained or local or weights is not None, **wanted)
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        known: Any = timm.get_pretrained_cfg(name) if source is None else None
        raise UserError(explain(error, source.name if source else known.hf_hub_id, "model")) from error
    except Exception as error:  # each model has its own checks
        if isinstance(error, (RuntimeError, UnpicklingError, SafetensorError)) and (pretrained or local or weights):
            raise UserError(weights_error(error, weights or name)) from error
        file = f" with the weights {weights}" if weights else ""
        raise UserError(f"timm cannot build {name}{file} ({reason(error)})") from error


def _prune(model: Any, name: str, level: int, image_size: tuple[int, int]) -> tuple[list[int], bool]:
    """Remove the layers after `level`. Return its index for `forward_intermediates`, and whether it is the last."""
    levels = len(model.feature_info)
    if not -levels <= level < levels:
        raise UserError(f"{name} has feature levels 0 to {levels - 1}, or -1 for the last: there is no level {level}")
    level %= levels
    final = level == levels - 1
    stride = model.feature_info[level]["reduction"]
    if any(pixels % stride for pixels in image_size):
        near = max(1, round(image_size[0] / stride)) * stride
        raise UserError(
            f"{name} has one patch per {stride} pixels at level {level}, which does not divide an image of "
            f"{image_size[0]} x {image_size[1]}: set image_size to a multiple, such as {near}"
        )
    prune_head = not (final and _has_pooled_norm(model))
    return model.prune_intermediate_layers([level], prune_norm=not final, prune_head=prune_head), final


def _inputs(images: Sequences, columns: int) -> dict[str, Any]:
    """The inputs of a NaFlexVit. It takes the shapes of images from all coordinates, so that padding must have none."""
    place = images.place if images.mask is None else images.place.masked_fill(~images.mask, 0)
    coordinates = torch.stack([place // columns, place % columns], -1)
    return {"patches": images.patches, "patch_coord": coordinates, "patch_valid": images.mask}


def _native(model: Any, name: str, interpolation: Interpolation, most: int) -> NativePreprocessing:
    """The preprocessing of images of any shape.

    Raises:
        UserError: If the model is not a NaFlexVit.
    """
    from timm.models.naflexvit import NaFlexVit

    if not isinstance(model, NaFlexVit):
        raise UserError(
            f"max_num_patches is for NaFlex models, but {name} takes images of one shape: remove it, and set "
            "image_size instead"
        )
    return NativePreprocessing("native", 1.0, interpolation, model.get_patch_size()[0], most)


def _has_pooled_norm(model: Any) -> bool:
    """Whether the last norm of a model applies to the mean of its tokens."""
    return not isinstance(getattr(model, "fc_norm", nn.Identity()), nn.Identity)
