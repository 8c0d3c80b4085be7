"""Every objective keeps the contract of `patchword.contract`, except for parts that `variants` lists by name."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from patchword.contract import properties
from patchword.contract.ranks import ranks
from patchword.contract.sample import pairs
from patchword.distributed import Exchange
from tests.objectives.variants import SPATIAL, STOPPED, VARIANTS, build
from tests.ranks import on_ranks

pytestmark = pytest.mark.parametrize("variant", VARIANTS)
ESTIMATORS = ("region_network.", "pair_network.")  # parameters of LOUPE's neural estimator
# Contexts that LOUPE draws at random depend on the number of patches.
LACKING = {"patch_padding_loss": "LOUPE-estimator", "patch_order_loss": SPATIAL, "gradients_are_exact": STOPPED}


def holds(has_property: Callable[..., None], variant: str, **arguments: bool) -> None:
    """Check a property, or that a variant that is listed as an exception lacks it."""
    if variant.startswith(LACKING.get(has_property.__name__, ())):
        with pytest.raises(AssertionError):
            has_property(partial(build, variant), **arguments)
    else:
        has_property(partial(build, variant), **arguments)


def test_answers_have_the_documented_form(variant: str) -> None:
    holds(properties.answers, variant)


def test_padding_changes_nothing_whatever_it_holds(variant: str) -> None:
    holds(properties.padding, variant)


def test_padded_patches_change_nothing_whatever_they_hold(variant: str) -> None:
    holds(properties.patch_padding, variant)
    holds(properties.patch_padding_loss, variant)


def test_order_of_patches_moves_only_the_columns_of_the_map(variant: str) -> None:
    holds(properties.patch_order, variant)
    holds(properties.patch_order_loss, variant)


def test_order_of_the_batch_is_irrelevant(variant: str) -> None:
    holds(properties.batch_order, variant)


def test_score_and_map_of_a_pair_need_no_other_pair(variant: str) -> None:
    holds(properties.independent_pairs, variant)


def test_both_scores_together_are_the_two_scores(variant: str) -> None:
    holds(properties.scores_together, variant)


def test_score_needs_patches_and_tokens_only_if_it_says_so(variant: str) -> None:
    holds(properties.local_features, variant)


def test_tiles_change_nothing(variant: str) -> None:
    holds(properties.tiles, variant)


@pytest.mark.parametrize("complete", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_gradients_equal_finite_differences(variant: str, complete: bool) -> None:
    """The Jacobian is compared in random directions, and with default options in every entry if `complete`."""
    if complete and "-" in variant:
        pytest.skip("one direction for options that are not the default")
    holds(properties.gradients_are_exact, variant, complete=complete)


def test_computes_in_full_precision_under_autocast(variant: str) -> None:
    holds(properties.autocast, variant)


def test_survives(variant: str) -> None:
    holds(properties.degenerate_input, variant)


def test_same_input_same_bits(variant: str) -> None:
    holds(properties.repeatable, variant)


def test_is_rebuilt_from_its_spec(variant: str) -> None:
    holds(properties.rebuilt, variant)


@pytest.mark.parametrize("how", ["all_gather", "ring"])
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_equal_one(variant: str, size: int, how: Exchange) -> None:
    ranks(partial(build, variant), on_ranks, size, how)


def test_ring_in_tiles_equals_one(variant: str) -> None:
    """The ring also equals one process if it sends the texts of a rank in parts; images are padded."""
    ranks(partial(build, variant), on_ranks, how="ring", mask=True, tile=1)


def test_learns_four_free_pairs(variant: str) -> None:
    """Thirty Adam steps on free embeddings reduce the loss by at least 30 %: the gradient points downhill.

    LOUPE's estimator networks have a smaller learning rate. With 0.05 their own loss rises even if the embeddings are
    fixed, from 0.6 to 5 after thirty steps, and exceeds the sum of the other terms.
    """
    objective, (images, texts) = build(variant), pairs(batch=4)
    leaves = [images.pooled, images.patches, images.views, texts.pooled, texts.tokens]
    networks = [p for name, p in objective.named_parameters() if name.startswith(ESTIMATORS)]
    leaves += [p for name, p in objective.named_parameters() if not name.startswith(ESTIMATORS)]
    optimizer = torch.optim.Adam([{"params": leaves, "lr": 0.05}, {"params": networks, "lr": 0.01}])
    losses = []
    for _ in range(31):
        loss = torch.stack(list(objective(images, texts).values())).sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
