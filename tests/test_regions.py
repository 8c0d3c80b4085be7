"""Regions are boxes of whole patches, and the head chooses the right ones."""

import torch

from patchword import Images
from patchword.shapley import RegionHead, boxes


def every_box(grid: tuple[int, int], height: int, width: int) -> torch.Tensor:
    """The boxes of one shape around all patches, [P, P]."""
    patch = torch.arange(grid[0] * grid[1])[None]
    return boxes(grid, patch, torch.full_like(patch, height), torch.full_like(patch, width))[0]


def test_boxes_are_centered_and_cut_at_the_border() -> None:
    """Boxes are centered on their patch and clipped to the grid."""
    masks = every_box((4, 6), 2, 3).unflatten(0, (4, 6)).unflatten(-1, (4, 6))
    small = masks[1, 2]  # 2 x 3 patches around row 1, column 2: an even side leans to the end
    assert small.nonzero().tolist() == [[r, c] for r in (1, 2) for c in (1, 2, 3)]
    assert masks[3, 5].nonzero().tolist() == [[3, 4], [3, 5]]
    assert every_box((4, 6), 2, 6)[0].sum() == 2 * 4  # 2 x 6 around the corner: two columns fall off the left


def test_every_box_holds_its_own_patch() -> None:
    """No box excludes the patch that it belongs to."""
    assert all(every_box((3, 5), h, w).diagonal().all() for h in (1, 2, 3) for w in (1, 2, 4))


def test_head_keeps_the_most_confident_box_of_the_best_patches() -> None:
    """The boxes equal those of a search over all patches and shapes."""
    torch.manual_seed(0)
    head, images = RegionHead(8, (0.3, 0.6), 5), Images(torch.randn(2, 8), torch.randn(2, 12, 8), (3, 4))
    regions, logits = head(images)
    every = head.confidence(images.patches.mT.unflatten(-1, (3, 4))).flatten(2)  # [B, K, P]
    masks = [every_box((3, 4), h, w) for h in (1, 2) for w in (1, 2)]  # 0.3 and 0.6 of 3 rows and of 4 columns
    for b in range(2):
        best = sorted(((every[b, :, p].max().item(), p) for p in range(12)), reverse=True)[:5]
        for m, (logit, p) in enumerate(best):
            assert logits[b, m].item() == logit
            assert torch.equal(regions[b, m], masks[every[b, :, p].argmax()][p])


def test_fewer_patches_than_regions_give_one_region_each() -> None:
    """On a small grid, every patch has one region."""
    regions, logits = RegionHead(8, (0.5,), 16)(Images(torch.randn(2, 8), torch.randn(2, 6, 8), (2, 3)))
    assert regions.shape == (2, 6, 6)
    assert logits.shape == (2, 6)


def test_padding_changes_no_region() -> None:
    """Sides are shares of the image's own patches, and neither confidence nor regions depend on padding."""
    torch.manual_seed(0)
    head, images = RegionHead(8, (0.3, 0.6), 5), Images(torch.randn(2, 8), torch.randn(2, 12, 8), (3, 4))
    mask = torch.zeros(2, 6, 7, dtype=torch.bool)
    mask[:, :3, :4] = True
    patches = torch.full((2, 6, 7, 8), torch.nan)
    patches[:, :3, :4] = images.patches.unflatten(1, (3, 4))
    regions, logits = head(Images(images.pooled, patches.flatten(1, 2), (6, 7), mask.flatten(1)))
    expected, confidence = head(images)
    assert torch.equal(logits, confidence)
    assert torch.equal(regions[mask.flatten(1)[:, None].expand_as(regions)], expected.flatten())
    assert not (regions & ~mask.flatten(1)[:, None]).any()


def test_confidence_has_a_gradient_and_boxes_have_none() -> None:
    """Only the confidence of a region is differentiable."""
    patches = torch.randn(1, 6, 8, requires_grad=True)
    regions, logits = RegionHead(8, (0.5,), 2)(Images(torch.randn(1, 8), patches, (2, 3)))
    assert not regions.is_floating_point()
    assert torch.autograd.grad(logits.sum(), patches)[0].abs().sum() > 0
