"""A cache that adds the features of frozen towers to the samples of a data module."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from patchword.cached.batch import collate, collate_whole
from patchword.cached.draws import DrawnFeatures
from patchword.cached.evaluation import WholeSamples, WithNegatives
from patchword.cached.fill import fill
from patchword.cached.key import feature_key, key_hash
from patchword.cached.one_run import one_run
from patchword.cached.store import FeatureStore, described
from patchword.data.batch import Sample
from patchword.data.draws import DrawsCaptions
from patchword.data.feature_cache import FeatureCache
from patchword.data.loader import ResumableLoader, evaluation_loader, require_numbers
from patchword.data.splits import Splits
from patchword.data.worker_signals import outlive_signals
from patchword.data.workers import PATIENCE
from patchword.encoders.two_towers import TwoTowers
from patchword.errors import UserError
from patchword.provenance.spec import Configurable


class CachedFeatures(Configurable, FeatureCache):
    """Features of frozen towers that are computed once instead of in every epoch.

    The features of patches and tokens are written to `folder` before the first step. This run and every later run with
    the same towers, tokenizer, samples and precision read them from there. If several runs start together, one of them
    computes the features, and the others wait for it. Each image and each caption is computed once, also if captions of
    an image are drawn in each epoch: all draws use the same features. The batches are those without a cache, in the
    same order. Training batches have no pixels. Validation and test batches keep all parts of the samples, because maps
    are drawn on images. Prediction runs the towers and does not use the cache.

    Args:
        folder: The folder of the features. All devices must have access to it.
        dtype: The type of the training features. `float16` needs half the space; `float32` is exact. Validation and
            test features are always stored in `float32`, so that metrics do not depend on the cache.
        num_workers: The number of processes that read training features. 0 reads them in the training process.
            Validation and test, which also read images, use the number of workers of the data module.

    Raises:
        UserError: If the towers are not frozen, the encoder is not a `TwoTowers`, training images are random, or the
            disk does not have enough space.
    """

    def __init__(
        self, folder: str = "features", dtype: Literal["float16", "float32"] = "float16", num_workers: int = 0
    ) -> None:
        super().__init__()
        require_numbers(1, num_workers)
        self.folder = Path(folder)
        self.dtype = torch.float16 if dtype == "float16" else torch.float32
        self.num_workers = num_workers

    def training_loader(self, data: Splits, loader: Any) -> ResumableLoader:
        """Return a loader of features in the order of `loader`. Missing features are computed first.

        Raises:
            UserError: If the samples have no indices, or as for the class.
        """
        if not isinstance(loader, ResumableLoader):
            raise UserError("features can be cached for samples with indices, and not for a stream")
        dataset: Any = loader.dataset
        if isinstance(dataset, DrawsCaptions):
            dataset = DrawnFeatures(dataset, self._features(data, "train", dataset.whole, loader))
        else:
            dataset = self._features(data, "train", dataset, loader)
        return ResumableLoader(
            dataset,
            batch_size=loader.batch_size,
            sampler=loader.sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            worker_init_fn=outlive_signals,
            pin_memory=torch.cuda.is_available(),
            drop_last=True,
            persistent_workers=self.num_workers > 0,
            timeout=PATIENCE if self.num_workers else 0,
            generator=torch.Generator().manual_seed(0),
        )

    def evaluation_loader(self, data: Splits, loader: DataLoader[Sample], split: str) -> DataLoader[Any]:
        """Return a loader of samples with their features. Missing features are computed first."""
        store = self._features(data, split, WithNegatives(loader.dataset), loader)
        whole = WholeSamples(loader.dataset, store)
        return evaluation_loader(whole, loader.batch_size or 1, loader.num_workers, collate_whole)

    def _features(self, data: Splits, split: str, samples: Dataset[Sample], loader: DataLoader[Sample]) -> FeatureStore:
        """The features of all `samples`. The log names the parts of the key that differ from those of earlier features.

        Args:
            data: The data module.
            split: The name of the split.
            samples: The samples.
            loader: The loader whose batch size and number of workers are used to compute features.
        """
        trainer: Any = data.trainer
        encoder = _frozen(trainer.lightning_module.encoder)
        folder, dtype = (self.folder, self.dtype) if split == "train" else (self.folder / split, torch.float32)
        key = feature_key(encoder, data.fingerprint(split), str(trainer.precision), dtype)
        store = FeatureStore(folder / key_hash(key), len(samples))  # type: ignore[arg-type]
        before = None if store.folder.is_dir() else next(iter(described(folder)), None)
        if before is not None:
            changed = ", ".join(name for name, value in key.items() if before.get(name) != value)
            rank_zero_info(f"the features in {folder} cannot be used because these parts have changed: {changed}")
        with one_run(store.folder, trainer):
            store.describe(key)
            fill(store, encoder, samples, loader, dtype, trainer, data.on_before_batch_transfer)
        return store


def _frozen(encoder: Any) -> TwoTowers:
    """Check that the towers of an encoder are frozen."""
    if not isinstance(encoder, TwoTowers):
        raise UserError(
            f"{type(encoder).__name__} has no heads that are separate from its towers, which cached features need: "
            "use TwoTowers, or train without data.features"
        )
    for name, tower in (("image", encoder.image), ("text", encoder.text)):
        if any(p.requires_grad for p in tower.parameters()) or any(part.training for part in tower.modules()):
            raise UserError(
                f"the {name} tower is not frozen, so its features change during training: set "
                f"model.encoder.{name}.freeze to true, or train without data.features"
            )
    return encoder
