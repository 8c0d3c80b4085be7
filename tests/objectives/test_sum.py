"""Sum: terms, scores and maps are those of its objectives, weighted; its configuration is checked when it is built."""

import pytest
import torch
from torch.testing import assert_close

from patchword import Objective
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
    assert_close(both.text_score(images, texts), both.score(images, texts))
    assert_close(both.align(images, texts), clip.align(images, texts) + 0.25 * sparc.align(images, texts))


def test_one_objective_may_rank_and_another_draw() -> None:
    images, texts = pairs()
    both = Sum(parts(), {"clip": 3.0}, scored_by="clip", aligned_by="sparc")
    assert_close(both.score(images, texts), CLIP().score(images, texts))
    assert_close(both.align(images, texts), SPARC().align(images, texts))


def test_knows_whether_its_score_needs_tokens() -> None:
    """What decides how much retrieval keeps: only the objectives that rank count."""
    assert not Sum(parts()).local_score
    assert Sum({"clip": CLIP(), "filip": FILIP()}).local_score
    assert not Sum({"clip": CLIP(), "filip": FILIP()}, scored_by="clip").local_score


def test_sets_up_every_objective() -> None:
    both = Sum({"clip": CLIP(), "flair": FLAIR(heads=2)})
    both.setup(DIM)
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
        ({"objectives": parts(), "weights": {"filip": 1.0}}, "weights names 'filip'; its objectives are clip, sparc"),
        ({"objectives": parts(), "scored_by": "CLIP"}, "scored_by names 'CLIP'"),
        ({"objectives": parts(), "aligned_by": "x"}, "aligned_by names 'x'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sum(**arguments)
