"""Training goes on in the middle of an epoch with exactly the batches that were still to come."""

import warnings

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from patchword.data.loader import evaluation_loader, training_loader
from patchword.data.scenes import SceneDataset
from tests.data.shapes import SHAPES, draw

DATA = SceneDataset(22, SHAPES, SHAPES, draw, image_size=32)  # five batches of four, and two scenes left over


def loader(num_workers=0, seed=0, world_size=1, rank=0):
    return training_loader(DATA, 4, seed, num_workers, world_size, rank)


def ids(batches):
    return [batch.ids.tolist() for batch in batches]


def epochs(loader, count):
    passes = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        passes.append(ids(loader))
    return passes


class Recorder(LightningModule):
    """Keeps the ids of the training batches that it is given."""

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


def fit(num_workers, folder, ckpt_path=None, validate_every=None, **saving):
    """The batches of three epochs, or of what `ckpt_path` leaves of them."""
    model = Recorder()
    keep = ModelCheckpoint(folder, "{step}", save_top_k=-1, **saving)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[keep],
        val_check_interval=validate_every,
        num_sanity_val_steps=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on numbers of workers and on folders in use
        val = evaluation_loader(DATA, 4, 0) if validate_every else None
        trainer.fit(model, loader(num_workers), val, ckpt_path=ckpt_path)
    return model.seen


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("when", "validate_every"),
    [({"every_n_train_steps": 4}, None), ({"save_on_train_epoch_end": True}, None), ({}, 2)],
    ids=["within an epoch", "at its end", "after validation"],
)
def test_lightning_resumes_exactly(tmp_path, num_workers, when, validate_every):
    """Every checkpoint of a run, loaded into a new trainer, gives the rest of the uninterrupted run."""
    whole = fit(num_workers, tmp_path / "whole", validate_every=validate_every, **when)
    checkpoints = list((tmp_path / "whole").glob("*.ckpt"))
    assert len(whole) == 15
    assert len(checkpoints) >= 3
    for checkpoint in checkpoints:
        steps = torch.load(checkpoint, weights_only=True)["global_step"]
        rest = fit(num_workers, tmp_path / "rest", checkpoint, validate_every, **when)
        assert rest == whole[steps:], checkpoint.name


@pytest.mark.parametrize("num_workers", [0, 2])
def test_state_counts_what_was_handed_out(num_workers):
    """Workers prepare batches ahead; counting those would skip them."""
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
    resumed = loader()
    resumed.load_state_dict({"epoch": 0, "batches": 3})
    assert epochs(resumed, 3) == [epochs(loader(), 1)[0][3:], *epochs(loader(), 3)[1:]]


def test_state_of_another_epoch_skips_nothing():
    """A checkpoint from an epoch's end must not shorten the next epoch, even if batches were limited."""
    resumed = loader()
    resumed.load_state_dict({"epoch": 0, "batches": 3})
    resumed.sampler.set_epoch(1)
    assert ids(resumed) == epochs(loader(), 2)[1]


def test_finished_epoch_starts_again():
    resumed = loader()
    resumed.load_state_dict({"epoch": 0, "batches": 5})
    assert len(ids(resumed)) == 5


def test_order_depends_on_seed_and_epoch():
    a, b = epochs(loader(), 2)
    assert a != b
    assert a != epochs(loader(seed=5), 1)[0]
    assert [a, b] == epochs(loader(num_workers=2), 2)


def test_ranks_share_an_epoch():
    """No scene is shown twice in an epoch, and all ranks take equally many steps."""
    shares = [epochs(loader(world_size=2, rank=rank), 1)[0] for rank in (0, 1)]
    assert [len(share) for share in shares] == [2, 2]
    shown = [i for share in shares for batch in share for i in batch]
    assert len(set(shown)) == len(shown)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_random_state_is_left_alone(num_workers):
    """Or dropout would depend on the number of workers and on resumes."""
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
