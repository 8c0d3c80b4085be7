"""Your own images and captions: a folder per split with the images and a `metadata.jsonl`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import Dataset

from patchword.data.batch import Phrase, Sample
from patchword.data.fingerprint import fingerprint, stamps
from patchword.data.metadata import Region, Row, read_metadata
from patchword.data.pixels import Preprocessing, View, read_image
from patchword.data.splits import Splits
from patchword.errors import InputError
from patchword.spec import Specified

OnError = Literal["raise", "skip"]


class CaptionImages(Dataset[Sample]):
    """The images of one folder with their captions.

    An image is scaled so that its shorter side fits, and cropped at the centre; boxes follow. A phrase's mask is its
    box. A phrase whose box lies outside the crop is left out.

    Args:
        folder: Holds the images and `metadata.jsonl`.
        image_size: Height and width in pixels.
        on_error: Of an image that is missing or cannot be decoded, or a caption that is empty: `raise` an error, or
            decode every image now and `skip` what is broken, with a warning that counts it.
        pairs: Make a sample of every caption, as training needs, rather than of every image.

    Raises:
        InputError: If the metadata is not as it should be, an image is missing or a caption is empty; the message
            names file and line. An image that cannot be decoded is an error when it is read.
    """

    def __init__(self, folder: Path, image_size: int, on_error: OnError = "raise", pairs: bool = False) -> None:
        if image_size < 1:
            raise InputError(f"image_size must be a positive number of pixels, not {image_size}")
        self.image_size = image_size
        rows = read_metadata(folder)
        if on_error == "skip":
            rows = _sound(rows, folder)
        for row in rows:
            if problem := _problem(row):
                raise InputError(f"{row.place}: {problem}; correct it, or set on_error to skip")
        self.rows = [pair for row in rows for pair in _pairs(row)] if pairs else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        try:
            image = read_image(row.image)
        except ValueError as error:
            raise InputError(f"{row.place}: {error}; repair or remove it, or set on_error to skip") from error
        view = Preprocessing().view(*image.size, self.image_size)
        phrases: list[list[Phrase]] = [[] for _ in row.captions]
        for region in row.regions:
            if phrase := seen(region, view):
                phrases[region.caption].append(phrase)
        return Sample(row.id, view.image(image), row.captions, phrases, row.negatives)


def seen(region: Region, view: View) -> Phrase | None:
    """The phrase of `region` with box and mask as they are in `view`; None if its box lies outside."""
    if region.box is None:
        return Phrase(region.start, region.end)
    box = view.box(region.box)
    return box and Phrase(region.start, region.end, box, view.mask(box))


class CaptionFolder(Specified, Splits):
    """Your own data: `<root>/train`, `<root>/val` and `<root>/test`, each with images and a `metadata.jsonl`.

    Each line of `metadata.jsonl` is a JSON object: `file_name`; `caption`, or a list `captions`; if you like
    `negatives`, a list of captions that are wrong for the image; and `phrases`, a list of objects with `start` and
    `end` (characters of the caption), if known `box` ([left, top, right, bottom] in pixels of the image) and, where
    there are several captions, `caption` (its index). In training every caption is a sample of its own.

    Args:
        root: The folder that holds the folders of the splits.
        image_size: Height and width in pixels to which images are scaled and cropped.
        batch_size: Images per batch on each device.
        seed: Each seed shuffles in another way.
        num_workers: Processes that read images; 0 reads them in the training process.
        on_error: Of an image that is missing or cannot be decoded, or a caption that is empty: `raise` an error, or
            decode every image before training and `skip` what is broken, with a warning that counts it.

    Raises:
        InputError: At setup, before training, if the data is not as it should be; the message names file and line.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        batch_size: int = 64,
        seed: int = 0,
        num_workers: int = 0,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.image_size = image_size
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.on_error: OnError = on_error
        self._splits: dict[str, CaptionImages] = {}

    def setup(self, stage: str) -> None:
        """Read and check the splits that `stage` needs."""
        for split in {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",)):
            self.split(split)

    def split(self, name: str) -> CaptionImages:
        """The images of a split, read and checked when they are asked for first."""
        if name not in self._splits:
            self._splits[name] = CaptionImages(self.root / name, self.image_size, self.on_error, name == "train")
        return self._splits[name]

    def fingerprint(self, split: str) -> str:
        """Depends on the metadata, on names, sizes and times of the images, and on the options that change samples."""
        files = [self.root / split / "metadata.jsonl", *(row.image for row in self.split(split).rows)]
        return fingerprint(type(self).__name__, split, stamps(files), self.image_size)


def _problem(row: Row) -> str | None:
    """What can be seen to be wrong without opening the image."""
    if not all(caption.strip() for caption in row.captions):
        return "a caption is empty"
    if not row.image.is_file():
        return f"there is no image {row.image}"
    return None


def _sound(rows: list[Row], folder: Path) -> list[Row]:
    """The rows of which caption and image are whole; every image is decoded."""
    problems: list[str] = []
    sound: list[Row] = []
    for row in rows:
        problem = _problem(row)
        if problem is None:
            try:
                read_image(row.image)
            except ValueError as error:
                problem = str(error)
        if problem is None:
            sound.append(row)
        else:
            problems.append(f"{row.place}: {problem}")
    if not sound:
        raise InputError(f"nothing is left of {folder} once broken images are skipped; the first: {problems[0]}")
    if problems:
        rank_zero_warn(f"skipped {len(problems)} of the {len(rows)} images of {folder}; the first: {problems[0]}")
    return sound


def _pairs(row: Row) -> list[Row]:
    """A row for each of the captions; the negatives belong to the first."""
    return [
        replace(
            row,
            captions=[caption],
            regions=[Region(0, r.start, r.end, r.box) for r in row.regions if r.caption == i],
            negatives=row.negatives if i == 0 else [],
        )
        for i, caption in enumerate(row.captions)
    ]
