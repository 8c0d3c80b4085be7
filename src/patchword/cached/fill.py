"""Fill a store with the features of samples, shared out between the devices of a trainer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any
from warnings import warn

import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from patchword.cached.batch import CachedSample
from patchword.cached.compute import bytes_of
from patchword.cached.store import FeatureStore
from patchword.data.batch import Batch, Sample, collate
from patchword.data.workers import WorkerLoader
from patchword.errors import UserError


def fill(
    store: FeatureStore,
    compute: Callable[[Batch], list[CachedSample]],
    samples: Dataset[Sample],
    loader: DataLoader[Any],
    trainer: Any,
    before_transfer: Callable[[Batch, int], Batch],
) -> None:
    """Compute this device's share of missing and damaged files, and wait for the other devices.

    A progress bar counts the images, unless `trainer.enable_progress_bar` is false. At the end, the log contains the
    number of images per second.

    Args:
        store: The store.
        compute: Function that computes the features of the samples of a batch.
        samples: The samples whose features the store contains.
        loader: The loader whose batch size and number of workers are used.
        trainer: The `Trainer`.
        before_transfer: A function of a batch and 0 that is called before the batch is moved to the device.

    Raises:
        UserError: If the disk does not have enough space, a feature is not finite, or another device has written its
            files to another folder.
    """
    for path in store.remove_broken(store.parts[trainer.global_rank :: trainer.world_size]):
        warn(f"{path} is truncated or damaged: its features are computed again", stacklevel=2)
    trainer.strategy.barrier("broken features")
    missing = store.missing()
    trainer.strategy.barrier("missing features")  # all devices have listed the files before one writes a file
    own = missing[trainer.global_rank :: trainer.world_size]
    start = time.perf_counter()
    done: list[CachedSample] = []
    with _bar(trainer, sum(len(store.members(part)) for part in own)) as bar:
        batches = _batches(store, own, samples, loader.batch_size or 1, loader.num_workers)
        for number, (part, batch, last) in enumerate(batches):
            batch = before_transfer(batch, 0).to(trainer.strategy.root_device)
            done += compute(batch)
            if number == 0:
                _require_space(store, len(missing), done)
            bar.update(len(batch))
            if last:
                store.write(part, done)
                done = []
    trainer.strategy.barrier("features")
    if store.missing():
        raise UserError(f"features are missing in {store.folder}: all devices must have access to this folder")
    if missing:
        images, seconds = sum(len(store.members(part)) for part in missing), time.perf_counter() - start
        rank_zero_info(f"computed the features of {images} images in {seconds:.0f} s ({images / seconds:.1f} images/s)")


def _bar(trainer: Any, images: int) -> Tqdm:
    """A progress bar on the first device."""
    shown = images > 0 and trainer.global_rank == 0 and trainer.progress_bar_callback is not None
    return Tqdm(total=images, desc="Features", unit=" images", disable=not shown, dynamic_ncols=True)


def _batches(
    store: FeatureStore, wanted: list[int], samples: Dataset[Sample], batch_size: int, num_workers: int
) -> Iterator[tuple[int, Batch, bool]]:
    """For each batch of the files `wanted`: the number of the file, the batch, and whether it is the file's last."""
    plan = [
        (part, [*members[start : start + batch_size]], start + batch_size >= len(members))
        for part in wanted
        for members in [store.members(part)]
        for start in range(0, len(members), batch_size)
    ]
    loader = WorkerLoader(
        samples,
        batch_sampler=[indices for _, indices, _ in plan],
        num_workers=num_workers,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(0),
    )
    for (part, _, last), batch in zip(plan, loader, strict=True):
        yield part, batch, last


def _require_space(store: FeatureStore, files: int, first: list[CachedSample]) -> None:
    """Log the size of the features, and require enough space on the disk."""
    samples = min(files * len(store.members(0)), len(store))
    needed = sum(map(bytes_of, first)) / len(first) * samples
    free = float(shutil.disk_usage(store.folder).free)
    rank_zero_info(
        f"computing features of {samples} samples: {_size(needed)} in {store.folder} ({_size(free)} are free)"
    )
    if needed > free:
        raise UserError(
            f"{store.folder}: the features of {samples} samples need {_size(needed)}, but only {_size(free)} are free: "
            "set folder to a folder on another disk, or set dtype to float16"
        )


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
