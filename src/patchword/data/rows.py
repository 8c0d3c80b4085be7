"""A row of a table, with an image and captions, becomes a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any, Literal

from PIL import Image

from patchword.data.augmentation import random_crop
from patchword.data.batch import Phrase, Sample
from patchword.data.folder import seen
from patchword.data.metadata import Region, read_regions
from patchword.data.phrases import phrase_finder
from patchword.data.pixels import Preprocessing, View, read_image
from patchword.data.safe_path import inside
from patchword.data.sentences import sentences
from patchword.errors import InputError
from patchword.hub import Repository

Row = Mapping[str, Any]
Captions = Literal["first", "sample", "all"]
Augmentation = Literal["none", "crop"]

LONGEST_NAME = 200  # of a row in a message: what should be a path may be a whole image as text


class BrokenSample(InputError):
    """A sample that cannot be read, and may be passed over; the message does not name it."""


@dataclass(frozen=True)
class Columns:
    """Where a row holds what.

    Attributes:
        image: The column with the image (encoded, or the path of its file), or a path with columns in braces, as
            Python formats it: `{key:.5}/{key}.jpg`.
        captions: The columns with captions, each one text or a list. A dot leads into a column of records:
            `json.caption`.
        phrases: The column with phrases; None if they do not come from the data.
    """

    image: str
    captions: list[str]
    phrases: str | None

    def check(self, row: Row, place: str) -> None:
        """Look whether a first row has these columns, with what they should hold.

        Raises:
            InputError: If not; the message begins with `place`.
        """
        known = ", ".join(row)
        if "{" not in self.image:
            _require(row, self.image, "data.image", place)
        else:
            try:
                self.image.format_map(row)
            except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
                raise InputError(
                    f"{place}: data.image {self.image!r} does not fit the columns {known} ({error})"
                ) from error
        for name in self.captions:
            _require(row, name, "data.caption", place)
        if self.phrases is not None:
            _require(row, self.phrases, "data.phrases", place)


@dataclass(frozen=True)
class RowReader:
    """Makes samples of rows.

    Attributes:
        columns: Where a row holds what.
        root: The folder that image paths are relative to, and must not leave.
        preprocessing: How an image becomes a square.
        size: Height and width of the square in pixels.
        max_pixels: Images with more pixels are broken samples; None for Pillow's limit.
        captions: Which of an image's captions training sees.
        captions_per_image: Of all captions so many; None for as many as there are.
        by_sentence: In training, whether every sentence of a caption is a caption.
        augmentation: What training does to images.
        phrases: What the phrases are; see `patchword.data.phrases`.
        repository: The data set of the hub that the rows are; a stream's image files are fetched from it.
    """

    columns: Columns
    root: Path
    preprocessing: Preprocessing
    size: int
    max_pixels: int | None = None
    captions: Captions = "first"
    captions_per_image: int | None = None
    by_sentence: bool = False
    augmentation: Augmentation = "none"
    phrases: str = "none"
    repository: Repository | None = None
    _find: Any = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_find", phrase_finder(self.phrases))

    def train(self, row: Row, id: int, place: str, random: Random) -> Sample:
        """The sample that training sees; its phrases have no boxes.

        Args:
            row: The row.
            id: The sample's id.
            place: Names the row in messages.
            random: Decides what is left to chance.

        Raises:
            BrokenSample: If the image cannot be decoded, or all captions are empty.
            InputError: If a column holds something else, or a path leads out of the folder; the message names the row.
        """
        captions = self._captions(row, place)
        regions = [Region(r.caption, r.start, r.end, None) for r in self._regions(row, captions, place)]
        if self.by_sentence:
            captions, regions = _by_sentence(captions, regions)
        chosen = self._chosen(_filled(captions), random)
        image = self._image(row, place)
        view = self.preprocessing.view(*image.size, self.size)
        if self.augmentation == "crop":
            view = random_crop(*image.size, self.size, self.preprocessing.interpolation, random)
        return _sample(id, image, view, [captions[i] for i in chosen], _of(regions, chosen))

    def _chosen(self, captions: list[int], random: Random) -> list[int]:
        """The captions that training sees, of those that are not empty."""
        if self.captions != "all":
            return [captions[0] if self.captions == "first" else random.choice(captions)]
        wanted = self.captions_per_image or len(captions)
        return random.sample(captions, wanted) if wanted < len(captions) else [*islice(cycle(captions), wanted)]

    def evaluate(self, row: Row, id: int, place: str) -> Sample:
        """The sample that evaluation sees: all captions as they are, phrases with their boxes; as `train` otherwise."""
        captions = self._captions(row, place)
        regions = self._regions(row, captions, place)
        image = self._image(row, place)
        view = self.preprocessing.view(*image.size, self.size)
        chosen = _filled(captions)
        return _sample(id, image, view, [captions[i] for i in chosen], _of(regions, chosen))

    def path(self, row: Row, place: str) -> Path | None:
        """The file of a row's image; None if the row holds the image itself."""
        image = self._cell(row)
        if isinstance(image, dict):
            image = None if image.get("bytes") is not None else image.get("path")
        return inside(self.root, image, place) if isinstance(image, str) else None

    def name(self, row: Row) -> str | None:
        """What a user calls the row: its key or its image's path, if it has one."""
        if "__key__" in row:
            return f"{row.get('__url__', '')}: {row['__key__']}"
        image = self._cell(row)
        if isinstance(image, dict):
            image = image.get("path")
        named = image if isinstance(image, str) else row.get("key")
        return named[:LONGEST_NAME] if isinstance(named, str) else None

    def _cell(self, row: Row) -> Any:
        return self.columns.image.format_map(row) if "{" in self.columns.image else cell(row, self.columns.image)

    def _image(self, row: Row, place: str) -> Image.Image:
        image = self._cell(row)
        if isinstance(image, dict):
            image = image.get("path") if image.get("bytes") is None else image["bytes"]
        if image is None or image in ("", b""):
            raise BrokenSample("it has no image")
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            raise InputError(
                f"{place}: {image[:80]} is an address, not an image: download the images first, as with img2dataset, "
                "and read what that has written"
            )
        if self.repository is not None and isinstance(image, str) and image.startswith("hf://"):
            try:
                image = self.repository.read(image, place)
            except FileNotFoundError as error:
                raise BrokenSample(str(error)) from error
        if not isinstance(image, (str, bytes)):
            raise InputError(f"{place}: column {self.columns.image} holds no image but a {type(image).__name__}")
        file = BytesIO(image) if isinstance(image, bytes) else inside(self.root, image, place)
        if isinstance(file, Path) and not file.is_file():
            raise BrokenSample(f"there is no image {file}")
        try:
            return read_image(file, self.max_pixels)
        except InputError as error:
            raise BrokenSample(str(error)) from error

    def _captions(self, row: Row, place: str) -> list[str]:
        found = []
        for name in self.columns.captions:
            value = cell(row, name)
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, bytes):
                    text = text.decode("utf-8", errors="replace")
                if not isinstance(text, str | None):
                    raise InputError(f"{place}: column {name} must hold text, not {str(text)[:40]!r}")
                found.append((text or "").strip() if self.columns.phrases is None else text or "")
        if not any(map(str.strip, found)):
            raise BrokenSample("its caption is empty")
        return found

    def _regions(self, row: Row, captions: list[str], place: str) -> list[Region]:
        if self._find is not None:
            found = ((i, span) for i, caption in enumerate(captions) for span in self._find(caption))
            return [Region(i, start, end, None) for i, (start, end) in found]
        if self.columns.phrases is None:
            return []
        return read_regions(cell(row, self.columns.phrases) or [], captions, place)


def cell(row: Row, name: str) -> Any:
    """What a row holds in a column, or, of `column.field`, in a field of the column's record; None if nothing."""
    if name in row:
        return row[name]
    column, _, rest = name.partition(".")
    record = row.get(column)
    return cell(record, rest) if rest and isinstance(record, dict) else None


def _require(row: Row, name: str, option: str, place: str) -> None:
    if name in row or ("." in name and cell(row, name) is not None):
        return
    addresses = any(str(text).startswith("http") for text in (*row, *row.values()))
    hint = "; of addresses, download the images first, as with img2dataset" if addresses else ""
    raise InputError(f"{place} has no column {name!r} but {', '.join(row)}: set {option}{hint}")


def _by_sentence(captions: list[str], regions: list[Region]) -> tuple[list[str], list[Region]]:
    """Every sentence as a caption, and the phrases that lie in one."""
    found: list[str] = []
    moved: list[Region] = []
    for number, caption in enumerate(captions):
        for start, end in sentences(caption):
            moved += [
                Region(len(found), r.start - start, r.end - start, r.box)
                for r in regions
                if r.caption == number and start <= r.start and r.end <= end
            ]
            found.append(caption[start:end])
    return found, moved


def _filled(captions: list[str]) -> list[int]:
    return [i for i, caption in enumerate(captions) if caption.strip()]


def _of(regions: list[Region], captions: list[int]) -> list[list[Region]]:
    return [[region for region in regions if region.caption == caption] for caption in captions]


def _sample(id: int, image: Image.Image, view: View, captions: list[str], regions: list[list[Region]]) -> Sample:
    phrases: list[list[Phrase]] = [
        [phrase for region in of_caption if (phrase := seen(region, view))] for of_caption in regions
    ]
    return Sample(id, view.image(image), captions, phrases, [])
