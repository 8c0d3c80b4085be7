"""Tests of Sum: its terms, scores and maps are weighted sums, and its options are checked."""

import re
from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from patchword import Objective
from patchword.errors import UserError
from patchword.objective import require_weights
from patchword.objectives import CLIP, FILIP, FLAIR, SPARC, Sum
from tests.objectives.variants import DIM, pairs


def parts() -> dict[str, Objective]:
    return {"clip": CLIP(), "sparc": SPARC()}


def test_terms_scores_and_maps_are_weighted_sums() -> None:
    images, texts = pairs()
    clip, sparc = CLIP(), SPARC()
    both = Sum({"clip": clip, "sparc": sparc}, {"sparc": 0.25})
    terms = both(images, texts)
    assert list(terms) == ["clip/global", "sparc/global", "sparc/local"]
    assert_close(terms["clip/global"], clip(images, texts)["global"])
    assert_close(terms["sparc/local"], 0.25 * sparc(images, texts)["local"])
    assert_close(both.score(images, texts), 1.25 * clip.score(images, texts))
    assert_close(both.text_to_image_score(images, texts), both.score(images, texts))
    assert_close(both.align(images, texts), clip.align(images, texts) + 0.25 * sparc.align(images, texts))


def test_one_objective_may_rank_and_another_draw() -> None:
    images, texts = pairs()
    both = Sum(parts(), {"clip": 3.0}, scored_by="clip", aligned_by="sparc")
    assert_close(both.score(images, texts), CLIP().score(images, texts))
    assert_close(both.align(images, texts), SPARC().align(images, texts))


def test_knows_whether_its_score_needs_tokens() -> None:
    """Only the objectives that the score uses decide whether retrieval keeps tokens."""
    assert not Sum(parts()).uses_local_features
    assert Sum({"clip": CLIP(), "filip": FILIP()}).uses_local_features
    assert not Sum({"clip": CLIP(), "filip": FILIP()}, scored_by="clip").uses_local_features


def test_sets_up_every_objective() -> None:
    both = Sum({"clip": CLIP(), "flair": FLAIR(heads=2)})
    both.build(DIM)
    assert all(term.isfinite() for term in both(*pairs()).values())


def test_each_objective_keeps_its_own_temperature() -> None:
    both = Sum({"a": CLIP(0.07), "b": CLIP(0.5)})
    assert len(list(both.parameters())) == 2
    terms = both(*pairs())
    assert not torch.isclose(terms["a/global"], terms["b/global"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objectives": {}}, "at least one"),
        ({"objectives": {"a.b": CLIP()}}, "a.b"),
        ({"objectives": parts(), "weights": {"filip": 1.0}}, "weights .*'filip'.* clip, sparc"),
        ({"objectives": parts(), "scored_by": "CLIP"}, "scored_by .*'CLIP'"),
        ({"objectives": parts(), "aligned_by": "x"}, "aligned_by .*'x'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sum(**arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SPARC(local_weight=-1.0), "SPARC: local_weight must be 0 or more, not -1.0"),
        (lambda: Sum({"a": CLIP(), "b": SPARC(global_weight=float("nan"))}), "SPARC: global_weight must be 0 or more"),
        (lambda: Sum({"a": CLIP()}, weights={"a": -0.5}), "Sum: weights.a must be 0 or more, not -0.5"),
        (lambda: SPARC(local_weight=0.0, global_weight=0.0), "SPARC: global_weight, local_weight are all 0"),
        (lambda: Sum({"a": CLIP()}, weights={"a": 0.0}), "Sum: weights.a are all 0"),
    ],
)
def test_weights_that_teach_the_opposite_or_nothing_are_refused(make: Callable[[], Objective], message: str) -> None:
    """A model is not trained with a loss that is turned around."""
    with pytest.raises(UserError, match=re.escape(message)):
        require_weights(make())


def test_weights_that_are_not_listed_or_zero_beside_others_are_right() -> None:
    """An ablation turns a part off; a weight that is not listed is 1."""
    require_weights(SPARC(local_weight=0.0))
    require_weights(Sum({"a": CLIP(), "b": SPARC()}, weights={"a": 0.0}))
