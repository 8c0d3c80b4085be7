"""Combine any image tower with any text tower by two adapters into one space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from patchword.encoders.base import Encoder, ImageTower, Selection, TextTower, Tokens
from patchword.encoders.naflex import patch_mask
from patchword.encoders.pixels import require_size
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.ops import masked_mean


class TwoTowers(Encoder):
    """An image tower f_v and a text tower f_t with adapters g_v and g_t, linear by default (SPARC, section 3).

    Patch embeddings are g_v(f_v) and token embeddings are g_t(f_t), without normalization. The adapters also project
    the pooled vectors.

    Args:
        image: The image tower.
        text: The text tower.
        embed_dim: The width D of the shared space.
        image_pool: The pooled image feature: the mean of the patches (`mean`), or the class token (`cls`).
        text_pool: The pooled text feature: the mean of the real tokens, including special tokens (`mean`), or the first
            (`cls`) or last (`eos`) real token. For a caption without tokens, it is zero before the adapter.
        extra_layer: Whether to apply an additional non-linear layer h_v (from SPARC) to the pooled image feature before
            the adapter: v = g_v(h_v(pool(f_v))).
        image_adapter: The type of g_v: `linear`, or `residual`, a linear map plus a two-layer perceptron (PACL, arXiv
            2212.04994).

    Raises:
        UserError: If `embed_dim` is less than 1, or `image_pool` is `cls` and the image tower has no class token.
    """

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        embed_dim: int = 512,
        image_pool: Literal["mean", "cls"] = "mean",
        text_pool: Literal["mean", "cls", "eos"] = "mean",
        extra_layer: bool = False,
        image_adapter: Literal["linear", "residual"] = "linear",
    ) -> None:
        super().__init__()
        if embed_dim < 1:
            raise UserError(f"embed_dim must be 1 or more, not {embed_dim}")
        if image_pool == "cls" and not image.has_class_token:
            raise UserError("the image tower has no class token: set image_pool to mean")
        self.image, self.text = image, text
        self.embed_dim = embed_dim
        self.image_size, self.grid, self.preprocessing = image.image_size, image.grid, image.preprocessing
        self.image_pool, self.text_pool = image_pool, text_pool
        layer = [nn.Linear(image.width, image.width), nn.GELU()] if extra_layer else []
        self.pooled_layer = nn.Sequential(*layer)
        make = nn.Linear if image_adapter == "linear" else ResidualAdapter
        self.image_adapter = make(image.width, embed_dim)
        self.text_adapter = nn.Linear(text.width, embed_dim)

    def towers(self) -> list[nn.Module]:
        """The image tower and the text tower."""
        return [self.image, self.text]

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Returns token ids with masks and character spans, on the CPU."""
        return self.text.tokenize(captions)

    def encode_images(self, pixels: UInt8[Tensor, "I _ H W"]) -> Images:
        """Returns the embeddings of raw pixels, which must have the size `image_size`."""
        require_size(pixels, self.image_size, self.preprocessing)
        patches, class_token = self.image(pixels)
        return self.project_images(patches, class_token, patch_mask(pixels, self.grid))

    def encode_texts(self, tokens: Tokens, selection: Selection = "all") -> Texts:
        """Returns the embeddings of captions. `selection` affects their mask, and not the pooled embeddings."""
        return self.project_texts(self.text(tokens), tokens, selection)

    def project_images(
        self,
        patches: Float[Tensor, "I P C"],
        class_token: Float[Tensor, "I C"] | None,
        mask: Bool[Tensor, "I P"] | None = None,
    ) -> Images:
        """Returns the embeddings of images from the features of the image tower; `mask` is that of `Images`."""
        mean = patches.mean(1) if mask is None else masked_mean(patches, mask)
        pooled = class_token if self.image_pool == "cls" else mean
        return Images(self.image_adapter(self.pooled_layer(pooled)), self.image_adapter(patches), self.grid, mask)

    def project_texts(self, features: Float[Tensor, "T L C"], tokens: Tokens, selection: Selection = "all") -> Texts:
        """Returns the embeddings of captions from the features of the text tower."""
        pooled = masked_mean(features, self._pooled_tokens(tokens.mask))
        return Texts(self.text_adapter(pooled), self.text_adapter(features), tokens.select(selection))

    def _pooled_tokens(self, mask: Bool[Tensor, "T L"]) -> Bool[Tensor, "T L"]:
        if self.text_pool == "mean":
            return mask
        order = mask.cumsum(-1)
        chosen = torch.ones_like(order[:, :1]) if self.text_pool == "cls" else order[:, -1:]
        return mask & (order == chosen)


class ResidualAdapter(nn.Module):
    """PACL's vision embedder, W x + W_2 relu(W_1 x + b_1) + b_2 + b, with a hidden layer of `embed_dim` channels."""

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.skip = nn.Linear(width, embed_dim)
        self.main = nn.Sequential(nn.Linear(width, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim))

    def forward(self, x: Float[Tensor, "*n W"]) -> Float[Tensor, "*n D"]:
        """Maps `x` to the shared space."""
        return self.skip(x) + self.main(x)
