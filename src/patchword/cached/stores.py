"""The stores of a split, which are completed before they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from patchword.cached.batch import CachedSample
from patchword.cached.compute import text_features, tower_features
from patchword.cached.fill import fill
from patchword.cached.key import feature_key, key_hash, text_key
from patchword.cached.one_run import one_run
from patchword.cached.store import FeatureStore, described
from patchword.cached.texts import WithTexts
from patchword.data.batch import Batch, Sample
from patchword.data.splits import Splits
from patchword.encoders.two_towers import TwoTowers
from patchword.errors import UserError
from patchword.objective import Need


class SplitStores:
    """Computes the missing features of a split.

    Args:
        data: The data module, which is attached to a trainer.
        split: The name of the split.
        folder: The folder of the stores.
        dtype: The type of the features.
        loader: The loader whose batch size and number of workers are used to compute features.

    Raises:
        UserError: If the towers are not frozen, or the encoder is not a `TwoTowers`.
    """

    def __init__(self, data: Splits, split: str, folder: Path, dtype: torch.dtype, loader: DataLoader[Sample]) -> None:
        self.data = data
        self.split = split
        self.folder = folder
        self.dtype = dtype
        self.loader = loader
        trainer: Any = data.trainer
        self.trainer = trainer
        self.encoder = _frozen(trainer.lightning_module.encoder)

    @cached_property
    def key(self) -> dict[str, str]:
        """The key of the features of images and captions."""
        return feature_key(self.encoder, self.data.fingerprint(self.split), str(self.trainer.precision), self.dtype)

    @property
    def needs(self) -> list[Need]:
        """What the objective needs of captions besides their tokens."""
        texts: tuple[Need, ...] = ("negatives", "regions")
        return [need for need in texts if need in self.trainer.lightning_module.objective.needs]

    def images(self, samples: Dataset[Sample]) -> FeatureStore:
        """The features of the images and the captions of `samples`."""

        def compute(batch: Batch) -> list[CachedSample]:
            return tower_features(self.encoder, batch, self.dtype, self.trainer.precision_plugin.forward_context())

        return self._filled(self.folder, self.key, samples, compute)

    def with_texts(
        self, images: FeatureStore, samples: Dataset[Sample], needs: Sequence[Need], own_captions: bool = False
    ) -> FeatureStore | WithTexts:
        """`images` with the texts of `samples`, which has the same images.

        Args:
            images: The features of the images and of captions.
            samples: The samples with the texts.
            needs: What the objective needs of captions besides their tokens.
            own_captions: Whether the captions of `samples` are not those of `images`.
        """
        if not needs and not own_captions:
            return images

        def compute(batch: Batch) -> list[CachedSample]:
            context = self.trainer.precision_plugin.forward_context()
            return text_features(self.encoder, batch, needs, own_captions, self.dtype, context)

        key = text_key(self.key, self.data.made_texts(self.split), needs)
        return WithTexts(images, self._filled(self.folder / "texts", key, samples, compute), own_captions)

    def _filled(
        self,
        folder: Path,
        key: dict[str, str],
        samples: Dataset[Sample],
        compute: Callable[[Batch], list[CachedSample]],
    ) -> FeatureStore:
        """The store of all samples. The log names the parts of the key that differ from those of earlier features."""
        store = FeatureStore(folder / key_hash(key), len(samples))  # type: ignore[arg-type]
        before = None if store.folder.is_dir() else next(iter(described(folder)), None)
        if before is not None:
            changed = ", ".join(name for name, value in key.items() if before.get(name) != value)
            rank_zero_info(f"the features in {folder} cannot be used because these parts have changed: {changed}")
        with one_run(store.folder, self.trainer):
            store.describe(key)
            fill(store, compute, samples, self.loader, self.trainer, self.data.on_before_batch_transfer)
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
