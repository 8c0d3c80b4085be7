"""Tests that the plain formula of each objective, and open_clip's loss, give the objective's loss and gradients.

The formulas and the objectives are independent implementations of the papers' equations.
"""

import inspect
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from patchword import Images, Texts
from patchword.bench import peers, plain
from tests.objectives.variants import DIM, VARIANTS, build, gradients, pairs

DEFAULTS = [name for name in VARIANTS if "-" not in name]


def inputs() -> tuple[Images, Texts]:
    """Pairs whose grid is large enough for regions of several patches."""
    return pairs(grid=(4, 5), dtype=torch.float64)


class Wrapped(torch.nn.Module):
    """A plain formula with the interface of its objective."""

    def __init__(self, objective: torch.nn.Module, loss: object) -> None:
        super().__init__()
        self.objective, self.loss = objective, loss

    def forward(self, images: Images, texts: Texts) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)  # as `build` does for objectives that draw random numbers
        return {"loss": self.loss(self.objective, images, texts)}


def compare(variant: str, loss: object, images: Images, texts: Texts) -> None:
    """Compare the loss and all gradients of `variant` with those of `loss` in double precision."""
    objective = build(variant, torch.float64)
    other = Wrapped(build(variant, torch.float64), loss)
    assert_close(other(images, texts)["loss"], sum(objective(images, texts).values()))
    found = {name.removeprefix("objective."): x for name, x in gradients(other, images, texts).items()}
    assert_close(found, gradients(objective, images, texts))


@pytest.mark.parametrize("variant", DEFAULTS)
def test_plain_formula(variant: str) -> None:
    """Captions have different lengths and their padding contains numbers, which would reveal a leak."""
    compare(variant, plain.loss, *inputs())


def test_plain_formula_of_loupe_has_phrases() -> None:
    """The formula has code of its own for phrases: here, one of two tokens, one of one token, and a token in none."""
    images, texts = inputs()
    phrases = torch.tensor([0, 1, 0, -1]).expand(texts.mask.shape)[:, None]
    compare("LOUPE", plain.loss, images, replace(texts, phrases=phrases))


def test_plain_formula_of_power_clip_has_phrases_on_two_levels() -> None:
    """The second caption has no phrase, and the third one has the padding of the others in its phrases."""
    images, texts = inputs()
    phrases = torch.tensor([[0, 1, 0, -1], [-1, 2, 2, 2]]).repeat(5, 1, 1)
    phrases[1] = -1
    compare("PowerCLIP", plain.loss, images, replace(texts, phrases=phrases))


@pytest.mark.parametrize("variant", DEFAULTS)
def test_plain_formula_has_at_most_ten_lines(variant: str) -> None:
    """The formulas are read at the top of each page, so steps that are longer belong in `plain_parts.py`."""
    source = inspect.getsource(plain.loss.dispatch(type(build(variant))))
    assert len(source.split(" -> Tensor:\n")[1].splitlines()) <= 10


@pytest.mark.parametrize("variant", ["CLIP", "CLIP-temperature=0.2", "SigLIP"])
def test_open_clip(variant: str) -> None:
    pytest.importorskip("open_clip")
    compare(variant, peers.loss, *inputs())


def test_the_pairs_would_show_a_leak() -> None:
    """The comparison above needs captions with padding that is not zero."""
    images, texts = inputs()
    assert not texts.mask.all()
    assert texts.tokens[~texts.mask].abs().min() > 0
    assert images.patches.shape[-1] == DIM
