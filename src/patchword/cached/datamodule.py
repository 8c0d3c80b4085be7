"""Any data with the features of frozen towers: in training in place of images, in evaluation beside them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from patchword.cached.batch import CachedBatch, CachedSample, collate, collate_whole
from patchword.cached.compute import bytes_of, parts, tower_features
from patchword.cached.evaluation import WholeSamples, WithNegatives
from patchword.cached.key import feature_key, key_hash
from patchword.cached.store import FeatureStore, described
from patchword.data.batch import Sample
from patchword.data.batch import collate as collate_samples
from patchword.data.loader import ResumableLoader, evaluation_loader
from patchword.encoders.two_towers import TwoTowers
from patchword.errors import InputError
from patchword.spec import Specified
from patchword.stop import outlive_signals


class CachedFeatures(Specified, LightningDataModule):
    """Samples of `data`, each with what frozen towers make of it: the towers run once, and not every epoch.

    Features of patches and tokens are written to `folder` before the first step, and read from there in this run and in
    every later one with the same towers, tokenizer, samples and precision. Batches come in the order in which `data`
    gives them. Those of training have no pixels; those of validation and test have all that `data` gives them, since
    maps are drawn on images. Prediction runs the towers, as it does without a cache.

    Args:
        data: Any data module whose training samples stay the same from epoch to epoch: no random crops, no stream.
        folder: Where features are kept; all devices must see it.
        dtype: Of the features of training: `float16` takes half the space of `float32`, which is exact. Those of
            validation and test are kept in `float32`, so that what is measured does not depend on the cache.
        num_workers: Processes that read features for training; 0 reads them in the training process. For validation and
            test, which read images, too, `data` says how many.

    Raises:
        InputError: If the towers are not frozen, the encoder is not of two towers with heads, the samples of `data` are
            random, or the disk has not enough space.
    """

    def __init__(
        self,
        data: LightningDataModule,
        folder: str = "features",
        dtype: Literal["float16", "float32"] = "float16",
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if num_workers < 0:
            raise InputError(f"num_workers must be 0 (no extra processes) or more, not {num_workers}")
        self.data = data
        self.folder = Path(folder)
        self.dtype = torch.float16 if dtype == "float16" else torch.float32
        self.num_workers = num_workers
        if data.val_dataloader is None:
            self.val_dataloader = None  # what Lightning takes for no validation

    def prepare_data(self) -> None:
        """As `data` does."""
        self.data.trainer = self.trainer
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """As `data` does."""
        self.data.trainer = self.trainer
        self.data.setup(stage)

    def train_dataloader(self) -> ResumableLoader:
        """Features in the order of the samples of `data`; computes those that are missing."""
        loader = self.data.train_dataloader()
        if not hasattr(self.data, "fingerprint"):
            raise InputError(
                f"{type(self.data).__name__} cannot say what its samples are: give it a fingerprint(split)"
            )
        samples = self.data.fingerprint("train")
        if not isinstance(loader, ResumableLoader):
            raise InputError("features can be cached of samples that have places in a list, not of a stream")
        store = self._features("train", samples, loader.dataset, loader)
        return ResumableLoader(
            store,  # type: ignore[arg-type] # its samples are cached ones
            batch_size=loader.batch_size,
            sampler=loader.sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            worker_init_fn=outlive_signals,
            pin_memory=torch.cuda.is_available(),
            drop_last=True,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator().manual_seed(0),
        )

    def val_dataloader(self) -> Any:
        """That of `data`, with features; computes those that are missing."""
        return self._evaluation_loaders(self.data.val_dataloader(), "val")

    def test_dataloader(self) -> Any:
        """That of `data`, with features; computes those that are missing."""
        return self._evaluation_loaders(self.data.test_dataloader(), "test")

    def predict_dataloader(self) -> Any:
        """That of `data`."""
        return self.data.predict_dataloader()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """As `data` does, for what it has made: not for batches of features alone."""
        bare = isinstance(batch, CachedBatch) and not batch.images.numel()
        return batch if bare else self.data.on_before_batch_transfer(batch, dataloader_idx)

    def _evaluation_loaders(self, loaders: Any, split: str) -> Any:
        """Loaders by the name of their split, or that of one split."""
        if isinstance(loaders, dict):
            return {name: self._evaluation_loader(loader, name) for name, loader in loaders.items()}
        return self._evaluation_loader(loaders, split)

    def _evaluation_loader(self, loader: Any, split: str) -> Any:
        """The samples of `loader` with their features; `loader` itself, if it does not give samples or is not known."""
        ours = isinstance(loader, DataLoader) and loader.collate_fn is collate_samples
        if not ours or not hasattr(self.data, "fingerprint"):
            return loader
        store = self._features(split, self.data.fingerprint(split), WithNegatives(loader.dataset), loader)
        whole = WholeSamples(loader.dataset, store)
        return evaluation_loader(whole, loader.batch_size or 1, loader.num_workers, collate_whole)

    def _encoder(self) -> TwoTowers:
        """The encoder, whose towers are frozen."""
        encoder: Any = self.trainer.lightning_module.encoder  # type: ignore[union-attr]
        if not isinstance(encoder, TwoTowers):
            raise InputError(
                f"{type(encoder).__name__} has no heads apart from its towers, for which features could be cached: use "
                "TwoTowers, or train without CachedFeatures"
            )
        for name, tower in (("image", encoder.image), ("text", encoder.text)):
            if any(p.requires_grad for p in tower.parameters()) or any(part.training for part in tower.modules()):
                raise InputError(
                    f"the {name} tower is not frozen, so that its features change in training: set "
                    f"model.encoder.{name}.freeze to true, or train without CachedFeatures"
                )
        return encoder

    def _features(
        self, split: str, fingerprint: str, samples: Dataset[Sample], loader: DataLoader[Sample]
    ) -> FeatureStore:
        """The features of all `samples`, read as `loader` does; says so if those of another run cannot be used."""
        encoder = self._encoder()
        folder, dtype = (self.folder, self.dtype) if split == "train" else (self.folder / split, torch.float32)
        key = feature_key(encoder, fingerprint, str(self.trainer.precision), dtype)  # type: ignore[union-attr]
        store = FeatureStore(folder / key_hash(key), len(samples))  # type: ignore[arg-type]
        before = None if store.folder.is_dir() else next(iter(described(folder)), None)
        if before is not None:
            changed = ", ".join(name for name, value in key.items() if before.get(name) != value)
            rank_zero_info(f"the features in {folder} were computed with other parts ({changed}): computing anew")
        store.describe(key)
        self._compute(store, encoder, samples, loader, dtype)
        return store

    def _compute(
        self,
        store: FeatureStore,
        encoder: TwoTowers,
        samples: Dataset[Sample],
        loader: DataLoader[Sample],
        dtype: torch.dtype,
    ) -> None:
        """Compute this device's share of what is missing, and wait for the others'."""
        trainer = self.trainer
        assert trainer is not None
        missing = store.missing()
        trainer.strategy.barrier("missing features")  # all have looked before the first one writes
        own = missing[trainer.global_rank :: trainer.world_size]
        batch_size = loader.batch_size or 1
        done: list[CachedSample] = []
        for number, (part, batch, last) in enumerate(parts(store, own, samples, batch_size, loader.num_workers)):
            batch = self.data.on_before_batch_transfer(batch, 0).to(trainer.strategy.root_device)
            done += tower_features(encoder, batch, dtype, trainer.precision_plugin.forward_context())
            if number == 0:
                self._require_space(store, len(missing), done)
            if last:
                store.write(part, done)
                done = []
        trainer.strategy.barrier("features")
        if store.missing():
            raise InputError(f"features are missing in {store.folder}: all devices must see one folder {self.folder}")

    def _require_space(self, store: FeatureStore, files: int, first: list[CachedSample]) -> None:
        """Say how much will be written, and refuse if there is no room for it."""
        samples = min(files * len(store.members(0)), len(store))
        needed = sum(map(bytes_of, first)) / len(first) * samples
        free = float(shutil.disk_usage(store.folder).free)
        rank_zero_info(
            f"computing features of {samples} samples: {_size(needed)} in {store.folder}, where {_size(free)} are free"
        )
        if needed > free:
            raise InputError(
                f"{self.folder}: the features of {samples} samples take {_size(needed)}, and {_size(free)} are free: "
                "name a folder on another disk, or set dtype to float16"
            )


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
