"""Image towers from timm: some 1000 architectures behind one way of reading their features."""

from __future__ import annotations

import difflib
import inspect
import math
import os
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from patchword.data.pixels import Fit, Preprocessing
from patchword.encoders.base import ImageTower
from patchword.encoders.frozen import Freezable
from patchword.encoders.lora import Lora, add_adapters
from patchword.encoders.pixels import Normalize
from patchword.errors import InputError
from patchword.hub import Repository, cached, explain, find, record


class TimmImage(Freezable, ImageTower):
    """One feature level of a timm model; the layers after it are removed.

    The last level of a transformer is its final, normalised tokens. Pixels are normalised with the mean and
    standard deviation of the model's own data configuration.

    Args:
        name: An architecture (`timm.list_models()`), with or without a tag; `hf_hub:OWNER/NAME` or
            `hf_hub:OWNER/NAME@REVISION`; or `local-dir:/path` to a folder that timm saved, which is always loaded with
            its weights.
        pretrained: Whether to download the weights that timm knows for `name`. False starts from random ones.
        weights: A local file of weights for `name`, .safetensors or .pth, used in place of a download; a classifier
            in it is dropped.
        image_size: Height and width in pixels. Position embeddings are interpolated to it. Left out, the size
            that the model was trained on.
        level: Which feature level, from 0; negative ones count from the last. A transformer has one per block;
            most convolutional networks have five, with strides 2, 4, 8, 16, 32.
        freeze: Whether to keep the weights as they are, in eval mode.
        model_args: More arguments for `timm.create_model`, such as `depth` or `drop_path_rate`.
        lora: Train low-rank adapters and keep the weights as they are; null trains all weights.

    Raises:
        InputError: If timm does not know `name`, there is no file at `weights`, the model has no such `level`,
            its stride does not divide the image size, or timm cannot run it so.
    """

    backbone: Any

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        weights: str | None = None,
        image_size: int | None = None,
        level: int = -1,
        freeze: bool = False,
        model_args: dict[str, Any] | None = None,
        lora: Lora | None = None,
    ) -> None:
        super().__init__()
        source = _find(name)
        self.backbone = _create(source, name, pretrained, weights, image_size, model_args or {})
        self.commits = record(source or _downloaded(self.backbone, pretrained and weights is None))
        from timm.data.config import resolve_model_data_config

        data = resolve_model_data_config(self.backbone)
        self.normalize = Normalize(data["mean"], data["std"])
        fit: Fit = "stretch" if data["crop_mode"] == "squash" else "crop"
        self.image_size = (image_size, image_size) if image_size else data["input_size"][-2:]
        edge = math.floor(self.image_size[0] / data["crop_pct"])  # of which timm's transform crops the centre
        fraction = self.image_size[0] / edge if fit == "crop" else 1.0
        self.preprocessing = Preprocessing(fit, fraction, data["interpolation"])
        self.indices, self.final = _prune(self.backbone, name, level, self.image_size)
        add_adapters(self.backbone, lora, freeze)
        # Models without a class token, and those that add it behind the patch tokens (CaiT), return no prefix.
        takes = inspect.signature(self.backbone.forward_intermediates).parameters
        has_class = getattr(self.backbone, "cls_token", None) is not None
        self.has_class_token = has_class and "return_prefix_tokens" in takes
        try:
            with torch.enable_grad():
                features, prefix = self.eval()._features(torch.zeros(1, 3, *self.image_size, dtype=torch.uint8))
        except AssertionError as error:  # timm's way to refuse
            raise InputError(f"timm cannot run {name} at level {level} on {self.image_size} pixels: {error}") from error
        self.width, self.grid = features.shape[1], (features.shape[2], features.shape[3])
        self.settle([features] if prefix is None else [features, prefix], freeze)

    def _features(
        self, pixels: UInt8[Tensor, "I 3 H W"]
    ) -> tuple[Float[Tensor, "I C h w"], Float[Tensor, "I N C"] | None]:
        """The feature map and the prefix tokens."""
        (features,) = self.backbone.forward_intermediates(
            self.normalize(pixels),
            indices=self.indices,
            norm=self.final,
            output_fmt="NCHW",
            intermediates_only=True,
            **({"return_prefix_tokens": True} if self.has_class_token else {}),
        )
        return features if self.has_class_token else (features, None)

    def forward(self, pixels: UInt8[Tensor, "I 3 H W"]) -> tuple[Float[Tensor, "I P C"], Float[Tensor, "I C"] | None]:
        """Patch features, row by row, and the class token if the model has one."""
        features, prefix = self._features(pixels)
        return features.flatten(2).mT, None if prefix is None else prefix[:, 0]


def _find(name: str) -> Repository | None:
    """The repository that `hf_hub:` names; None without it."""
    prefix, _, rest = name.partition(":")
    return find(rest, "model") if prefix in ("hf_hub", "hf-hub") else None


def _downloaded(model: Any, pretrained: bool) -> Repository | None:
    """What timm has the weights of an architecture from; None if that is not the hub."""
    place = model.pretrained_cfg.get("hf_hub_id") if pretrained else None
    return cached(place, "model") if place else None


def _create(
    source: Repository | None, name: str, pretrained: bool, weights: str | None, size: int | None, args: dict[str, Any]
) -> nn.Module:
    """The timm model without its classifier."""
    import timm
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    local = name.startswith("local-dir:")
    if ":" not in name and not timm.is_model(name):
        if "/" in name:
            raise InputError(f"timm has no model {name!r}: write hf_hub:{name} or local-dir:{name}")
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        raise InputError(f"timm has no model {name!r}{': did you mean ' + ', '.join(close) + '?' if close else ''}")
    if local and not os.path.isdir(name.removeprefix("local-dir:")):
        raise InputError(f"there is no folder {name.removeprefix('local-dir:')}")
    if weights is not None and not os.path.isfile(weights):
        raise InputError(f"there is no file of weights at {weights}")
    try:
        # Models of fixed size are built for `size`; the others take any.
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
        raise InputError(explain(error, source.name if source else known.hf_hub_id, "model")) from error


def _prune(model: Any, name: str, level: int, image_size: tuple[int, int]) -> tuple[list[int], bool]:
    """Removes what comes after `level`; returns its index for `forward_intermediates`, and whether it is the last."""
    levels = len(model.feature_info)
    if not -levels <= level < levels:
        raise InputError(f"{name} has feature levels 0 to {levels - 1}, or -1 for the last: there is no level {level}")
    level %= levels
    final = level == levels - 1
    stride = model.feature_info[level]["reduction"]
    if any(pixels % stride for pixels in image_size):
        near = max(1, round(image_size[0] / stride)) * stride
        raise InputError(
            f"{name} has one patch per {stride} pixels at level {level}, which does not divide an image of "
            f"{image_size[0]} x {image_size[1]}: set image_size to a multiple, such as {near}"
        )
    return model.prune_intermediate_layers([level], prune_norm=not final, prune_head=True), final
