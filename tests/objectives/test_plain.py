"""The textbook formula of each objective gives the objective's loss and gradients; so does open_clip's loss.

Whoever is wrong here: the two were written from the paper's equations by different hands.
"""

import pytest
import torch
from torch.testing import assert_close

from patchword import Images, Texts
from patchword.bench import peers, plain
from patchword.bench.candidates import knows
from tests.objectives.variants import DIM, VARIANTS, build, gradients, pairs

DEFAULTS = [name for name in VARIANTS if "-" not in name]
WITHOUT = {"LOUPE"}  # no formula that one would write down: a tower of parts


class Wrapped(torch.nn.Module):
    """A plain formula in the place of its objective."""

    def __init__(self, objective: torch.nn.Module, loss: object) -> None:
        super().__init__()
        self.objective, self.loss = objective, loss

    def forward(self, images: Images, texts: Texts) -> dict[str, torch.Tensor]:
        return {"loss": self.loss(self.objective, images, texts)}


def compare(variant: str, loss: object, tolerance: float | None = None) -> None:
    """Loss and all gradients of `variant` against those of `loss`, in double precision."""
    objective, (images, texts) = build(variant, torch.float64), pairs(dtype=torch.float64)
    other = Wrapped(objective, loss)
    close = {} if tolerance is None else {"rtol": tolerance, "atol": tolerance}
    assert_close(other(images, texts)["loss"], sum(objective(images, texts).values()), **close)
    expected = gradients(objective, images, texts)
    found = {name.removeprefix("objective."): x for name, x in gradients(other, images, texts).items()}
    assert_close(found, expected, **close)


@pytest.mark.parametrize("variant", DEFAULTS)
def test_plain_formula(variant: str) -> None:
    """Captions differ in length and their padding holds numbers, so that any leak shows."""
    cls = type(build(variant))
    assert knows(plain.loss, cls) == (variant not in WITHOUT)
    if variant in WITHOUT:
        pytest.skip("has no plain formula")
    compare(variant, plain.loss)


@pytest.mark.parametrize("variant", ["CLIP", "CLIP-temperature=0.2", "SigLIP"])
def test_open_clip(variant: str) -> None:
    pytest.importorskip("open_clip")
    compare(variant, peers.loss)


def test_the_pairs_would_show_a_leak() -> None:
    """What the comparison above relies on."""
    images, texts = pairs()
    assert not texts.mask.all()
    assert texts.tokens[~texts.mask].abs().min() > 0
    assert images.patches.shape[-1] == DIM
