"""The data module of the scenes provides the right loaders."""

import pytest
import torch
from torch.utils.data import Subset

from patchword.data.batch import Phrase, Sample
from patchword.data.scenes.datamodule import Scenes
from patchword.data.scenes.memory import Remembered


def equal(a, b):
    return (
        torch.equal(a.images, b.images)
        and a.captions == b.captions
        and a.negatives == b.negatives
        and torch.equal(a.phrase_mask, b.phrase_mask)
        and torch.equal(a.phrase_span, b.phrase_span)
        and torch.equal(a.phrase_box, b.phrase_box)
    )


def small(**options):
    return Scenes(batch_size=8, train_size=24, val_size=10, test_size=9, **options)


def test_loaders():
    """Training drops an incomplete batch, evaluation shows all samples, and the test sets have names."""
    data = small()
    assert [len(batch) for batch in data.train_dataloader()] == [8, 8, 8]
    assert [len(batch) for batch in data.val_dataloader()] == [8, 2]
    assert list(data.test_dataloader()) == ["test", "unseen_combinations", "unseen_concepts"]
    assert {name: len(loader.dataset) for name, loader in data.predict_dataloader().items()} == dict.fromkeys(
        data.test_dataloader(), 9
    )


def test_remembering_changes_nothing():
    """The first and second access to a remembered scene both equal a freshly drawn one."""
    fresh, remembered, in_workers = small(remember=False), small(), small(num_workers=2)
    for _ in range(2):
        for a, b in zip(fresh.val_dataloader(), remembered.val_dataloader(), strict=True):
            assert equal(a, b)
    for a, b in zip(fresh.train_dataloader(), in_workers.train_dataloader(), strict=True):
        assert equal(a, b)


def test_every_scene_is_drawn_once():
    calls = []

    class Counting(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            calls.append(index)
            mask = torch.arange(35).view(5, 7) % 3 == 0
            regions = [[Phrase(0, 1, (0.0, 0.0, 1.0, 1.0), mask)], [Phrase(0, 1, (0.0, 0.0, 1.0, 1.0), ~mask)]]
            return Sample(index, torch.zeros(3, 5, 7, dtype=torch.uint8), ["a", "b"], regions[: index + 1], [])

    data = Remembered(Counting())
    for _ in range(3):
        first, second = data[0], data[1]
    assert calls == [0, 1]
    assert torch.equal(first.phrases[0][0].mask, ~second.phrases[1][0].mask)


def test_sample_without_phrases_is_remembered():
    bare = Sample(0, torch.zeros(3, 5, 7, dtype=torch.uint8), ["a"], [[]], [])
    assert Remembered(Subset([bare], [0]))[0].phrases == [[]]


def test_batch_that_is_not_full():
    with pytest.raises(ValueError, match="do not fill a batch"):
        Scenes(train_size=8, batch_size=9).train_dataloader()


def test_seeds_change_training_scenes_and_no_evaluation_scene() -> None:
    """Runs with different seeds are trained on different scenes and evaluated on the same ones."""
    first, second = (Scenes(train_size=4, val_size=4, test_size=4, batch_size=2, seed=seed) for seed in (0, 1))
    assert [first.split("train")[i].captions for i in range(4)] != [second.split("train")[i].captions for i in range(4)]
    assert [first.split("val")[i].captions for i in range(4)] == [second.split("val")[i].captions for i in range(4)]
    for split in first.test_splits:
        assert [first.split(split)[i].captions for i in range(4)] == [second.split(split)[i].captions for i in range(4)]
