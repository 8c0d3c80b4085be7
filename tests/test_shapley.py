"""Tests of Shapley and Banzhaf indices against golden values, brute force, the package shapiq, and their axioms.

Brute force enumerates coalitions of the game as the package's docstring defines it; the exact functions do not use
coalitions. shapiq shares no code with either. The tests cover ties, negative similarities (where the max over no player
is not the smallest value), masked players, and biased estimators.
"""

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from patchword import shapley
from patchword.errors import UserError

FIELDS = {field.name for field in dataclasses.fields(shapley.Game)}


def _of_a_game(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A version of `function` that accepts the fields of its game as options."""

    def call(*arguments: Any, **options: Any) -> Tensor:
        fields = {name: options.pop(name) for name in FIELDS & set(options)}
        return function(*arguments, game=shapley.Game(**fields), **options)

    return call


airport_values = _of_a_game(shapley.airport_values)
brute_force_pair_interactions = _of_a_game(shapley.brute_force_pair_interactions)
brute_force_region_interactions = _of_a_game(shapley.brute_force_region_interactions)
pair_interactions = _of_a_game(shapley.pair_interactions)
patch_values = _of_a_game(shapley.patch_values)
region_interactions = _of_a_game(shapley.region_interactions)
sampled_pair_interactions = _of_a_game(shapley.sampled_pair_interactions)
sampled_region_interactions = _of_a_game(shapley.sampled_region_interactions)
word_values = _of_a_game(shapley.word_values)

CASES = json.loads((Path(__file__).parent / "golden" / "shapley.json").read_text())["cases"]
INDICES = ["shapley", "banzhaf"]
SIDES = ["fixed", "players"]
WORTHS = ["presence", "deletion"]
WEIGHTS = {"word_weight": 0.7, "patch_weight": 0.2}
equal = partial(assert_close, atol=1e-10, rtol=0)


def double(x: Any) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def inputs(seed: int = 0, batch: tuple[int, ...] = (2, 3), patches: int = 5, words: int = 4) -> tuple[Tensor, ...]:
    """Similarities of both signs with many ties, and masks, two of which have no word and one word."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(*batch, patches, words, generator=generator, dtype=torch.float64) * 2).round() / 4
    mask = torch.rand(*batch, words, generator=generator) < 0.7
    mask.view(-1, words)[:2] = torch.arange(words) < torch.tensor([[0], [1]])
    patch_mask = torch.rand(*batch, patches, generator=generator) < 0.8
    regions = torch.rand(*batch, 5, patches, generator=generator) < 0.5
    regions[..., 0, :], regions[..., 1, :], regions[..., 2, :] = False, torch.arange(patches) == 1, True
    return x, mask, patch_mask, regions


def _variants() -> dict[str, tuple[Callable[..., Tensor], dict[str, Any]]]:
    found: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
        "present pairs": (pair_interactions, {"normalizer": "present", "empty": 0.3})
    }
    for index in INDICES:
        switches: dict[str, Any] = {"index": index, "empty": 0.3}
        found[f"pairs-{index}"] = pair_interactions, switches
        found[f"sampled pairs-{index}"] = sampled_pair_interactions, switches
        for side in SIDES:
            found[f"patches-{index}-{side}"] = patch_values, switches | {"words": side}
            found[f"words-{index}-{side}"] = word_values, switches | {"patches": side}
            for worth in WORTHS:
                options = switches | {"words": side, "worth": worth}
                found[f"regions-{index}-{side}-{worth}"] = region_interactions, options
                found[f"sampled regions-{index}-{side}-{worth}"] = sampled_region_interactions, options
    return found


VARIANTS = _variants()
SAMPLED = [name for name in VARIANTS if "sampled" in name]


def run(
    name: str, x: Tensor, regions: Tensor, mask: Tensor | None = None, patch_mask: Tensor | None = None, **draws: Any
) -> Tensor:
    """The result of a variant. Sampling always draws the same numbers unless `draws` overrides it."""
    function, switches = VARIANTS[name]
    if "sampled" in name:
        switches = switches | {"samples": 7, "generator": torch.Generator().manual_seed(0)} | draws
    return function(x, *([regions] if "regions" in name else []), mask, patch_mask, **switches)


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden(case: dict[str, Any], index: str) -> None:
    """Every entry of the file is checked. Only brute force supports regions with present normalizers."""
    x, empty, checked = double(case["A"]), case["v0"], {"name", "A", "alpha", "beta", "v0"}
    switches = {"index": index, "empty": empty, "word_weight": case["alpha"]}
    both = {"patch_weight": case["beta"]}

    def check(key: str, *functions: Callable[[], Tensor]) -> None:
        if (name := f"{key}_{index}") in case:
            checked.add(name)
            expected = double([row[1] if "region" in key else row for row in case[name]])
            for function in functions:
                equal(function(), expected)

    listed = [patches for patches, _ in case[f"patches_fixed_region_{index}"]]
    regions = torch.tensor([[i in patches for i in range(len(x))] for patches in listed])
    exact = partial(region_interactions, x, regions, **switches)
    brute = partial(brute_force_region_interactions, x, regions, **switches, **both)
    check("text_to_image_patch_values", lambda: airport_values(x.mT, index=index, empty=empty).mT)
    check("patches_fixed_region", exact, brute)
    check("both_fixed_region", lambda: exact(words="players"), lambda: brute(words="players"))
    check("both_present_region", lambda: brute(words="players", normalizer="present"))
    for normalizer in ("fixed", "present"):
        pairs = [
            partial(f, x, normalizer=normalizer, **switches, **both)
            for f in (pair_interactions, brute_force_pair_interactions)
        ]
        check(f"both_{normalizer}_pair", *pairs)
    if "v_full" in case:
        checked.add("v_full")
        equal(pair_interactions(x, **switches | {"index": "shapley"}, **both).sum(), double(case["v_full"]))
    assert {key for key in case if not key.endswith(tuple({*INDICES} - {index}))} == checked


@pytest.mark.parametrize("empty", [0.0, 0.4, -2.0], ids=lambda e: f"empty{e}")
@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("normalizer", ["fixed", "present"])
def test_pairs_equal_brute_force(normalizer: str, index: str, empty: float) -> None:
    """The exact interactions equal those of enumerated coalitions."""
    x, mask, patch_mask, _ = inputs()
    switches = {"index": index, "normalizer": normalizer, "empty": empty, **WEIGHTS}
    for masks in [(mask, patch_mask), (None, patch_mask), (None, None)]:
        equal(pair_interactions(x, *masks, **switches), brute_force_pair_interactions(x, *masks, **switches))


@pytest.mark.parametrize("empty", [0.0, 0.4, -2.0], ids=lambda e: f"empty{e}")
@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("words", SIDES)
@pytest.mark.parametrize("worth", WORTHS)
def test_regions_equal_brute_force(worth: str, words: str, index: str, empty: float) -> None:
    """Regions have no patch, one, some or all. Brute force includes the mean over patches, which must add nothing."""
    x, mask, patch_mask, regions = inputs(1)
    switches = {"worth": worth, "words": words, "index": index, "empty": empty, "word_weight": 0.7}
    for masks in [(mask, patch_mask), (None, patch_mask), (None, None)]:
        found = region_interactions(x, regions, *masks, **switches)
        equal(found, brute_force_region_interactions(x, regions, *masks, **switches, patch_weight=0.2))
        assert (found[..., :2] == 0).all(), "fewer than two patches do not interact"


def test_twelve_players_equal_brute_force() -> None:
    """The functions equal brute force with its maximum number of players, without ties."""
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    equal(pair_interactions(x), brute_force_pair_interactions(x))
    wide, region = torch.cat([x, x[:5] - 0.1]), torch.rand(1, 12) < 0.4
    equal(region_interactions(wide, region), brute_force_region_interactions(wide, region))


def value_of(x: np.ndarray, empty: float, patches: np.ndarray, words: np.ndarray) -> float:
    """The worth of one coalition, computed with numpy."""
    by_word = sum(max(x[patches, j], default=empty) for j in np.flatnonzero(words)) / x.shape[1]
    by_patch = sum(max(x[i, words], default=empty) for i in np.flatnonzero(patches)) / x.shape[0]
    return WEIGHTS["word_weight"] * by_word + WEIGHTS["patch_weight"] * by_patch


@pytest.mark.parametrize("index", INDICES)
def test_values_and_pairs_equal_shapiq(index: str) -> None:
    """Values and interactions equal those of an independent package."""
    from shapiq import ExactComputer

    x = np.random.default_rng(0).normal(size=(4, 3))
    letter, found = index[0].upper(), torch.tensor(x)

    def both(coalitions: np.ndarray) -> np.ndarray:
        return np.array([value_of(x, 0.1, c[:4].astype(bool), c[4:].astype(bool)) for c in coalitions])

    def one(coalitions: np.ndarray) -> np.ndarray:
        return np.array([value_of(x, 0.1, c.astype(bool), np.ones(3, dtype=bool)) for c in coalitions])

    switches = {"index": index, "empty": 0.1, **WEIGHTS}
    of_both = ExactComputer(game=both, n_players=7)
    pairs = of_both(f"{letter}II", 2)
    equal(pair_interactions(found, **switches), double([[pairs[(i, 4 + j)] for j in range(3)] for i in range(4)]))
    values, fixed = of_both(f"{letter}V", 1), ExactComputer(game=one, n_players=4)(f"{letter}V", 1)
    equal(patch_values(found, words="players", **switches), double([values[(i,)] for i in range(4)]))
    equal(word_values(found, patches="players", **switches), double([values[(4 + j,)] for j in range(3)]))
    equal(patch_values(found, **switches), double([fixed[(i,)] for i in range(4)]))


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("worth", WORTHS)
def test_regions_equal_shapiq_of_the_merged_game(worth: str, index: str) -> None:
    """shapiq computes the games in which the region, or one of its patches alone, is a single player."""
    from shapiq import ExactComputer

    x, inside, others = np.random.default_rng(1).normal(size=(6, 3)), [0, 2, 3], [1, 4, 5]

    def value(merged: list[int]) -> float:
        groups = [[i] for i in others] + [merged]

        def play(coalitions: np.ndarray) -> np.ndarray:
            results = []
            for c in coalitions:
                patches = np.isin(np.arange(6), [i for k in np.flatnonzero(c) for i in groups[k]])
                before, after = (~patches, np.ones(6, dtype=bool)) if worth == "deletion" else (patches, None)
                v = value_of(x, 0.1, before, np.ones(3, dtype=bool))
                results.append(v if after is None else value_of(x, 0.1, after, np.ones(3, dtype=bool)) - v)
            return np.array(results)

        return ExactComputer(game=play, n_players=4)(f"{index[0].upper()}V", 1)[(3,)]

    expected = value(inside) - sum(value([i]) for i in inside)
    region = torch.zeros(1, 6, dtype=torch.bool)
    region[0, inside] = True
    switches = {"worth": worth, "index": index, "empty": 0.1, "word_weight": WEIGHTS["word_weight"]}
    equal(region_interactions(torch.tensor(x), region, **switches), double([expected]))


def test_efficiency() -> None:
    """Shapley indices sum to the worth of the grand coalition."""
    x, mask, patch_mask, _ = inputs(2, batch=(4,), patches=9, words=7)
    real = patch_mask[..., None] & mask[:, None]
    best_patch = x.masked_fill(~patch_mask[..., None], -torch.inf).amax(-2).masked_fill(~mask, 0)
    best_word = x.masked_fill(~mask[:, None], -torch.inf).amax(-1).masked_fill(~patch_mask | ~mask.any(-1)[:, None], 0)
    by_word = 0.7 * best_patch.sum(-1) / mask.sum(-1).clamp_min(1)
    by_patch = 0.2 * best_word.sum(-1) / patch_mask.sum(-1)
    equal(pair_interactions(x, mask, patch_mask, **WEIGHTS).sum((-1, -2)), by_word + by_patch)
    patches, words = (
        patch_values(x, mask, patch_mask, words="players", **WEIGHTS),
        word_values(x, mask, patch_mask, patches="players", **WEIGHTS),
    )
    equal(patches.sum(-1) + words.sum(-1), by_word + by_patch)
    equal(patch_values(x, mask, patch_mask, **WEIGHTS).sum(-1), by_word + by_patch)
    equal(word_values(x, mask, patch_mask, **WEIGHTS).sum(-1), by_word + by_patch)
    assert (pair_interactions(x, mask, patch_mask)[~real] == 0).all()


def test_signs() -> None:
    """Without similarities below `empty`, patches are substitutes, and a patch and a word are complements."""
    x, mask, patch_mask, regions = inputs(3, patches=12)
    masks, low = (mask, patch_mask), x.min().item()
    for index in INDICES:
        assert (pair_interactions(x, *masks, index=index, empty=low) >= 0).all()
        for words in SIDES:
            switches = {"index": index, "words": words, "empty": low}
            assert (region_interactions(x, regions, *masks, **switches) <= 0).all()
            assert (region_interactions(x, regions, *masks, worth="deletion", **switches) >= 0).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients(name: str) -> None:
    """Gradients equal finite differences away from ties. Regions compute their blocks again in the backward pass."""
    _, mask, patch_mask, regions = inputs(4, batch=(3,))
    x = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: run(name, x, regions, mask, patch_mask), x)


@pytest.mark.parametrize("name", VARIANTS)
def test_masked_entries_do_not_matter(name: str) -> None:
    """NaN in masked entries, or more masked entries, changes neither results nor gradients.

    Results of ties and empty captions are finite. With the same seed, sampling has the same contexts of real players.
    """
    x, mask, patch_mask, regions = inputs(5)
    padded = torch.cat([x, torch.zeros(2, 3, 5, 3)], -1)
    longer = torch.cat([mask, torch.zeros(2, 3, 3, dtype=torch.bool)], -1)
    padded = padded.masked_fill(~(patch_mask[..., None] & longer[..., None, :]), torch.nan)

    def result_and_gradient(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        found = run(name, x, regions, mask, patch_mask)
        return found.detach(), torch.autograd.grad(found.square().sum(), x)[0]

    (a, da), (b, db) = result_and_gradient(x, mask), result_and_gradient(padded, longer)
    for tensor in (a, da, b, db):
        assert tensor.isfinite().all()
    equal(b[..., : a.shape[-1]], a)
    equal(db[..., :4], da)
    assert (b[..., a.shape[-1] :] == 0).all()
    assert (db[..., 4:] == 0).all()
    assert (a[0, 0] == 0).all(), "the first caption is empty"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_batch_is_a_loop_over_samples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of a batch share only their contexts, for every size of blocks."""
    x, mask, patch_mask, regions = inputs(6)
    whole = run(name, x, regions, mask, patch_mask)
    monkeypatch.setattr(shapley.game, "BLOCK", 40)
    equal(run(name, x, regions, mask, patch_mask), whole)
    for at in np.ndindex(2, 3):
        equal(run(name, x[at], regions[at], mask[at], patch_mask[at]), whole[at])


@pytest.mark.parametrize("name", VARIANTS)
def test_float32_is_close(name: str) -> None:
    """Results in float32 are close to those in float64."""
    generator = torch.Generator().manual_seed(0)
    x, regions = torch.randn(3, 60, 20, generator=generator), torch.rand(3, 4, 60, generator=generator) < 0.2
    assert_close(run(name, x, regions).double(), run(name, x.double(), regions), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("patches", "words"), [(1, 1), (1, 3), (3, 1), (2, 0)])
def test_smallest_sizes(name: str, patches: int, words: int) -> None:
    """Games with one patch or one word work."""
    x = torch.ones(2, patches, words, requires_grad=True)
    found = run(name, x, torch.ones(2, 1, patches, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert found.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", SAMPLED)
def test_sampling_every_context_is_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates are unbiased: the mean over all contexts, weighted by their probabilities, is exact.

    The contexts of 6 players are equally likely for Banzhaf, and have probability |C|! (6 - |C|)! / 7! for Shapley.
    """
    x, mask, patch_mask, regions = inputs(7, patches=4, words=2)
    contexts = shapley.brute_force._coalitions(6)
    if "shapley" in name:
        copies = torch.tensor([60 // math.comb(6, size) for size in range(7)])
        contexts = contexts.repeat_interleave(copies[contexts.sum(-1)], 0)
    drawn = contexts[:, :4].T, contexts[:, 4:].T
    monkeypatch.setattr(shapley.sampled, "_contexts", lambda *_: drawn)
    found = run(name, x, regions, mask, patch_mask, samples=len(contexts))
    equal(found, run(name.removeprefix("sampled "), x, regions, mask, patch_mask))


@pytest.mark.parametrize("samples", [1, 3])
def test_contexts_are_as_likely_as_they_should_be(samples: int) -> None:
    """Sizes 0, .., 8 are equally likely for Shapley and binomial for Banzhaf. Every player has probability 1/2."""
    for index, law in [("shapley", [1 / 9] * 9), ("banzhaf", [math.comb(8, k) / 2**8 for k in range(9)])]:
        generator, draws = torch.Generator().manual_seed(0), 2400 // samples
        sets = [shapley.sampled._contexts(torch.empty(5, 3), samples, index, generator) for _ in range(draws)]
        contexts = torch.cat([torch.cat(pair) for pair in sets], -1).float()
        assert_close(contexts.mean(-1), torch.full((8,), 0.5), atol=0.04, rtol=0)
        sizes = contexts.sum(0).long().bincount(minlength=9) / contexts.shape[-1]
        assert_close(sizes, torch.tensor(law), atol=0.03, rtol=0)


@pytest.mark.parametrize("name", SAMPLED)
def test_sampling_converges(name: str) -> None:
    """The error is small with 20,000 contexts, and decreases with 1 / sqrt(contexts) or faster."""
    x, regions = inputs(8)[0][0], inputs(8)[3][0]
    expected = run(name.removeprefix("sampled "), x, regions)

    def error(samples: int) -> float:
        generator = torch.Generator().manual_seed(0)
        found = [run(name, x, regions, samples=samples, generator=generator) for _ in range(5)]
        return (torch.stack(found) - expected).square().mean().sqrt().item()

    assert error(20_000) < 0.015 * expected.abs().max()
    assert error(20_000) < error(200) / 5


def test_contexts_are_repeatable_and_default_to_the_global_generator() -> None:
    """The same generator gives the same contexts."""
    x = inputs()[0]
    torch.manual_seed(3)
    first = sampled_pair_interactions(x, samples=5)
    assert not torch.equal(sampled_pair_interactions(x, samples=5), first)
    equal(sampled_pair_interactions(x, samples=5, generator=torch.Generator().manual_seed(3)), first)
    with pytest.raises(UserError, match="samples must be at least 1, not 0"):
        sampled_pair_interactions(x, samples=0)


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong arguments raise errors with a message, also without the run-time checks of shapes, which only tests use."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x, mask, patch_mask, regions = inputs()
    mistakes: list[tuple[str, Callable[[], Tensor]]] = [
        ("index must be one of shapley, banzhaf, not 'owen'", lambda: pair_interactions(x, index="owen")),
        ("index must be one of", lambda: airport_values(x, index="owen")),
        ("words must be one of fixed, players", lambda: patch_values(x, words="absent")),
        ("patches must be one of fixed, players", lambda: word_values(x, patches="absent")),
        ("worth must be one of presence, deletion", lambda: region_interactions(x, regions, worth="chess")),
        ("normalizer 'present'", lambda: region_interactions(x, regions, normalizer="present")),
        ("normalizer 'present'", lambda: patch_values(x, normalizer="present")),
        ("normalizer must be one of fixed, present", lambda: pair_interactions(x, normalizer="softmax")),
        (r"mask must be boolean of shape \[2, 3, 4\], not .* \[2, 3, 5\]", lambda: pair_interactions(x, patch_mask)),
        (r"patch_mask must be .* \[2, 3, 5\]", lambda: pair_interactions(x, mask, mask)),
        ("mask must be boolean .* not torch.float32", lambda: pair_interactions(x, mask.float())),
        ("similarity must be floating point of shape", lambda: pair_interactions(x[0, 0, 0])),
        ("similarity must be floating point of shape", lambda: region_interactions(regions, regions)),
        (r"regions must be .* \[2, 3, 'regions', 5\]", lambda: region_interactions(x, regions[..., :4])),
        (r"regions must be .* \[2, 3, 'regions', 5\]", lambda: region_interactions(x, regions[0])),
        ("at most 12 players, not 13", lambda: brute_force_pair_interactions(torch.ones(9, 4))),
        (
            "at most 12 players, not 13",
            lambda: brute_force_region_interactions(torch.ones(13, 1), torch.ones(1, 13, dtype=torch.bool)),
        ),
    ]
    for message, mistake in mistakes:
        with pytest.raises(UserError, match=message):
            mistake()


COMPILE = """
import torch
from torch.testing import assert_close
from patchword.shapley import pair_interactions, region_interactions
x, mask = torch.randn(2, 6, 3, requires_grad=True), torch.tensor([[True, True, False], [True, True, True]])
regions = torch.rand(2, 4, 6) < 0.5
for function in (pair_interactions, lambda x, mask: region_interactions(x, regions, mask)):
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    found, expected = compiled(x, mask), function(x, mask)
    assert_close(found, expected)
    for a, b in zip(torch.autograd.grad(found.square().sum(), x), torch.autograd.grad(expected.square().sum(), x)):
        assert_close(a, b)
"""


def test_compiles_to_the_same_values() -> None:
    """There is no graph break. The test needs a new process, because Dynamo cannot trace run-time shape checks."""
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
