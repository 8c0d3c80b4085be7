"""Optional parts of images and texts: a run attaches those that its objective needs, or ends before the first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.data import DataLoader

from patchword import Images, Objective, Texts, distributed
from patchword.contrast import LogitScale, info_nce
from patchword.data.batch import Batch, collate
from patchword.errors import UserError
from patchword.features import map_tensors
from patchword.objectives import CLIP, Sum
from patchword.ops import cosine
from patchword.training.needs import coverage
from tests import tiny
from tests.objectives.variants import pairs
from tests.ranks import on_ranks


class Needy(Objective):
    """A loss that remembers what it was given."""

    def __init__(self, *needs: str) -> None:
        super().__init__()
        self.needs = needs
        self.scale = LogitScale()
        self.given: tuple[Images, Texts] | None = None

    def forward(self, images: Images, texts: Texts) -> dict[str, Tensor]:
        self.given = images, texts
        return {"global": info_nce(cosine, images.pooled, texts.pooled, self.scale())}

    def score(self, images: Images, texts: Texts) -> Tensor:
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Tensor:
        return cosine(texts.tokens, images.patches)


def batch() -> Batch:
    return collate([tiny.data().split("train")[i] for i in range(5)])


@pytest.mark.parametrize("size", [None, 2])
def test_everything_that_is_needed_is_attached(size: int | None) -> None:
    """Hard negatives and regions are in the rows of their images, also if texts are encoded in chunks."""
    objective, data = Needy("ids", "negatives", "regions"), batch()
    module = tiny.exact_module(objective, chunk_size=size)
    images, texts, tokens = module(data)
    images = module.supply(images, data)
    module.losses(images, texts)
    assert objective.given is not None
    images, texts = objective.given
    assert torch.equal(texts.ids, torch.where(tokens.mask, tokens.ids, -1))
    for i in range(5):
        wrong = [text for text, owner in zip(data.negatives, data.negative_image, strict=True) if owner == i]
        assert_close(images.negatives[i, : len(wrong)], module.encode_texts(wrong)[0].pooled)
        assert (images.negatives[i, len(wrong) :] == 0).all()
        own = [n for n, caption in enumerate(data.phrase_caption) if data.caption_image[caption] == i]
        words = [data.captions[data.phrase_caption[n]][slice(*data.phrase_span[n])] for n in own]
        assert_close(images.region_texts[i, : len(own)], module.encode_texts(words)[0].pooled)
        assert_close(images.regions[i, : len(own)], coverage(data.phrase_box[own], images.grid, (64, 64)))
        assert (images.regions[i, len(own) :] == 0).all()


def test_nothing_is_attached_that_is_not_needed() -> None:
    """Texts without ids are exchanged between ranks, and hard negatives are not encoded."""
    objective, data = Needy(), batch()
    module = tiny.exact_module(objective)
    images, texts, _ = module(data)
    images = module.supply(images, data)
    assert (texts.ids, images.negatives, images.regions, images.region_texts) == (None, None, None, None)


def test_shares_of_a_box_are_the_parts_of_its_area_in_each_patch() -> None:
    """The shares equal counts of pixels, for boxes that end inside patches."""
    boxes = torch.tensor([[0, 0, 12, 8], [3, 2, 7, 5], [11, 7, 12, 8]])
    found = coverage(boxes.float(), (2, 3), (8, 12))
    for (left, top, right, bottom), shares in zip(boxes.tolist(), found, strict=True):
        pixels = torch.zeros(8, 12)
        pixels[top:bottom, left:right] = 1
        counts = pixels.unfold(0, 4, 4).unfold(1, 4, 4).sum((2, 3)).flatten()
        assert_close(shares, counts / counts.sum())


@pytest.mark.parametrize("need", ["negatives", "regions"])
def test_a_run_without_what_its_objective_needs_ends_before_the_first_step(need: str, tmp_path: Path) -> None:
    """The message names the objective and what is missing."""
    samples = [replace(tiny.data().split("train")[i], phrases=[[]], negatives=[]) for i in range(4)]
    loader = DataLoader(samples, batch_size=2, collate_fn=collate)
    module = tiny.module(Needy(need))
    trainer = tiny.trainer(tmp_path, max_steps=1)
    with pytest.raises(UserError, match=f"Needy needs .*`{need}`.*, which this data does not have"):
        trainer.fit(module, loader, loader)
    assert trainer.global_step == 0


def test_a_sum_needs_what_its_parts_need() -> None:
    images, texts = pairs()
    both = Sum({"a": CLIP(), "b": Needy("negatives")})
    assert both.needs == ("negatives",)
    with pytest.raises(UserError, match="Sum needs hard-negative captions"):
        both(replace(images, negatives=None), texts)


def _gathered(rank: int) -> Texts:
    """Texts whose length and number of levels differ between the ranks."""
    length, levels = (4, 1) if rank == 0 else (3, 2)
    texts = map_tensors(pairs(2)[1], lambda x: x.detach())
    phrases = torch.full((2, levels, length), rank)
    cut = replace(texts, tokens=texts.tokens[:, :length], mask=texts.mask[:, :length], ids=texts.ids[:, :length])
    return distributed.gather(replace(cut, phrases=phrases))


def test_ids_and_levels_of_phrases_are_padded_when_they_are_gathered() -> None:
    """Padding has the number -1, and all ranks get the most levels."""
    for texts in on_ranks(_gathered):
        assert texts.phrases.shape == (4, 2, 4)
        assert (texts.phrases[:2, 0] == 0).all()
        assert (texts.phrases[:2, 1] == -1).all()
        assert (texts.phrases[2:, :, :3] == 1).all()
        assert (texts.phrases[2:, :, 3] == -1).all()
        assert (texts.ids[2:, 3] == -1).all()
        assert torch.equal(texts.ids[:2], pairs(2)[1].ids)
