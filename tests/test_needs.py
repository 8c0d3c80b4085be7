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
from patchword.cached import CachedFeatures
from patchword.contrast import LogitScale, info_nce
from patchword.data.augmentation import Views
from patchword.data.batch import Batch, collate
from patchword.errors import UserError
from patchword.features import map_tensors
from patchword.objectives import CLIP, LOUPE, Sum
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
    scenes = tiny.data(views=Views(local_crops=2, distort=False)).split("train")
    return collate([scenes[i] for i in range(5)])


@pytest.mark.parametrize("size", [None, 2])
def test_everything_that_is_needed_is_attached(size: int | None) -> None:
    """Hard negatives, regions and views are in the rows of their images, also if they are encoded in chunks."""
    objective, data = Needy("ids", "negatives", "regions", "teacher", "views"), batch()
    module = tiny.exact_module(objective, chunk_size=size)
    images, texts, tokens = module(data)
    module.losses(*module.supply(images, texts, tokens, data))
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
        crops = torch.cat([data.global_views[i], data.local_views[i]])
        assert_close(images.views[i], module.encode_images(crops).pooled)
        assert_close(images.teacher[i, 0], images.pooled[i].detach())  # it starts as a copy of the encoder
        assert_close(images.teacher[i, 1:], images.views[i, :1].detach())
        assert_close(texts.teacher[i], texts.pooled[i].detach())
    assert (images.views.shape[1], images.teacher.shape[1]) == (3, 2)
    assert images.views.requires_grad
    assert not images.teacher.requires_grad
    assert not texts.teacher.requires_grad


def test_a_hard_negative_that_is_listed_twice_counts_once() -> None:
    """Rows of a table can give the same wrong caption to several captions of an image."""
    module, data = tiny.exact_module(Needy("negatives")), batch()
    features = module(data)
    once = module.supply(*features, data)[0].negatives
    order = torch.arange(len(data.negatives)).repeat(2)
    twice = replace(data, negatives=[data.negatives[n] for n in order], negative_caption=data.negative_caption[order])
    assert_close(module.supply(*features, twice)[0].negatives, once)


def _without_texts_on_the_second_rank(rank: int) -> tuple[Images, int]:
    """What is attached on each rank if only the first one has hard negatives and boxes, and the number of both."""
    module, data = tiny.exact_module(Needy("negatives", "regions")), batch()
    if rank == 1:
        none = torch.zeros(0, dtype=torch.long)
        data = replace(data, negatives=[], negative_caption=none, phrase_box=torch.zeros_like(data.phrase_box))
    images = module.supply(*module(data), data)[0]
    return map_tensors(images, lambda x: x.detach()), len(data.negatives)


def test_a_rank_without_hard_negatives_and_boxes() -> None:
    """All ranks get tensors of the same shape, and no rank waits for another one forever."""
    (first, some), (second, none) = on_ranks(_without_texts_on_the_second_rank)
    assert some
    assert not none
    for name in ("negatives", "regions", "region_texts"):
        own, other = getattr(first, name), getattr(second, name)
        assert own.shape == other.shape
        assert own.any()
        assert not other.any()


@pytest.mark.parametrize("size", [None, 2])
def test_inputs_can_be_encoded_again_in_training(size: int | None) -> None:
    """What encodes inputs again follows its rows, and returns the embeddings of eval mode if nothing is masked."""
    data, module = batch(), tiny.exact_module(Needy("masked"), dropout=0.5, chunk_size=size)
    images, texts, _ = module(data)
    pooled = [x.pooled for x in module.eval()(data)[:2]]
    module.train()
    rows, places = torch.tensor([4, 1, 1]), torch.tensor([0, 2])
    for side, expected in zip((images, texts), pooled, strict=True):
        number = images.patches.shape[1] if side is images else texts.mask.shape[1]
        found = side[rows].masked(places, torch.ones(2, number, dtype=torch.bool))
        assert_close(found, expected[[4, 1]])
        assert not found.requires_grad
    several = images[:1].per_text(texts[:3])
    assert several.masked.index.tolist() == [0, 0, 0]
    assert texts.padded(texts.mask.shape[1] + 2).masked is texts.masked


def test_inputs_are_not_encoded_again_in_evaluation() -> None:
    """An evaluation would take many passes for the value of a loss, so it reports no loss."""
    data, module = batch(), tiny.exact_module(Needy("masked")).eval()
    images, texts, _ = module(data)
    assert images.masked is None
    assert texts.masked is None


def test_nothing_is_attached_that_is_not_needed() -> None:
    """Texts without ids are exchanged between ranks, and hard negatives are not encoded."""
    objective, data = Needy(), batch()
    module = tiny.exact_module(objective)
    images, texts = module.supply(*module(data), data)
    assert (texts.ids, images.negatives, images.regions, images.region_texts) == (None, None, None, None)
    assert (images.masked, texts.masked) == (None, None)
    assert (images.views, images.teacher, texts.teacher, module.teacher) == (None, None, None, None)


def test_shares_of_a_box_are_the_parts_of_its_area_in_each_patch() -> None:
    """The shares equal counts of pixels, for boxes that end inside patches."""
    boxes = torch.tensor([[0, 0, 12, 8], [3, 2, 7, 5], [11, 7, 12, 8]])
    found = coverage(boxes.float(), (2, 3), (8, 12))
    for (left, top, right, bottom), shares in zip(boxes.tolist(), found, strict=True):
        pixels = torch.zeros(8, 12)
        pixels[top:bottom, left:right] = 1
        counts = pixels.unfold(0, 4, 4).unfold(1, 4, 4).sum((2, 3)).flatten()
        assert_close(shares, counts / counts.sum())


@pytest.mark.parametrize("need", ["negatives", "regions", "views"])
def test_a_run_without_what_its_objective_needs_ends_before_the_first_step(need: str, tmp_path: Path) -> None:
    """The message names the objective and what is missing."""
    samples = [replace(tiny.data().split("train")[i], phrases=[[]], negatives=[]) for i in range(4)]
    loader = DataLoader(samples, batch_size=2, collate_fn=collate)
    module = tiny.module(Needy(need))
    trainer = tiny.trainer(tmp_path, max_steps=1)
    with pytest.raises(UserError, match=f"Needy needs .*`{need}`.*, which this data does not have"):
        trainer.fit(module, loader, loader)
    assert trainer.global_step == 0


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_cached_features_cannot_be_encoded_again(tmp_path: Path) -> None:
    """The run ends before its first step, and the message names cached features."""
    module = tiny.exact_module(LOUPE(estimator="masked"))
    for tower in module.encoder.towers():
        tower.requires_grad_(False)
        tower.frozen = True
        tower.eval()
    trainer = tiny.trainer(tmp_path, max_steps=1, limit_val_batches=0)
    with pytest.raises(UserError, match=r"LOUPE needs pixels .*`masked`.*cached features have none"):
        trainer.fit(module, tiny.data(features=CachedFeatures(str(tmp_path / "features"))))
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
