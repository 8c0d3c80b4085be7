"""Late interaction equals the plain einsum formula, whatever the tiles, ties, masks and types are."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from patchword import late_interaction as module
from patchword import ops
from patchword.late_interaction import late_interaction


def plain(patches: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the similarities [I, T, P, L] at once."""
    similarity = torch.einsum("ipd,tld->itpl", patches, tokens)
    best_token = similarity.masked_fill(~mask[None, :, None], -torch.inf).max(-1).values
    best_patch = similarity.max(2).values
    return best_token.mean(-1), (best_patch * mask).sum(-1) / mask.sum(-1)


def example(images: int = 4, p: int = 6, texts: int = 3, length: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    patches = torch.randn(images, p, 7, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(texts, length, 7, dtype=torch.float64, requires_grad=True)
    return patches, tokens, torch.arange(length) < torch.arange(1, texts + 1)[:, None]


def loss(found: tuple[Tensor, Tensor]) -> Tensor:
    """Combine both matrices with a different weight for each entry."""
    weights = torch.arange(1.0, 1 + found[0].numel(), dtype=found[0].dtype).view_as(found[0])
    return (found[0] * weights).sum() + (found[1] * weights.flip(0)).sum()


@pytest.mark.parametrize(
    ("images", "p", "texts", "length"), [(4, 6, 3, 5), (1, 1, 1, 1), (2, 300, 3, 4), (3, 2, 300, 2)]
)
def test_equals_the_plain_formula(images: int, p: int, texts: int, length: int) -> None:
    """Values and gradients are equal, also above 256 patches, which need wider integers."""
    patches, tokens, mask = example(images, p, texts, length)
    found, expected = late_interaction(patches, tokens, mask), plain(patches, tokens, mask)
    assert_close(found, expected)
    assert_close(
        torch.autograd.grad(loss(found), [patches, tokens]), torch.autograd.grad(loss(expected), [patches, tokens])
    )


@pytest.mark.parametrize("tile", [(1, 1), (2, 1), (3, 2), (1, 3)])
def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int]) -> None:
    """Values and gradients do not depend on the size of tiles."""
    patches, tokens, mask = example()
    whole = late_interaction(patches, tokens, mask)
    height, width = tile

    def tiles(images: int, texts: int, pair_size: int, device: torch.device) -> list[tuple[slice, slice]]:
        starts = [(i, t) for i in range(0, images, height) for t in range(0, texts, width)]
        return [(slice(i, i + height), slice(t, t + width)) for i, t in starts]

    expected = torch.autograd.grad(loss(whole), [patches, tokens])
    monkeypatch.setattr(module, "_tiles", tiles)
    found = late_interaction(patches, tokens, mask)
    assert_close(found, whole)
    assert_close(torch.autograd.grad(loss(found), [patches, tokens]), expected)


def test_tiles_cover_every_pair_once() -> None:
    """Tiles cover all pairs without an overlap."""
    for images, texts, size in (5, 7, 2**19), (3, 4, 2**30), (64, 64, 196 * 32), (10, 1000, 2**12):
        seen = torch.zeros(images, texts)
        for i, t in module._tiles(images, texts, size, torch.device("cpu")):
            seen[i, t] += 1
        assert (seen == 1).all()


def test_cosines_are_dot_products_of_normalized_vectors() -> None:
    """Values and gradients are equal, and a zero vector has cosine 0 and a bounded gradient."""
    patches, tokens, mask = example()
    with torch.no_grad():
        patches[0, 0] = 0
    found = late_interaction(patches, tokens, mask, "cosine")
    expected = plain(ops.normalize(patches), ops.normalize(tokens), mask)
    assert_close(found, expected)
    gradients = [torch.autograd.grad(loss(x), [patches, tokens]) for x in (found, expected)]
    assert_close(gradients[0], gradients[1])


def test_any_tokens_may_be_masked() -> None:
    """Tokens can be masked anywhere, because content words can be anywhere."""
    patches, tokens, _ = example(3, 5, 9, 6)
    mask = torch.rand(9, 6, generator=torch.Generator().manual_seed(1)) < 0.4
    mask[:, 2] |= ~mask.any(-1)
    found, expected = late_interaction(patches, tokens, mask), plain(patches, tokens, mask)
    assert_close(found, expected)
    gradients = [torch.autograd.grad(loss(x), [patches, tokens]) for x in (found, expected)]
    assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_any_patches_may_be_masked(similarity: str) -> None:
    """Masked patches of any content count neither in maxima nor in means, and get no gradient."""
    patches, tokens, mask = example(4, 5, 3, 6)
    real = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 1, 1, 1]]).bool()
    garbage = patches.detach().masked_fill(~real[..., None], float("nan")).requires_grad_()
    found = late_interaction(garbage, tokens, mask, similarity, real)  # type: ignore[arg-type]
    alone = [late_interaction(patches[i : i + 1, real[i]], tokens, mask, similarity) for i in range(4)]  # type: ignore[arg-type]
    expected = tuple(torch.cat(scores) for scores in zip(*alone, strict=True))
    assert_close(found, expected)
    assert_close(
        torch.autograd.grad(loss(found), [garbage, tokens]), torch.autograd.grad(loss(expected), [patches, tokens])
    )


def test_an_image_without_patches_scores_zero_and_sends_no_gradient() -> None:
    patches, tokens, mask = example()
    real = torch.arange(4)[:, None].expand(-1, 6) != 1
    found = late_interaction(patches, tokens, mask, "dot", real)
    assert all((matrix[1] == 0).all() for matrix in found)
    gradients = torch.autograd.grad(loss(found), [patches, tokens])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][1] == 0).all()


def test_gradients_equal_finite_differences() -> None:
    """The hand-written backward pass equals finite differences."""
    patches, tokens, mask = example(2, 3, 2, 3)
    assert torch.autograd.gradcheck(lambda v, t: late_interaction(v, t, mask), [patches, tokens])


def test_a_text_without_tokens_scores_zero_and_sends_no_gradient() -> None:
    """An empty caption does not give NaN or a gradient."""
    patches, tokens, mask = example()
    mask = mask & (torch.arange(3) != 1)[:, None]
    found = late_interaction(patches, tokens, mask)
    assert all((matrix[:, 1] == 0).all() for matrix in found)
    gradients = torch.autograd.grad(loss(found), [patches, tokens])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[1][1] == 0).all()


def test_padding_may_hold_anything() -> None:
    """NaN in padding does not change values or gradients."""
    patches, tokens, mask = example()
    garbage = tokens.detach().masked_fill(~mask[..., None], float("nan")).requires_grad_()
    assert_close(late_interaction(patches, garbage, mask), late_interaction(patches, tokens, mask))
    gradient = torch.autograd.grad(loss(late_interaction(patches, garbage, mask)), garbage)[0]
    assert (gradient[~mask] == 0).all()


def test_of_equal_patches_the_first_wins() -> None:
    """On a constant image, the gradient of a token's maximum goes to one patch, and not in full to all."""
    patches, tokens, mask = example(1, 4, 1, 3)
    same = patches.detach()[:, :1].repeat(1, 4, 1).requires_grad_()
    gradient = torch.autograd.grad(late_interaction(same, tokens, mask)[1].sum(), same)[0]
    assert gradient[0, 0].abs().sum() > 0
    assert (gradient[0, 1:] == 0).all()


def test_scoring_without_gradient_keeps_nothing() -> None:
    """Without gradients, retrieval stores scores but no positions of maxima."""
    patches, tokens, mask = example()
    made: list[torch.Size] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            if isinstance(found, Tensor) and found.dtype == torch.uint8:
                made.append(found.shape)
            return found

    with torch.no_grad(), Watch():
        late_interaction(patches, tokens, mask)
    assert all(shape.numel() == 0 for shape in made)


def test_winners_are_kept_in_one_byte_each() -> None:
    """For the backward pass, I T pairs store I T (P + L) bytes, not I T P L numbers."""
    saved: list[Tensor] = []
    patches, tokens, mask = example()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        late_interaction(patches, tokens, mask)
    winners = [x for x in saved if x.dtype == torch.uint8]
    assert sum(x.numel() for x in winners) == 4 * 3 * (6 + 5)
    assert all(x.numel() <= 4 * 3 * 6 for x in saved if x is not patches and x.dtype.is_floating_point and x.dim() != 3)
