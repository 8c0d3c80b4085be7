"""The embedded emoji scenes as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from lightning import LightningDataModule
from torch.utils.data import Dataset

from patchword.data.augmentation import Views
from patchword.data.batch import Sample
from patchword.data.feature_cache import FeatureCache
from patchword.data.scenes.memory import Remembered
from patchword.data.scenes.negatives import Negative
from patchword.data.scenes.scenes import EmojiScenes, Split
from patchword.data.scenes.views import WithViews
from patchword.data.splits import Splits
from patchword.errors import UserError
from patchword.provenance.fingerprint import fingerprint
from patchword.provenance.spec import Configurable

_LAYOUTS = 2_000  # scenes whose boxes are the source of position priors


class Scenes(Configurable, Splits):
    """Emoji on colored backgrounds, with captions, boxes, masks and hard negatives; needs no download.

    Graphics: OpenMoji (https://openmoji.org), CC BY-SA 4.0.

    Args:
        image_size: Height and width in pixels, from 32 to 4096.
        batch_size: Number of scenes per batch on each device.
        train_size: Number of training scenes.
        val_size: Number of validation scenes.
        test_size: Number of scenes in each of the three test sets.
        objects: Smallest and largest number of objects in a scene.
        overlap: The largest fraction of the smaller of two boxes that the other box may cover; 0.3 makes crowded
            scenes.
        negatives: The kinds of hard negatives; a scene has one of each kind that is possible. `color` and `noun` put a
            wrong word into the caption, `exchange` swaps the colors of two objects.
        shown: The smallest visible fraction of each object's pixels. With a smaller fraction and more overlap, objects
            occlude one another.
        textured: True draws stripes, checks, dots and clouds as backgrounds, False draws pastel colors.
        views: Random crops of a training scene as further views of it, which some objectives need; null for none.
        seed: Seed of the training scenes and their order. Validation and test scenes do not depend on it, so that
            runs with different seeds are evaluated on the same scenes.
        num_workers: Number of processes that draw scenes; 0 draws them in the training process. One process is enough
            for a small model.
        remember: With num_workers=0, keep drawn scenes in memory (18 KB each at 64 pixels), so that only the first
            epoch draws.
        features: A cache of the features of frozen towers, such as `CachedFeatures`.
        test_sets: Other data modules by name that `patchword test` measures as well, such as evaluation suites.

    Raises:
        ValueError: If a number is out of range.
    """

    test_splits: ClassVar[tuple[Split, ...]] = ("test", "unseen_combinations", "unseen_concepts")

    def __init__(
        self,
        image_size: int = 64,
        batch_size: int = 64,
        train_size: int = 24_000,
        val_size: int = 512,
        test_size: int = 1_024,
        objects: tuple[int, int] = (2, 4),
        overlap: float = 0.05,
        negatives: tuple[Negative, ...] = ("color", "noun"),
        shown: float = 0.6,
        textured: bool = False,
        views: Views | None = None,
        seed: int = 0,
        num_workers: int = 0,
        remember: bool = True,
        features: FeatureCache | None = None,
        test_sets: dict[str, LightningDataModule] | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.features = features
        self.views = views
        self.test_sets = test_sets or {}

        def drawn(split: Split, size: int) -> EmojiScenes:
            of_split = seed if split == "train" else 0
            options = {"objects": objects, "overlap": overlap, "negatives": negatives, "shown": shown}
            return EmojiScenes(split, size, image_size, of_split, textured=textured, **options)

        def scenes(split: Split, size: int) -> Dataset[Sample]:
            found = drawn(split, size)
            return Remembered(found) if remember and num_workers == 0 else found

        self.layouts = drawn("train", min(train_size, _LAYOUTS))
        sizes: dict[Split, int] = {"train": train_size, "val": val_size}
        sizes |= dict.fromkeys(self.test_splits, test_size)
        self.scenes: dict[str, Dataset[Sample]] = {name: scenes(name, size) for name, size in sizes.items()}
        if views is not None:
            self.scenes["train"] = WithViews(self.scenes["train"], views, seed)

    def split(self, name: str) -> Dataset[Sample]:
        """Return the scenes of `train`, `val` or a test split."""
        return self.scenes[name]

    def training_boxes(self) -> Iterator[tuple[str, list[tuple[float, float, float, float]]]]:
        """Yield the phrases of the first 2,000 training scenes with their boxes, as fractions of the image's side.

        Positions are random, so that further scenes would hardly change the mean maps.
        """
        side = self.layouts.image_size
        for index in range(len(self.layouts)):
            for phrase, (left, top, right, bottom) in self.layouts.boxes(index):
                yield phrase, [(left / side, top / side, right / side, bottom / side)]

    def fingerprint(self, split: str) -> str:
        """Return a hash of the options that determine the scenes of a split (`train`, `val`, or a test set).

        Raises:
            UserError: If the split is `train` and has views, which differ between epochs.
        """
        if split == "train" and self.views is not None:
            raise UserError(
                "the views of training scenes differ from epoch to epoch, so nothing that is computed from them can be "
                "stored: set data.views to null"
            )
        kind = split if split in ("train", "val") else "test"
        sizes = {"train_size", "val_size", "test_size"} - {f"{kind}_size"}
        left_out = sizes | {"batch_size", "num_workers", "remember", "features", "views", "test_sets"}
        options = {name: value for name, value in self.spec["init_args"].items() if name not in left_out}
        return fingerprint(type(self).__name__, split, options | ({} if kind == "train" else {"seed": 0}))
