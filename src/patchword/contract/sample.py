"""Random pairs of images and texts with all optional parts, as an objective gets them, and padded images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from patchword.features import Images, Masked, Texts

DIM = 8
VOCABULARY = 11


def pairs(
    batch: int = 5,
    grid: tuple[int, int] = (4, 5),
    length: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    dim: int = DIM,
) -> tuple[Images, Texts]:
    """Random pairs with captions of 1 to `length` tokens, and everything that an objective can need.

    On 4 x 5 patches the boxes of a region head cover up to 2 x 3 patches; on a smaller grid most would be single ones.
    All sizes differ, so that transposed axes raise errors. Embeddings are leaves that require gradients.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    lengths = torch.arange(batch) % length + 1
    lengths[0] = length
    mask = torch.arange(length) < lengths[:, None]
    images = Images(random(batch, dim), random(batch, grid[0] * grid[1], dim), grid)
    texts = Texts(random(batch, dim), random(batch, length, dim), mask)
    ids = torch.randint(VOCABULARY, mask.shape, generator=generator).masked_fill(~mask, -1)
    # The second image has one hard negative and one region, all others have two.
    number = torch.full((batch, 1), 2).index_fill(0, torch.tensor([1 % batch]), 1)
    here = (torch.arange(2) < number)[..., None]
    shares = torch.rand(batch, 2, grid[0] * grid[1], generator=generator).to(dtype)
    images = replace(
        images,
        negatives=(random(batch, 2, dim) * here).detach().requires_grad_(),
        regions=shares / shares.sum(-1, keepdim=True) * here,
        region_texts=(random(batch, 2, dim) * here).detach().requires_grad_(),
        masked=again(images.patches.detach()),
        views=random(batch, 3, dim),
        teacher=random(batch, 2, dim).detach(),
    )
    teacher = random(batch, dim).detach()
    return images, replace(texts, ids=ids, masked=again(texts.tokens.detach()), teacher=teacher)


def again(parts: torch.Tensor) -> Masked:
    """Encodes inputs again as a nonlinear function of the sum of the patches or tokens that stay."""

    def encode(at: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        own, length = parts.to(keep.device)[at], min(parts.shape[1], keep.shape[1])
        return (own[:, :length] * keep[:, :length, None]).sum(1).tanh() + own[:, 0]

    return Masked(torch.arange(len(parts)), encode)


SHAPES = ((3, 4), (1, 4), (3, 2), (2, 3), (3, 4))  # of the images of `padded`


def padded(
    images: Images,
    grid: tuple[int, int],
    value: float = float("nan"),
    shapes: Sequence[tuple[int, int]] = SHAPES,
) -> Images:
    """Images of `shapes`: the top left parts of `images`, on a larger grid whose other patches hold `value`."""
    assert images.regions is not None
    mask = torch.zeros(len(images), *grid, dtype=torch.bool)
    for image, (rows, columns) in enumerate(shapes[: len(images)]):
        mask[image, :rows, :columns] = True

    def on_grid(x: torch.Tensor, value: float) -> torch.Tensor:
        rows, columns = images.grid
        found = torch.full((*grid, *x.shape[1:]), value, dtype=x.dtype)
        found[:rows, :columns] = x.unflatten(0, images.grid)
        return found.flatten(0, 1)

    patches = torch.stack([on_grid(x, value) for x in images.patches.detach()])
    patches = patches.masked_fill(~mask.flatten(1)[..., None], value).requires_grad_()
    shares = torch.stack([on_grid(x.T, 0.0).T for x in images.regions])
    shares = shares.masked_fill(~mask.flatten(1)[:, None], 0.0)
    shares = shares / shares.sum(-1, keepdim=True).clamp_min(1e-9)
    return replace(images, patches=patches, grid=grid, mask=mask.flatten(1), regions=shares)


def alone(images: Images, index: int) -> Images:
    """One of the images of `padded`, without padding."""
    image, (rows, columns) = images[index : index + 1], SHAPES[index]
    own = torch.zeros(images.grid, dtype=torch.bool)
    own[:rows, :columns] = True
    assert image.regions is not None
    patches, shares = image.patches[:, own.flatten()], image.regions[..., own.flatten()]
    return replace(image, patches=patches, grid=(rows, columns), mask=None, regions=shares)


def first_tokens(texts: Texts, length: int) -> Texts:
    """The texts with only the first `length` places for tokens."""
    assert texts.ids is not None
    return replace(texts, tokens=texts.tokens[:, :length], mask=texts.mask[:, :length], ids=texts.ids[:, :length])
