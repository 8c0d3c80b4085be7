"""Training resumes in the middle of an epoch with exactly the remaining batches."""

import warnings
from itertools import pairwise

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DistributedSampler

from patchword.data.loader import evaluation_loader, training_loader
from patchword.data.scenes import SceneDataset
from patchword.errors import UserError
from tests.data.shapes import SHAPES, draw

DATA = SceneDataset(22, SHAPES, SHAPES, draw, image_size=32)  # five batches of four, and two scenes left over


def loader(num_workers=0, seed=0, world_size=1, rank=0, batch_size=4):
    return training_loader(DATA, batch_size, seed, num_workers, world_size, rank)


def ids(batches):
    return [batch.ids.tolist() for batch in batches]


def epochs(loader, count):
    passes = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        passes.append(ids(loader))
    return passes


class Recorder(LightningModule):
    """Records the ids of its training batches."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch.ids.tolist()))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(num_workers, folder, ckpt_path=None, validate_every=None, epochs=3, batch_size=4, overfit=0.0, **saving):
    """Train and return the batches of the epochs, or of their remainder after `ckpt_path`."""
    model = Recorder()
    keep = ModelCheckpoint(folder, "{step}", save_top_k=-1, **saving)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[keep],
        val_check_interval=validate_every,
        overfit_batches=overfit,
        num_sanity_val_steps=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on numbers of workers and on folders in use
        val = evaluation_loader(DATA, 4, 0) if validate_every else None
        trainer.fit(model, loader(num_workers, batch_size=batch_size), val, ckpt_path=ckpt_path)
    return model.seen


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("when", "validate_every"),
    [({"every_n_train_steps": 4}, None), ({"save_on_train_epoch_end": True}, None), ({}, 2)],
    ids=["within an epoch", "at its end", "after validation"],
)
def test_lightning_resumes_exactly(tmp_path, num_workers, when, validate_every):
    """Every checkpoint of a run, loaded into a new trainer, continues like the uninterrupted run."""
    whole = fit(num_workers, tmp_path / "whole", validate_every=validate_every, **when)
    checkpoints = list((tmp_path / "whole").glob("*.ckpt"))
    assert len(whole) == 15
    assert len(checkpoints) >= 3
    for checkpoint in checkpoints:
        steps = torch.load(checkpoint, weights_only=True)["global_step"]
        rest = fit(num_workers, tmp_path / "rest", checkpoint, validate_every, **when)
        assert rest == whole[steps:], checkpoint.name


@pytest.mark.parametrize("when", [{"every_n_train_steps": 1}, {"save_on_train_epoch_end": True}])
def test_a_run_that_overfits_a_few_batches_resumes_exactly(tmp_path, when):
    """Lightning replaces the loader's sampler with one that does not know the epoch."""
    whole = fit(0, tmp_path / "whole", overfit=3, **when)
    assert len(whole) == 9
    checkpoints = list((tmp_path / "whole").glob("*.ckpt"))
    assert len(checkpoints) >= 3
    for checkpoint in checkpoints:
        steps = torch.load(checkpoint, weights_only=True)["global_step"]
        assert fit(0, tmp_path / "rest", checkpoint, overfit=3, **when) == whole[steps:], checkpoint.name


@pytest.mark.parametrize("num_workers", [0, 2])
def test_state_counts_what_was_handed_out(num_workers):
    """Workers prepare batches in advance; counting these would skip them."""
    first = loader(num_workers)
    first.sampler.set_epoch(1)
    batches = iter(first)
    begun = [next(batches).ids.tolist() for _ in range(2)]
    state = first.state_dict()
    assert (state["epoch"], state["batches"]) == (1, 2)

    second = loader(num_workers)
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert len(second) == 5
    assert begun + ids(second) == epochs(loader(), 2)[1]


def test_next_epoch_after_a_resume_is_whole():
    """The state comes from an earlier version, which stored only the position."""
    resumed = loader()
    resumed.load_state_dict({"epoch": 0, "batches": 3})
    assert epochs(resumed, 3) == [epochs(loader(), 1)[0][3:], *epochs(loader(), 3)[1:]]


def test_state_of_another_epoch_skips_nothing():
    """A checkpoint from the end of an epoch does not shorten the next epoch, even if batches were limited."""
    resumed = loader()
    resumed.load_state_dict({"epoch": 0, "batches": 3})
    resumed.sampler.set_epoch(1)
    assert ids(resumed) == epochs(loader(), 2)[1]


@pytest.mark.parametrize(("batch_size", "batches"), [(4, 5), (2, 11)])
def test_finished_epoch_starts_again(batch_size, batches):
    """This also holds for another batch size."""
    resumed = loader(batch_size=batch_size)
    resumed.load_state_dict(loader().state_dict() | {"batches": 5})
    assert len(ids(resumed)) == batches


def test_order_depends_on_seed_and_epoch():
    a, b = epochs(loader(), 2)
    assert a != b
    assert a != epochs(loader(seed=5), 1)[0]
    assert [a, b] == epochs(loader(num_workers=2), 2)


def test_ranks_share_an_epoch():
    """No scene is shown twice in an epoch, and all ranks take the same number of steps."""
    shares = [epochs(loader(world_size=2, rank=rank), 1)[0] for rank in (0, 1)]
    assert [len(share) for share in shares] == [2, 2]
    shown = [i for share in shares for batch in share for i in batch]
    assert len(set(shown)) == len(shown)


def test_order_is_that_of_a_distributed_sampler():
    """Results and checkpoints of earlier versions depend on exactly this order."""
    for world_size in (1, 2, 3):
        for rank in range(world_size):
            own = loader(seed=3, world_size=world_size, rank=rank).sampler
            torchs = DistributedSampler(DATA, world_size, rank, shuffle=True, seed=3, drop_last=True)
            for number in (0, 1, 7):
                own.set_epoch(number)
                torchs.set_epoch(number)
                assert list(own) == list(torchs)


def test_data_says_its_order():
    """Ranks and epochs use the data set's own order."""

    class Backwards(SceneDataset):
        def order(self, generator, batch):
            assert batch == 4  # of both ranks
            shift = int(torch.randint(len(self), (), generator=generator))
            return torch.arange(len(self)).flip(0).roll(shift)

    scenes = Backwards(9, SHAPES, SHAPES, draw, image_size=32)
    first, second = (epochs(training_loader(scenes, 2, 0, 0, 2, rank), 2) for rank in (0, 1))
    for number in (0, 1):
        own, others = (torch.tensor(share[number]).flatten().tolist() for share in (first, second))
        order = [i for pair in zip(own, others, strict=True) for i in pair]
        assert all((a - b) % 9 == 1 for a, b in pairwise(order))
    assert first[0] != first[1]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("ranks_before", [1, 2, 3])
def test_other_ranks_go_on_with_the_same_batches(ranks_before, ranks):
    """With the same total batch, every step of all ranks shows the same scenes as before."""

    def steps(count, state=None):
        shares = [training_loader(DATA, 6 // count, 0, 0, count, rank) for rank in range(count)]
        for one in shares:
            one.sampler.set_epoch(2)
            if state:
                one.load_state_dict(state)
        for step in zip(*shares, strict=True):
            yield sorted(i for batch in ids(step) for i in batch), shares[-1].state_dict()

    whole = [step for step, _ in steps(1)]
    assert len(whole) == 3
    for step, (shown, state) in enumerate(steps(ranks_before)):
        assert shown == whole[step]
        if step < 2:
            assert [shown for shown, _ in steps(ranks, state)] == whole[step + 1 :]


@pytest.mark.parametrize(
    ("state", "ranks", "message"),
    [
        (
            {"total_batch": 8},
            1,
            r"\(after batch 1\), with 8 pairs per batch .* 4 on each of 1 .*: set data.batch_size to 8",
        ),
        ({"total_batch": 6}, 2, "6 pairs per batch .* 4 on each of 2 .*: set data.batch_size to 3"),
        ({"total_batch": 7}, 2, "7 pairs per batch .* 4 on each of 2 .*: use a number"),
        ({"samples": 23}, 1, "23 samples, but now there are 22"),
        ({"order": 5}, 1, "in another order: .*seed"),
    ],
)
def test_what_cannot_go_on_is_refused(state, ranks, message):
    """Changes are refused in the middle of an epoch and accepted in another epoch."""
    resumed = loader(world_size=ranks)
    place = resumed.state_dict() | {"epoch": 1, "batches": 1}
    resumed.sampler.set_epoch(1)
    place["order"] = resumed.state_dict()["order"]
    resumed.load_state_dict(place | state)
    with pytest.raises(UserError, match=message):
        next(iter(resumed))
    resumed.load_state_dict(place | state)
    resumed.sampler.set_epoch(2)
    assert len(ids(resumed)) == len(resumed)


def test_another_seed_is_refused():
    """Another order would repeat some scenes of the epoch and leave others out."""
    first, resumed = loader(seed=1), loader(seed=2)
    next(iter(first))
    resumed.load_state_dict(first.state_dict())
    with pytest.raises(UserError, match="samples in another order"):
        next(iter(resumed))


def test_another_batch_after_an_epoch(tmp_path):
    """A checkpoint from the end of an epoch can resume with any batch size."""
    fit(0, tmp_path / "first", epochs=1, save_on_train_epoch_end=True)
    for batch_size, batches in ((2, 11), (8, 2)):
        seen = fit(0, tmp_path / "rest", tmp_path / "first" / "step=5.ckpt", batch_size=batch_size)
        assert [(epoch, number) for epoch, number, _ in seen] == [(e, i) for e in (1, 2) for i in range(batches)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_random_state_is_left_alone(num_workers):
    """Otherwise dropout would depend on the number of workers and on resuming."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    ids(loader(num_workers))
    ids(evaluation_loader(DATA, 4, num_workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_too_few_samples():
    with pytest.raises(ValueError, match=r"22 training samples do not fill a batch of 16 on 2 device"):
        training_loader(DATA, 16, 0, 0, 2, 0)


def test_evaluation_shows_all_in_order():
    assert ids(evaluation_loader(DATA, 8, 0)) == [list(range(8)), list(range(8, 16)), list(range(16, 22))]
