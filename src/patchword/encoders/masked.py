"""Encode images and captions again with some of their patches and tokens masked in the input.

Pixels of masked patches get the mean color of the images that the backbone was trained on, which is zero after
normalization. Masked tokens get no attention and are not pooled; special tokens and tokens that are not selected are
never masked. FIxLIP (arXiv 2508.05430) masks in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn.functional import interpolate

from patchword import distributed
from patchword.encoders.base import Encoder, Tokens
from patchword.encoders.pixels import Normalize
from patchword.errors import UserError
from patchword.features import Masked, map_tensors


def masked_images(encoder: Encoder, pixels: UInt8[Tensor, "I _ H W"], size: int | None = None) -> Masked:
    """What encodes `pixels` again with some of their patches, at most `size` at a time; None for as many as `pixels`.

    The encoder is in eval mode, so that embeddings do not depend on the other images.
    """

    def encode(at: Int[Tensor, " N"], keep: Bool[Tensor, "N P"]) -> Float[Tensor, "N D"]:
        return encoder.encode_images(masked_pixels(pixels[at], keep.unflatten(-1, encoder.grid), _mean(encoder))).pooled

    return _in_parts(encoder, encode, len(pixels), pixels.device, size or len(pixels))


def masked_texts(encoder: Encoder, tokens: Tokens, selected: Bool[Tensor, "T L"], size: int | None = None) -> Masked:
    """What encodes `tokens` again with some of the `selected` ones, at most `size` captions at a time; see above.

    Raises:
        UserError: If the text tower also attends to masked tokens.
    """
    if any(getattr(part, "attend_all", False) for part in encoder.modules()):
        raise UserError(
            "words cannot be masked, because the text tower attends to its padding (SigLIP): use another text tower"
        )
    always = ~selected | tokens.special

    def encode(at: Int[Tensor, " N"], keep: Bool[Tensor, "N L"]) -> Float[Tensor, "N D"]:
        part = map_tensors(tokens, lambda x: x[at])
        mask = part.mask & (keep[:, : always.shape[1]] | always[at])
        return encoder.encode_texts(replace(part, captions=[tokens.captions[n] for n in at.tolist()], mask=mask)).pooled

    return _in_parts(encoder, encode, len(tokens.captions), tokens.ids.device, size or len(tokens.captions))


def masked_pixels(
    pixels: UInt8[Tensor, "N _ H W"], keep: Bool[Tensor, "N h w"], color: UInt8[Tensor, "3 1 1"]
) -> UInt8[Tensor, "N _ H W"]:
    """`pixels` with `color` in the patches of the grid that are not kept. A fourth channel (alpha) stays as it is."""
    shown = interpolate(keep[:, None].to(torch.uint8), pixels.shape[-2:], mode="nearest-exact").bool()
    return torch.cat([torch.where(shown, pixels[:, :3], color), pixels[:, 3:]], 1)


def _mean(encoder: Encoder) -> UInt8[Tensor, "3 1 1"]:
    """The pixel that is zero after normalization; gray for encoders without `Normalize`."""
    means = [part.mean for part in encoder.modules() if isinstance(part, Normalize)]
    mean = means[0] if means else torch.full((3, 1, 1), 0.5, device=next(encoder.parameters()).device)
    return (255 * mean).round().to(torch.uint8)


def _in_parts(
    encoder: Encoder,
    encode: Callable[[Tensor, Tensor], Tensor],
    count: int,
    device: torch.device,
    size: int,
) -> Masked:
    """`encode` without gradient on at most `size` inputs at a time.

    All ranks run equally often, as sharded towers need it: those with fewer inputs encode the first one again.
    """

    @torch.no_grad()
    def run(at: Tensor, keep: Tensor) -> Tensor:
        most = int(distributed.maximum(torch.tensor(len(at), device=device)))
        if most == 0:
            return torch.zeros(0, encoder.embed_dim, device=device)
        more = most - len(at)
        at = torch.cat([at, at.new_zeros(more)])
        keep = torch.cat([keep, keep.new_ones(more, keep.shape[1])])
        with _evaluating(encoder):
            parts = [encode(*part) for part in zip(at.split(size), keep.split(size), strict=True)]
        return torch.cat(parts)[: most - more]

    return Masked(torch.arange(count, device=device), run)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Inside this context, the module is in eval mode."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
