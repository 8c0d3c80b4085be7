"""Interactions in the masked game against their definition, with all coalitions encoded one after the other."""

from __future__ import annotations

import csv
import itertools
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from patchword.encoders import HFText, TimmImage, TwoTowers
from patchword.encoders.masked import masked_images, masked_texts
from patchword.errors import UserError
from patchword.features import Masked
from patchword.objectives import LOUPE
from patchword.shapley import masked_pair_interactions, masked_region_interactions
from patchword.shapley.brute_force import _coalitions, _context_weights
from tests import tiny
from tests.test_page_commands import commands

ROOT = Path(__file__).parents[1]

PATCHES, WORDS = 4, 3
MASK = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
REGIONS = torch.tensor(
    [
        [[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [1, 0, 1, 1]],
        [[0, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]],
        [[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [1, 0, 1, 1]],
    ]
).bool()
EVERY = 12  # divisible by the sizes of all regions


def side(players: int, seed: int) -> Masked:
    """Three inputs whose embeddings are nonlinear functions of the players that stay."""
    parts = torch.randn(3, players, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Masked(torch.arange(3), lambda at, keep: torch.tanh((parts[at] * keep[..., None]).sum(1) + 0.3 - seed))


IMAGES, TEXTS = side(PATCHES, 0), side(WORDS, 1)


def worths(images: Masked, texts: Masked, at: int, patches: int, real: Tensor, fixed: bool = False) -> Tensor:
    """v of all coalitions of the patches and the real words of a pair, in the order of `_coalitions`."""
    place, players = torch.tensor([at]), real.nonzero()[:, 0].tolist()
    found = []
    for members in _coalitions(patches + (0 if fixed else len(players))):
        words = real.clone()
        if not fixed:
            words[players] = members[patches:]
        found.append(cosine_similarity(images(place, members[None, :patches]), texts(place, words[None]))[0])
    return torch.stack(found)


def brute_force_masked_pairs(images: Masked, texts: Masked, patches: int, mask: Tensor, index: str) -> Tensor:
    """sum_C w(C) (v(C+i+j) - v(C+i) - v(C+j) + v(C)) for every patch i and word j."""
    found = torch.zeros(len(mask), patches, mask.shape[1], dtype=torch.float64)
    for at, real in enumerate(mask):
        players = real.nonzero()[:, 0].tolist()
        members, v = _coalitions(patches + len(players)), worths(images, texts, at, patches, real)
        for i, (place, j) in itertools.product(range(patches), enumerate(players)):
            with_i, with_j = 2**i, 2 ** (patches + place)
            c = (~(members[:, i] | members[:, patches + place])).nonzero()[:, 0]
            bracket = v[c + with_i + with_j] - v[c + with_i] - v[c + with_j] + v[c]
            found[at, i, j] = (_context_weights(index, members[c], 2) * bracket).sum()
    return found


def brute_force_masked_regions(
    images: Masked,
    texts: Masked,
    regions: Tensor,
    mask: Tensor,
    index: str = "shapley",
    worth: str = "presence",
    words: str = "players",
) -> Tensor:
    """sum_C w(C) (v(C+R) - sum_p v(C+p) + (|R|-1) v(C)) for every region; 0 without words."""
    found, patches = torch.zeros(regions.shape[:2], dtype=torch.float64), regions.shape[2]
    for at, real in enumerate(mask):
        if not real.any():
            continue
        v = worths(images, texts, at, patches, real, words == "fixed")
        members = _coalitions(int(math.log2(len(v))))
        if worth == "deletion":
            v = v[-1] - v.flip(0)
        for m, region in enumerate(regions[at]):
            inside = region.nonzero()[:, 0].tolist()
            c = (~members[:, inside].any(-1)).nonzero()[:, 0]
            alone = sum(v[c + 2**i] for i in inside)
            bracket = v[c + sum(2**i for i in inside)] - alone + (len(inside) - 1) * v[c]
            found[at, m] = (_context_weights(index, members[c], len(inside)) * bracket).sum()
    return found


def all_contexts(patches: int, words: int, index: str = "shapley", every: int = EVERY) -> tuple[Tensor, Tensor]:
    """All contexts as often as they are likely, and each again for every patch of a region."""
    contexts, n = _coalitions(patches + words), patches + words
    if index == "shapley":
        whole = math.lcm(*(math.comb(n, size) for size in range(n + 1)))
        copies = torch.tensor([whole // math.comb(n, size) for size in range(n + 1)])
        contexts = contexts.repeat_interleave(copies[contexts.sum(-1)], 0)
    contexts = contexts.repeat_interleave(every, 0)
    return contexts[:, :patches].mT, contexts[:, patches:].mT


@pytest.mark.parametrize("index", ["shapley", "banzhaf"])
@pytest.mark.parametrize("worth", ["presence", "deletion"])
@pytest.mark.parametrize("words", ["players", "fixed"])
def test_regions_are_unbiased(index: Any, worth: Any, words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over all contexts and all patches of a region is exactly the interaction of the definition."""
    with_patch, with_word = all_contexts(PATCHES, WORDS if words == "players" else 0, index)
    every = with_patch, with_word if words == "players" else with_patch[:WORDS]
    monkeypatch.setattr("patchword.shapley.masked._contexts", lambda *_: every)
    switches = {"index": index, "worth": worth, "words": words}
    found = masked_region_interactions(IMAGES, TEXTS, REGIONS, MASK, samples=with_patch.shape[1], **switches)
    assert_close(found, brute_force_masked_regions(IMAGES, TEXTS, REGIONS, MASK, **switches), atol=1e-12, rtol=0)
    assert (found[REGIONS.sum(-1) < 2] == 0).all()


@pytest.mark.parametrize("index", ["shapley", "banzhaf"])
def test_pairs_are_unbiased(index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over all orders of patches and all orders of words is exactly the interaction of the definition."""
    orders = {n: torch.tensor([*itertools.permutations(range(n))]) for n in (PATCHES, WORDS)}
    orders[WORDS] = orders[WORDS].repeat(4, 1)
    monkeypatch.setattr("patchword.shapley.masked._ranks", lambda _, players, __: orders[players])
    found = masked_pair_interactions(IMAGES, TEXTS, PATCHES, MASK, samples=24, index=index)
    expected = brute_force_masked_pairs(IMAGES, TEXTS, PATCHES, MASK, index)
    assert_close(found, expected, atol=1e-12, rtol=0)
    assert (found.mT[~MASK] == 0).all()


@pytest.mark.parametrize("what", ["pairs", "presence", "deletion"])
def test_estimates_converge(what: str) -> None:
    """With 64 times as many coalitions of patches and of words, the error is a fifth or less."""
    if what == "pairs":
        expected = brute_force_masked_pairs(IMAGES, TEXTS, PATCHES, MASK, "shapley")
    else:
        expected = brute_force_masked_regions(IMAGES, TEXTS, REGIONS, MASK, worth=what)

    def error(samples: int) -> float:
        draws: Any = {"samples": samples, "generator": torch.Generator().manual_seed(0)}
        found = [
            masked_pair_interactions(IMAGES, TEXTS, PATCHES, MASK, **draws)
            if what == "pairs"
            else masked_region_interactions(IMAGES, TEXTS, REGIONS, MASK, worth=what, **draws)
            for _ in range(10)
        ]
        return float((torch.stack(found) - expected).square().mean().sqrt())

    assert error(256) < 0.05 * expected.abs().max()
    assert error(256) < error(4) / 5


class Counted:
    """A side of the game that counts its passes, and remembers the largest embedding that it was asked for."""

    def __init__(self, side: Masked) -> None:
        self.passes: list[int] = []
        self.side = Masked(side.index, self.encode)
        self.real = side

    def encode(self, at: Tensor, keep: Tensor) -> Tensor:
        self.passes.append(len(at))
        return self.real(at, keep)


def test_passes_are_those_that_the_docstrings_promise() -> None:
    """A region costs three passes per context, a caption one; m n worths of pairs cost m + n passes."""
    images, texts = Counted(IMAGES), Counted(TEXTS)
    masked_region_interactions(images.side, texts.side, REGIONS, MASK, samples=7)
    assert images.passes == [3 * 7 * int((REGIONS[:2].sum(-1) >= 2).sum())]
    assert texts.passes == [7 * 2]
    texts.passes.clear()
    masked_region_interactions(images.side, texts.side, REGIONS, MASK, samples=7, words="fixed")
    assert texts.passes == [2]
    images.passes.clear()
    texts.passes.clear()
    masked_pair_interactions(images.side, texts.side, PATCHES, MASK[:2], samples=5)
    assert images.passes == [5 * (PATCHES + 1)] * 2
    assert texts.passes == [5 * (3 + 1), 5 * (2 + 1)]


def test_a_generator_decides_all_draws() -> None:
    for function in (
        lambda g: masked_pair_interactions(IMAGES, TEXTS, PATCHES, MASK, samples=3, generator=g),
        lambda g: masked_region_interactions(IMAGES, TEXTS, REGIONS, MASK, samples=3, generator=g),
    ):
        first, second, third = (function(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
        assert torch.equal(first, second)
        assert not torch.equal(first, third)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"samples": 0}, "samples must be at least 1, not 0"),
        ({"samples": 1, "index": "owen"}, "index must be one of shapley, banzhaf, not 'owen'"),
        ({"samples": 1, "worth": "both"}, "worth must be one of presence, deletion, not 'both'"),
        ({"samples": 1, "words": "some"}, "words must be one of fixed, players, not 'some'"),
    ],
)
def test_mistakes_are_named(switches: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong choices raise errors with a message, also without the run-time checks of types, which only tests use."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError, match=message):
        masked_region_interactions(IMAGES, TEXTS, REGIONS, MASK, **switches)
    if switches.keys() <= {"samples", "index"}:
        with pytest.raises(UserError, match=message):
            masked_pair_interactions(IMAGES, TEXTS, PATCHES, MASK, **switches)


def test_interactions_of_real_towers_equal_masking_by_hand() -> None:
    """Every coalition of 2 x 2 patches and two words is encoded: pixels are painted and words lose their attention."""
    torch.manual_seed(0)
    image = TimmImage("vit_tiny_patch16_224", image_size=32, model_args={"depth": 1, "embed_dim": 16, "num_heads": 2})
    t5 = {"model_type": "t5", "num_layers": 1, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2}
    encoder = TwoTowers(image, HFText(config=t5, tokenizer="emoji-scenes"), embed_dim=16).double()
    encoder.text_adapter.weight.data *= 4
    pixels = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    tokens = encoder.tokenize(["a red apple"])
    selected = tokens.select("content")
    assert selected.sum() == 2

    def image_by_hand(_: Tensor, keep: Tensor) -> Tensor:
        painted = pixels.clone()
        for patch in range(4):
            if not keep[0, patch]:
                row, column = 16 * (patch // 2), 16 * (patch % 2)
                color = (255 * image.normalize.mean).round().to(torch.uint8)
                painted[:, :, row : row + 16, column : column + 16] = color
        return encoder.eval().encode_images(painted).pooled.detach()

    def text_by_hand(_: Tensor, keep: Tensor) -> Tensor:
        mask = torch.where(selected, keep, tokens.mask)
        features = encoder.eval().text.backbone(input_ids=tokens.ids, attention_mask=mask.long()).last_hidden_state
        return encoder.text_adapter((features * mask[..., None]).sum(1) / mask.sum()).detach()

    by_hand = Masked(torch.arange(1), image_by_hand), Masked(torch.arange(1), text_by_hand)
    again = masked_images(encoder, pixels), masked_texts(encoder, tokens, selected)
    generator = torch.Generator().manual_seed(0)
    expected = brute_force_masked_pairs(*by_hand, 4, selected, "shapley")
    found = masked_pair_interactions(*again, 4, selected, samples=64, generator=generator)
    assert expected.abs().max() > 1e-4
    assert (found - expected).abs().max() < 0.2 * expected.abs().max()
    regions = torch.tensor([[[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1]]]).bool()
    expected = brute_force_masked_regions(*by_hand, regions, selected, worth="deletion")
    found = masked_region_interactions(*again, regions, selected, samples=512, worth="deletion", generator=generator)
    assert (found - expected).abs().max() < 0.2 * expected.abs().max()


def test_the_script_that_compares_the_games_draws_boxes_of_the_head() -> None:
    """Random boxes have two patches or more, and those beside an object have its height and width."""
    from benchmarks.loupe_games import regions_of

    from patchword.data.scenes import EmojiScenes

    sample = EmojiScenes("test", 1)[0]
    drawn, objects, others = regions_of(sample, (8, 8), 16, torch.Generator().manual_seed(0))
    assert drawn.shape == (16, 64)
    assert (drawn.sum(-1) >= 2).all()
    assert len(objects) > 0
    assert (others.sum(-1) >= objects.sum(-1, keepdim=True)).all()  # the rectangle around the object


@pytest.mark.slow
def test_the_command_of_the_page_writes_the_recorded_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of docs/objectives/loupe.md runs, here on two images and a model that was trained for one step."""
    from benchmarks import loupe_games

    (line,) = commands(ROOT / "docs/objectives/loupe.md")
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/compare/LOUPE/seed_0/fit/checkpoints")
    tiny.trainer(folder, max_steps=1, every_n_steps=1, limit_val_batches=0).fit(tiny.module(LOUPE()), tiny.data())
    _, *arguments = shlex.split(line)
    small = "--images 2 --regions 4 --contexts 2 --orders 2 --device cpu"
    monkeypatch.setattr(sys, "argv", [*arguments, *small.split()])
    loupe_games.main()
    assert capsys.readouterr().out.startswith("2 images")
    with Path("loupe_games.csv").open() as found, (ROOT / "docs/benchmark/loupe_games.csv").open() as recorded:
        assert [row["figure"] for row in csv.DictReader(found)] == [row["figure"] for row in csv.DictReader(recorded)]
