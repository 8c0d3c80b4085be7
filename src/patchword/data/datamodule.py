"""The embedded emoji scenes as a LightningDataModule."""

from __future__ import annotations

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from patchword.data.batch import Sample
from patchword.data.fingerprint import fingerprint
from patchword.data.loader import ResumableLoader, evaluation_loader, training_loader
from patchword.data.memory import Remembered
from patchword.data.negatives import Negative
from patchword.data.scenes import EmojiScenes, Split
from patchword.spec import Specified


class Scenes(Specified, LightningDataModule):
    """Emoji on coloured grounds, with captions, boxes, masks and hard negatives; needs no download.

    Graphics: OpenMoji (https://openmoji.org), CC BY-SA 4.0.

    Args:
        image_size: Height and width in pixels, at least 32.
        batch_size: Scenes per batch on each device.
        train_size: Number of training scenes.
        val_size: Number of validation scenes.
        test_size: Number of scenes in each of the three test sets.
        objects: Smallest and largest number of objects in a scene.
        overlap: Largest share of the smaller of two boxes that the other may cover; 0.3 makes crowded scenes.
        negatives: The kinds of hard negatives, one each where a scene allows it: `colour` and `noun` put a wrong
            word into the caption, `exchange` gives two objects each other's colours.
        shown: Smallest share of its pixels that each object shows: a smaller one, with more overlap, lets objects hide
            one another.
        textured: Stripes, checks, dots and clouds for a background, in place of pastel colours.
        seed: Each seed gives other training scenes in another order. Validation and test scenes are always the same,
            so that runs with different seeds are measured on one thing.
        num_workers: Processes that draw scenes; 0 draws them in the training process, 1 keeps up with a small model.
        remember: With num_workers=0, keep drawn scenes in memory, 18 KB each at 64 pixels, so that only the first
            epoch draws.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        image_size: int = 64,
        batch_size: int = 64,
        train_size: int = 24_000,
        val_size: int = 512,
        test_size: int = 1_024,
        objects: tuple[int, int] = (2, 4),
        overlap: float = 0.05,
        negatives: tuple[Negative, ...] = ("colour", "noun"),
        shown: float = 0.6,
        textured: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        remember: bool = True,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers

        def scenes(split: Split, size: int) -> Dataset[Sample]:
            of_split = seed if split == "train" else 0
            drawn = EmojiScenes(split, size, image_size, objects, overlap, negatives, shown, textured, of_split)
            return Remembered(drawn) if remember and num_workers == 0 else drawn

        self.train = scenes("train", train_size)
        self.val = scenes("val", val_size)
        self.test = {
            "test": scenes("test", test_size),
            "unseen_combinations": scenes("unseen_combinations", test_size),
            "unseen_concepts": scenes("unseen_concepts", test_size),
        }

    def fingerprint(self, split: str) -> str:
        """Depends on the options that the scenes of a split (`train`, `val`, or a test set) are drawn from."""
        kind = split if split in ("train", "val") else "test"
        left_out = {"batch_size", "num_workers", "remember", "train_size", "val_size", "test_size"} - {f"{kind}_size"}
        options = {name: value for name, value in self.spec["init_args"].items() if name not in left_out}
        return fingerprint(type(self).__name__, split, options | ({} if kind == "train" else {"seed": 0}))

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled and resumable; this device's share of the scenes."""
        world_size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return training_loader(self.train, self.batch_size, self.seed, self.num_workers, world_size, rank)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Scenes of the training concepts, in a fixed order."""
        return evaluation_loader(self.val, self.batch_size, self.num_workers)

    def test_dataloader(self) -> dict[str, DataLoader[Sample]]:
        """By name: scenes of the training concepts, of unseen combinations, and of unseen concepts."""
        return {
            name: evaluation_loader(scenes, self.batch_size, self.num_workers) for name, scenes in self.test.items()
        }

    def predict_dataloader(self) -> dict[str, DataLoader[Sample]]:
        """The same as for the test."""
        return self.test_dataloader()
