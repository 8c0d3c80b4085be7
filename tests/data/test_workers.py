"""Processes that load data: limits on their number, and errors if their batches do not fit or they die."""

from __future__ import annotations

import os
import signal
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset
from torch.utils.data._utils import signal_handling

from patchword.commands.explain import explain
from patchword.data import loader, workers
from patchword.data.batch import Batch, collate
from patchword.data.loader import evaluation_loader, require_numbers, training_loader
from patchword.data.scenes import SceneDataset
from patchword.data.workers import WorkerLoader, bytes_of, most_workers
from patchword.errors import UserError
from patchword.objectives import CLIP
from tests import tiny
from tests.data.shapes import SHAPES, draw

DATA = SceneDataset(8, SHAPES, SHAPES, draw, image_size=32)
IMAGE = 3 * 32 * 32


@pytest.fixture
def shared_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Set the free bytes in shared memory; a test can change them."""
    free = [0]
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: usage(0, 0, free[0]))
    return free


class Stream(IterableDataset):
    """Yields complete batches."""

    def __iter__(self):
        return iter([collate([DATA[i] for i in range(4)])] * 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: training_loader(DATA, 4, 0, 2, 1, 0),
        lambda: evaluation_loader(DATA, 4, 2),
        lambda: WorkerLoader(Stream(), batch_size=None, num_workers=2),
    ],
    ids=["training", "evaluation", "stream"],
)
def test_batches_that_do_not_fit_into_shared_memory_are_refused(make, shared_memory: list[int], monkeypatch) -> None:
    """Too little memory for the batches of two workers is refused, and just enough memory is accepted."""
    with pytest.raises(UserError, match=r"need 0\.5 MB of shared memory, and /dev/shm has 0\.0 MB free"):
        next(iter(make()))
    shared_memory[0] = 2 * workers.QUEUES
    monkeypatch.setattr(workers, "AHEAD", 40)  # for tiny images as many batches as would fill it
    with pytest.raises(UserError, match=r"/dev/shm has 0\.5 MB free: set data\.num_workers to 0") as caught:
        next(iter(make()))
    assert explain(caught.value).startswith("the batches of 2 process(es) that load data need ")
    shared_memory[0] = 2 * 40 * bytes_of(next(iter(Stream())))
    assert len(next(iter(make()))) == 4


def test_without_workers_no_shared_memory_is_needed(shared_memory: list[int]) -> None:
    """The training process does not pass tensors to another process."""
    assert len([*evaluation_loader(DATA, 4, 0)]) == 2


def test_bytes_of_a_batch() -> None:
    """All tensors count, at any depth."""
    batch = collate([DATA[0], DATA[1]])
    assert isinstance(batch, Batch)
    assert bytes_of(batch) == sum(x.nbytes for x in vars(batch).values() if isinstance(x, torch.Tensor))
    assert bytes_of(batch) > 2 * IMAGE
    assert bytes_of({"a": [torch.zeros(2), (torch.zeros(1),)], "b": "text"}) == 12


def test_more_workers_than_a_machine_can_use_are_refused() -> None:
    """Starting ten thousand processes would take hours."""
    require_numbers(1, most_workers())
    with pytest.raises(UserError, match=r"num_workers must be \d+ or less on this machine with \d+ CPU core"):
        require_numbers(1, 10_000)


class Deadly(Dataset):
    """A data set whose second sample kills the process that requests it."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        if index:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_killed_worker_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's error says at once that a worker was killed, also after another run; the line adds what to do."""
    monkeypatch.setattr(loader, "PATIENCE", 60)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # as in a new process; the trainer resets it when it ends
    data = tiny.data(test_size=8, num_workers=1)
    tiny.trainer(tmp_path).test(tiny.module(CLIP()), data, verbose=False)
    with pytest.raises(RuntimeError, match="DataLoader worker") as caught:
        [*evaluation_loader(Deadly(), 1, 1, torch.tensor)]
    assert "is killed by signal" in f"{caught.value} {caught.value.__cause__}", "the loader waited in vain"
    line = explain(caught.value)
    assert line is not None
    assert line.startswith("a process that loads data has ended: DataLoader worker (pid")
    assert "data.num_workers" in line
    assert "\n" not in line


def test_a_worker_that_hangs_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loaders do not wait forever."""
    assert evaluation_loader(DATA, 4, 1).timeout == training_loader(DATA, 4, 0, 1, 1, 0).timeout == workers.PATIENCE
    assert "data.num_workers" in str(explain(RuntimeError("DataLoader timed out after 600 seconds")))
