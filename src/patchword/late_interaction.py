"""Exact late interaction of all pairs, without storing the similarities of all tokens of all pairs.

    S_ij[p, l]   = v_ip . t_jl, or their cosine
    to_texts_ij  = 1/P_i sum_p max_l S_ij[p, l]        l over the tokens in the mask
    to_images_ij = 1/L_j sum_l max_p S_ij[p, l]        l over the tokens in the mask, L_j their number; P_i alike

This is late interaction of ColBERT (Khattab & Zaharia, SIGIR 2020) with means, as in FILIP (arXiv 2111.07783). The
gradient needs only the positions of the maxima: one small integer for each patch with each text, and for each token
with each image.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag, max_pool2d

from patchword.masking import masked_fill_zero


def late_interaction(
    patches: Float[Tensor, "I P D"],
    tokens: Float[Tensor, "T L D"],
    mask: Bool[Tensor, "T L"],
    similarity: Literal["dot", "cosine"] = "dot",
    patch_mask: Bool[Tensor, "I P"] | None = None,
) -> tuple[Float[Tensor, "I T"], Float[Tensor, "I T"]]:
    """`to_texts` and `to_images` as defined above, of any images with any texts.

    The similarities are computed in tiles, which are discarded immediately. Besides the inputs' gradients, the function
    keeps I T (P + L) bytes for the positions of the maxima (twice that above 256 patches or tokens). Of equal
    similarities the first one counts. A text without tokens scores 0, and so does an image without patches. The
    function can be differentiated once.

    Args:
        patches: Embeddings of patches. The values of masked patches are arbitrary.
        tokens: Embeddings of tokens. The values of masked tokens are arbitrary.
        mask: True for the tokens that take part.
        similarity: `dot` or `cosine`. Cosines are also computed tile by tile, without normalized copies of the inputs.
            The cosine with a zero vector is 0.
        patch_mask: True for the patches that take part; None for all.
    """
    tokens = masked_fill_zero(tokens, mask[..., None])
    if patch_mask is not None:
        patches = masked_fill_zero(patches, patch_mask[..., None])
    trains = torch.is_grad_enabled() and (patches.requires_grad or tokens.requires_grad)
    return _LateInteraction.apply(patches, tokens, mask, patch_mask, similarity == "cosine", trains)


class _LateInteraction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, patches: Tensor, tokens: Tensor, mask: Tensor, patch_mask: Tensor | None, cosine: bool, trains: bool
    ) -> tuple[Tensor, Tensor]:
        (images, p, _), (texts, length) = patches.shape, mask.shape
        lengths = mask.sum(-1)
        to_texts, to_images = patches.new_empty(2, images, texts)
        best_token = torch.empty(images * trains, p, texts, dtype=_integer(length), device=mask.device)
        best_patch = torch.empty(images * trains, length, texts, dtype=_integer(p), device=mask.device)
        # Texts are the last axis, so that both maxima are taken along columns.
        columns, real = _columns(tokens, cosine), mask.T.contiguous()
        penalty = torch.zeros_like(real, dtype=patches.dtype).masked_fill_(~real, torch.finfo(patches.dtype).min / 2)
        tiles = _tiles(images, texts, p * length, patches.device)
        buffer = patches.new_empty(len(patches[tiles[0][0]]) * p * len(tokens[tiles[0][1]]) * length)
        for i, t in tiles:
            block, keys = _scaled(patches[i], cosine)[0].flatten(0, 1), columns[:, t].flatten(0, 1)
            similarity = buffer[: len(block) * len(keys)].view(len(block), len(keys))  # [i P, L t]
            torch.addmm(penalty[:, t].flatten(), block, keys.T, out=similarity)
            if patch_mask is not None:
                similarity.masked_fill_(~patch_mask[i].flatten()[:, None], torch.finfo(patches.dtype).min / 2)
            value, patch = _max(similarity.view(-1, p, *real[:, t].shape))  # [i, L, t]
            to_images[i, t] = value.mul_(real[:, t]).sum(1)
            value, token = _max(similarity.view(-1, *real[:, t].shape))  # [i P, t]
            value = value.unflatten(0, (-1, p))
            if patch_mask is None:
                to_texts[i, t] = value.mean(1)
            else:
                to_texts[i, t] = value.mul_(patch_mask[i, :, None]).sum(1) / _count(patch_mask[i])
            if trains:
                best_patch[i, :, t], best_token[i, :, t] = patch, token.unflatten(0, (-1, p))
        if patch_mask is not None:
            to_images.masked_fill_(~patch_mask.any(-1, keepdim=True), 0)
        ctx.save_for_backward(patches, tokens, mask, patch_mask, best_token, best_patch)
        ctx.cosine = cosine
        return to_texts.masked_fill_(lengths == 0, 0), to_images / lengths.clamp_min(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_texts: Tensor, to_images: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        patches, tokens, mask, patch_mask, best_token, best_patch = ctx.saved_tensors
        (images, p, _), (texts, length) = patches.shape, mask.shape
        lengths = mask.sum(-1)
        # The gradient of the similarity of a patch with its best token, and of a token with its best patch.
        of_patch = (to_texts / (p if patch_mask is None else _count(patch_mask))).masked_fill(lengths == 0, 0)
        of_token = to_images / lengths.clamp_min(1)
        column = torch.arange(texts, device=mask.device, dtype=torch.int32)
        row = torch.arange(images, device=mask.device, dtype=torch.int32)[:, None, None] * p
        flat = _columns(tokens, ctx.cosine).flatten(0, 1)  # [L T, D]
        d_patches, d_tokens = torch.empty_like(patches), torch.zeros_like(flat)
        for i, _ in _tiles(images, 1, 16 * texts * (p + length), patches.device):
            scaled, factor = _scaled(patches[i], ctx.cosine)
            block = scaled.flatten(0, 1)  # [i P, D]
            token = best_token[i].int().mul_(texts).add_(column).flatten(0, 1)  # [i P, T], rows of `flat`
            patch = _tokens_first(best_patch[i].int().add_(row[: len(scaled)]))  # [L T, i], rows of `block`
            by_patch = of_patch[i, None].expand(-1, p, -1)
            by_patch = (by_patch if patch_mask is None else by_patch * patch_mask[i, :, None]).flatten(0, 1)
            by_token = _tokens_first(of_token[i, None] * mask.T)
            gradient = _pull(token, by_patch, flat).add_(_push(patch, by_token, flat, len(block)))
            d_patches[i] = _unscale_(gradient.view_as(scaled), scaled, factor, ctx.cosine)
            d_tokens.add_(_pull(patch, by_token, block)).add_(_push(token, by_patch, block, len(flat)))
        d_tokens = d_tokens.unflatten(0, (length, texts)).transpose(0, 1)
        return d_patches, _unscale_(d_tokens, *_scaled(tokens, ctx.cosine), ctx.cosine), None, None, None, None


def _count(mask: Bool[Tensor, "N K"]) -> Int[Tensor, "N 1"]:
    return mask.sum(-1, keepdim=True).clamp_min(1)


def _tokens_first(x: Shaped[Tensor, "i L T"]) -> Shaped[Tensor, "LT i"]:
    return x.permute(1, 2, 0).flatten(0, 1)


def _columns(tokens: Float[Tensor, "T L D"], cosine: bool) -> Float[Tensor, "L T D"]:
    return _scaled(tokens, cosine)[0].transpose(0, 1).contiguous()


def _scaled(x: Tensor, cosine: bool) -> tuple[Tensor, Tensor]:
    """x / ||x|| and 1 / ||x|| (1 for a zero vector), or x and 1 if not `cosine`."""
    if not cosine:
        return x, x.new_ones(())
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    factor = norm.masked_fill_(norm <= 1e-12, 1).reciprocal_()
    return x * factor, factor


def _unscale_(gradient: Tensor, scaled: Tensor, factor: Tensor, cosine: bool) -> Tensor:
    """Convert the gradient with respect to `_scaled(x)` into the gradient with respect to x, in place."""
    if not cosine:
        return gradient
    along = (scaled * gradient).sum(-1, keepdim=True)
    return gradient.addcmul_(scaled, along, value=-1).mul_(factor)


def _max(x: Float[Tensor, "N K *c"]) -> tuple[Tensor, Tensor]:
    """Maximum over K and its position, which is the first one if there are several."""
    if x.device.type != "cpu":
        return x.max(1)
    # Pooling is vectorized on the CPU and several times faster than `max` with indices.
    columns_last = x.flatten(2)[..., None, :].permute(0, 3, 1, 2)
    value, winner = max_pool2d(columns_last, (x.shape[1], 1), return_indices=True)
    return value.view(x[:, 0].shape), winner.view(x[:, 0].shape)


def _pull(index: Int[Tensor, "N K"], weight: Float[Tensor, "N K"], table: Float[Tensor, "R D"]) -> Float[Tensor, "N D"]:
    """out[n] = sum_k weight[n, k] table[index[n, k]]."""
    return embedding_bag(index, table, per_sample_weights=weight.contiguous(), mode="sum")


def _push(
    index: Int[Tensor, "N K"], weight: Float[Tensor, "N K"], table: Float[Tensor, "N D"], rows: int
) -> Float[Tensor, "rows D"]:
    """out[index[n, k]] += weight[n, k] table[n], summed in a fixed order."""
    row, order = index.flatten().to(_integer(rows)).sort(stable=True)  # small integers sort faster
    start = torch.searchsorted(row, torch.arange(rows, device=row.device, dtype=row.dtype))
    source = torch.div(order, index.shape[1], rounding_mode="floor")
    return embedding_bag(source, table, start, per_sample_weights=weight.flatten()[order], mode="sum")


def _tiles(images: int, texts: int, pair_size: int, device: torch.device) -> list[tuple[slice, slice]]:
    """Slices of images and of texts. The numbers of a tile fit into the cache of a CPU, or a small part of a GPU.

    On a CPU, a tile has at most 64 texts, because each image's product reads the vectors of all texts of the tile.
    """
    pairs, width = (2**22 // pair_size, 64) if device.type == "cpu" else (2**25 // pair_size, texts)
    pairs = max(pairs, 1)
    width = min(pairs, width, texts)
    height = min(max(pairs // width, 1), images)
    starts = [(i, t) for i in range(0, images, height) for t in range(0, texts, width)]
    return [(slice(i, i + height), slice(t, t + width)) for i, t in starts]


def _integer(size: int) -> torch.dtype:
    """The smallest integer type that can index `size` elements."""
    return torch.uint8 if size <= 2**8 else torch.int16 if size <= 2**15 else torch.int32
