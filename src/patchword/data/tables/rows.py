"""Turn rows of a table, with an image and captions, into samples."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any, Literal
from warnings import catch_warnings, simplefilter

from patchword.data.augmentation import SCALE, Views, random_crop
from patchword.data.batch import Sample
from patchword.data.pixels import Box, Decoded, Preprocessing, View, decode, open_image, upright_size
from patchword.data.skipping import BrokenSample
from patchword.data.tables.phrases import phrase_finder
from patchword.data.tables.regions import Region, read_regions
from patchword.data.tables.safe_path import inside
from patchword.data.tables.swaps import Swaps
from patchword.data.tables.texts import CaptionText, Join, by_sentence, joined
from patchword.data.tables.zips import archive, is_zipped, read_zipped
from patchword.data.tars.members import no_member
from patchword.errors import UserError
from patchword.files.json_text import parse_json
from patchword.files.printable import printable
from patchword.provenance.hub import Repository

Row = Mapping[str, Any]
Captions = Literal["first", "sample", "all"]
Augmentation = Literal["none", "crop"]

LONGEST = 1_000_000  # characters; longer texts are not captions
LONGEST_NAME = 200  # characters of a row's name in messages; a path column can contain a complete image as text

_LIST = re.compile(r"\s*\[\s*[\"'].*[\"']\s*\]\s*", re.DOTALL)


@dataclass(frozen=True)
class Columns:
    """The names of a row's columns.

    Attributes:
        image: The column with the image (encoded, or the path of its file), or a path with columns in braces, which is
            formatted as in Python: `{key:.5}/{key}.jpg`.
        captions: The columns with captions, each a text or a list. Dots select fields of records; see `cell`.
        phrases: The column with phrases; None if phrases do not come from the data.
        negatives: The column with captions that are wrong for the image, a text or a list; None for no such column.
        size: The column with the width and height of the stored image that boxes refer to. None if boxes refer to the
            image itself, rotated as its EXIF orientation says.
    """

    image: str
    captions: list[str]
    phrases: str | None
    negatives: str | None = None
    size: str | None = None

    @property
    def names(self) -> list[str]:
        """All column names."""
        return [self.image, *self.captions, *(name for name in (self.phrases, self.negatives) if name is not None)]

    def check(self, rows: Iterable[Row], place: str) -> None:
        """Check that one of the first hundred rows has these columns with suitable content.

        Raises:
            UserError: If no row has them; the message begins with `place` and describes the first row.
        """
        problem: UserError | None = UserError(f"{place} has no rows")
        for number, row in enumerate(islice(rows, 100)):
            found = self._problem(row, place)
            problem = found if number == 0 or found is None else problem
            if problem is None:
                return
        assert problem is not None
        raise problem

    def _problem(self, row: Row, place: str) -> UserError | None:
        if "{" in self.image:
            try:
                self.image.format_map(row)
            except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
                known = _known(row)
                return UserError(f"{place}: data.image {self.image!r} does not fit the columns {known} ({error})")
        options = [*(("data.caption", name) for name in self.captions), ("data.phrases", self.phrases)]
        for option, name in [("data.image", self.image), *options, ("data.negatives", self.negatives)]:
            if name is not None and "{" not in name and (problem := _missing(row, name)):
                return UserError(f"{place} {problem}: set {option}{_hint(row)}")
        return None


@dataclass(frozen=True)
class RowReader:
    """Turn rows into samples.

    Attributes:
        columns: The names of the columns.
        root: The folder that image paths are relative to and must not leave.
        preprocessing: How an image becomes a square.
        size: Height and width of the square in pixels.
        max_pixels: Images with more pixels are broken samples; None for Pillow's limit.
        captions: Which of an image's captions training sees.
        captions_per_image: With `all` captions, their number per image; None uses as many as there are.
        by_sentence: True turns every sentence of a caption into a caption in training.
        augmentation: The augmentation of images in training.
        phrases: The source of phrases; see `patchword.data.tables.phrases`.
        join: The long texts that are made from captions in training; see `patchword.data.tables.texts`.
        swaps: The spaCy model that finds the words whose swap makes hard negatives; None makes none.
        repository: The hub data set that the rows come from; image files of a stream are fetched from it. None for
            files and folders.
        views: Further views of images in training; None for none.
        scaled_decoding: True decodes JPEGs at 1/2, 1/4 or 1/8 of their size if the model sees no more pixels.
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
    join: Join = "none"
    swaps: str | None = None
    repository: Repository | None = None
    views: Views | None = None
    scaled_decoding: bool = False
    _find: Any = field(init=False, default=None, repr=False)
    _swap: Any = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        if self.augmentation == "crop" and self.preprocessing.resize_mode == "native":
            raise UserError(
                "data.augmentation is crop, whose crops become squares, but images keep their shape (resize_mode: "
                "native): set data.augmentation to none, or data.resize_mode to crop or stretch"
            )
        if self.scaled_decoding and self.views is not None:
            raise UserError(
                "data.scaled_decoding is true, but the small crops of data.views need all pixels: set "
                "data.scaled_decoding to false, or data.views to null"
            )
        object.__setattr__(self, "_find", phrase_finder(self.phrases))
        object.__setattr__(self, "_swap", None if self.swaps is None else Swaps(self.swaps))

    def train(self, row: Row, id: int, place: str, random: Random) -> Sample:
        """Make a training sample with hard negatives; its phrases have boxes, but no masks.

        Args:
            row: The row.
            id: The sample's id.
            place: The name of the row in messages.
            random: The source of random numbers.

        Raises:
            BrokenSample: If the image cannot be decoded, or all captions are empty.
            UserError: If a column has the wrong content, or a path leaves the folder; the message names the row.
        """
        texts = self.training_texts(row, place)
        image, picture = self._image(row, place)
        chosen = [texts[i] for i in self.chosen(len(texts), random)]
        view = self.preprocessing.view(*image.size, self.size)
        if self.augmentation == "crop":
            view = random_crop(*image.size, self.size, self.preprocessing.interpolation, random)
        sample = self._training_sample(row, image, view, chosen, id, picture)
        if self.views is None:
            return sample
        large, small = self.views.of(image.image, self.size, self.preprocessing.interpolation, random)
        return replace(sample, global_views=large, local_views=small)

    def whole(self, row: Row, texts: list[CaptionText], id: int, place: str) -> Sample:
        """Make a training sample without random choices: the image as a whole, with all `texts`.

        Args:
            row: The row with the image.
            texts: The `training_texts` of all rows with this image.
            id: The sample's id.
            place: The name of the row in messages.

        Raises:
            BrokenSample: If the image cannot be decoded.
            UserError: As for `train`.
        """
        image, picture = self._image(row, place)
        return self._training_sample(row, image, self.preprocessing.view(*image.size, self.size), texts, id, picture)

    def training_texts(self, row: Row, place: str) -> list[CaptionText]:
        """Return the texts that training can see, made from captions; empty captions are left out.

        Raises:
            BrokenSample: If all captions are empty.
            UserError: If a column has the wrong content; the message names the row.
        """
        captions = self._captions(row, place)
        regions, negatives = self._regions(row, captions), self._negatives(row, place)
        of_captions = ((captions[i], [r for r in regions if r.caption == i]) for i in _filled(captions))
        texts = [CaptionText(caption, own, negatives) for caption, own in of_captions]
        return joined(by_sentence(texts) if self.by_sentence else texts, self.join)

    def chosen(self, texts: int, random: Random) -> list[int]:
        """Choose among an image's texts, of which there are `texts`; returns their indices.

        With `all` captions, the long text of `join: all` is always the first one.
        """
        if self.captions != "all":
            return [0 if self.captions == "first" else random.randrange(texts)]
        first = [0] if self.join == "all" else []
        others = range(len(first), texts)
        wanted = (self.captions_per_image or texts) - len(first)
        drawn = random.sample(others, wanted) if wanted < len(others) else [*islice(cycle(others), wanted)]
        return first + drawn

    def evaluate(self, rows: list[Row], id: int, place: str) -> Sample:
        """Make an evaluation sample with all captions, phrases with their boxes, and hard negatives.

        Args:
            rows: One row, or several rows with the same image, whose captions are combined.
            id: The sample's id.
            place: The name of the first row in messages.

        Raises:
            BrokenSample: As for `train`.
            UserError: As for `train`.
        """
        captions: list[str] = []
        regions: list[Region] = []
        for row in rows:
            own = self._captions(row, place)
            regions += [replace(r, caption=r.caption + len(captions)) for r in self._regions(row, own)]
            captions += own
        chosen = _filled(captions)
        negatives = self._negatives(rows[0], place) + self._swapped(captions[chosen[0]])
        image, picture = self._image(rows[0], place)
        view = self.preprocessing.view(*image.size, self.size)
        regions = self._scaled(regions, rows[0], image)
        phrases = [
            [phrase for r in regions if r.caption == i and (phrase := r.phrase(view)) is not None] for i in chosen
        ]
        return Sample(id, image.seen(view), [captions[i] for i in chosen], phrases, negatives, picture=picture)

    def boxes(self, row: Row, place: str) -> Iterator[tuple[str, list[Box]]]:
        """Yield the text of each phrase of a row and its boxes.

        The edges of boxes are fractions of what the model sees of the image, from 0 to 1. Phrases without a box in view
        are left out. The image is not decoded.

        Args:
            row: The row.
            place: The name of the row in messages.

        Raises:
            BrokenSample: If the header of the image cannot be read.
            UserError: As for `train`.
        """
        captions = self._captions(row, place)
        regions = [region for region in self._regions(row, captions) if region.boxes]
        if regions:
            view = self.preprocessing.view(*(self.annotated_size(row) or self._size(row, place)), self.size)
            view = replace(view, size=1, shape=None)
            for region in regions:
                if found := [box for one in region.boxes if (box := view.box(one)) is not None]:
                    yield captions[region.caption][region.start : region.end], found

    def annotated_size(self, row: Row) -> tuple[int, int] | None:
        """Return the width and height that a row's boxes refer to; None if they refer to the row's image itself."""
        size = None if self.columns.size is None else row.get(self.columns.size)
        return None if size is None else (size[0], size[1])

    def resized(self, row: Row, place: str) -> str:
        """Describe how the stored image of a row differs in size from its annotations; empty if it does not."""
        annotated = self.annotated_size(row)
        if annotated is None:
            return ""
        try:
            with open_image(self._file(row, place)[0]) as image:
                width, height = image.size
        except (BrokenSample, OSError):  # samples report this
            return ""
        if annotated == (width, height):
            return ""
        return f"{place} has {width} x {height} pixels, its annotations {annotated}: boxes are scaled with their images"

    def address(self, row: Row) -> str | None:
        """Return the path or zip address of a row's image as written; None if the row contains the image."""
        image = self._cell(row)
        if isinstance(image, dict):
            image = None if image.get("bytes") is not None else image.get("path")
        return image if isinstance(image, str) and image else None

    def path(self, row: Row, place: str) -> Path | None:
        """Return the file of a row's image, or the zip file with the image; None if the row contains the image."""
        image = self.address(row)
        if image is None:
            return None
        return archive(self.root, image, place) if is_zipped(image) else inside(self.root, image, place)

    def name(self, row: Row) -> str | None:
        """Return the row's key or the path of its image; None if it has neither."""
        if "__key__" in row:
            return f"{row.get('__url__', '')}: {row['__key__']}.*"
        image = self._cell(row)
        if isinstance(image, dict):
            image = image.get("path")
        named = image if isinstance(image, str) else row.get("key")
        return named[:LONGEST_NAME] if isinstance(named, str) else None

    def _cell(self, row: Row) -> Any:
        return self.columns.image.format_map(row) if "{" in self.columns.image else cell(row, self.columns.image)

    def _image(self, row: Row, place: str) -> tuple[Decoded, int]:
        """Return the image, and a number that is equal for equal files within a process."""
        file, number = self._file(row, place)
        try:
            upright = self.annotated_size(row) is None
            return decode(file, self.max_pixels, upright, self._spare if self.scaled_decoding else None), number
        except (OSError, ValueError) as error:
            raise BrokenSample(str(error)) from error

    def _spare(self, width: int, height: int) -> float:
        """Return the factor by which an image can be reduced without being enlarged afterwards."""
        whole = self.preprocessing.view(width, height, self.size)
        # A random crop has at least this share of the shorter side: its area has it, and no side exceeds the image's.
        kept = SCALE[0] - 1 / min(width, height) if self.augmentation == "crop" else 1.0
        return kept / max(whole.scale)

    def _size(self, row: Row, place: str) -> tuple[int, int]:
        """Return the width and height of the upright image."""
        try:
            return upright_size(self._file(row, place)[0])
        except (OSError, ValueError) as error:
            raise BrokenSample(str(error)) from error

    def _file(self, row: Row, place: str) -> tuple[Path | BytesIO, int]:
        """Return the file of the image, and a number that is equal for equal files within a process."""
        image = self._cell(row)
        if isinstance(image, dict):
            image = image.get("path") if image.get("bytes") is None else image["bytes"]
        if image is None and "__key__" in row:
            raise BrokenSample(no_member(self.columns.image))
        if image is None or image in ("", b""):
            raise BrokenSample("it has no image")
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            raise UserError(
                f"{place}: {image[:80]} is an address, not an image: download the images first, for example with "
                "img2dataset, and read the downloaded files"
            )
        if self.repository is not None and isinstance(image, str) and image.startswith("hf://"):
            try:
                image = self.repository.read(image, place)
            except FileNotFoundError as error:
                raise BrokenSample(str(error)) from error
        if not isinstance(image, (str, bytes)):
            raise UserError(f"{place}: column {self.columns.image} must contain an image, not {type(image).__name__}")
        address = image if isinstance(image, str) else ""
        if isinstance(image, str):
            image = archive(self.root, image, place) if is_zipped(image) else inside(self.root, image, place)
            if not os.path.isfile(image):  # a method of Path would raise OSError for a name that is too long
                raise BrokenSample(f"there is no image {str(image)[:LONGEST_NAME]}")
        number = hash(address or image)
        if isinstance(image, Path) and is_zipped(address):
            try:
                image = read_zipped(image, address)
            except (OSError, ValueError) as error:
                raise BrokenSample(str(error)) from error
        return BytesIO(image) if isinstance(image, bytes) else image, number

    def _training_sample(
        self, row: Row, image: Decoded, view: View, texts: list[CaptionText], id: int, picture: int
    ) -> Sample:
        negatives = [
            (i, one) for i, text in enumerate(texts) for one in [*text.negatives, *self._swapped(text.caption)]
        ]
        return Sample(
            id,
            image.seen(view),
            [text.caption for text in texts],
            [[r.training_phrase(view) for r in self._scaled(text.regions, row, image)] for text in texts],
            [negative for _, negative in negatives],
            picture=picture,
            negative_caption=[i for i, _ in negatives],
        )

    def _scaled(self, regions: list[Region], row: Row, image: Decoded) -> list[Region]:
        """Return regions with boxes in pixels of the stored image."""
        size = self.annotated_size(row)
        if size is None:
            return regions
        return [region.scaled(image.size[0] / size[0], image.size[1] / size[1]) for region in regions]

    def _negatives(self, row: Row, place: str) -> list[str]:
        """Return the hard negatives of the data."""
        column = self.columns.negatives
        texts = [] if column is None else self._texts(row, column, place)
        return [text.strip() for text in texts if text.strip()]

    def _swapped(self, caption: str) -> list[str]:
        return [] if self._swap is None else self._swap(caption)

    def _captions(self, row: Row, place: str) -> list[str]:
        found = [text for name in self.columns.captions for text in self._texts(row, name, place)]
        return found if self.columns.phrases is not None else [text.strip() for text in found]

    def _texts(self, row: Row, name: str, place: str) -> list[str]:
        """Return the texts of a column, including empty ones."""
        column = name if name in row else name.partition(".")[0]
        if "__key__" in row and row.get(column) is None:
            raise BrokenSample(no_member(column))
        return [_text(text, name, place) for text in _texts(cell(row, name))]

    def _regions(self, row: Row, captions: list[str]) -> list[Region]:
        if self._find is not None:
            found = ((i, span) for i, caption in enumerate(captions) for span in self._find(caption))
            return [Region(i, start, end) for i, (start, end) in found]
        if self.columns.phrases is None:
            return []
        try:
            return read_regions(cell(row, self.columns.phrases) or [], captions)
        except UserError as error:
            raise BrokenSample(str(error)) from error


def cell(row: Row, name: str) -> Any:
    """Return a row's value in a column, or for a name with dots a nested value; None if there is no value.

    A dot selects a field of a record (`json.caption`) or of all records of a list, which gives a list of values
    (`sentences.raw`). A number selects one record of a list (`conversations.1.value`; 0 is the first).

    Raises:
        BrokenSample: If the value cannot be read.
    """
    column, _, rest = (name, "", "") if name in row else name.partition(".")
    value = row.get(column) if rest or name in row else None
    if isinstance(value, BrokenSample):  # tars use this for members that cannot be read
        raise value
    if rest and isinstance(value, bytes):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise BrokenSample(f"its {column} is not JSON ({error})") from error
    return _within(value, rest) if rest else value


def _within(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return cell(value, name)
    if not isinstance(value, list):
        return None
    first, _, rest = name.partition(".")
    if first.isdecimal():
        if int(first) >= len(value):
            return None
        return _within(value[int(first)], rest) if rest else value[int(first)]
    found = [_within(one, name) for one in value]
    flat = [one for of_record in found for one in (of_record if isinstance(of_record, list) else [of_record])]
    return None if all(one is None for one in flat) else flat


def _texts(value: Any) -> list[Any]:
    """Return the captions of a cell, which is one caption, a list, or a list written as JSON or Python text.

    Such a text begins with a bracket and a quotation mark and ends with both, which no caption does.
    """
    if isinstance(value, str) and len(value) <= LONGEST and _LIST.fullmatch(value):
        for parse in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError), catch_warnings():
                simplefilter("ignore")  # Python warns about unknown escapes
                found = parse(value.strip())
                if isinstance(found, list) and all(isinstance(one, str) for one in found):
                    return found
    return value if isinstance(value, list) else [value]


def _text(value: Any, name: str, place: str) -> str:
    """Return one caption as a string.

    Raises:
        BrokenSample: If it is not UTF-8 or longer than `LONGEST`.
        UserError: If it is not a text.
    """
    if value is None:
        return ""
    if not isinstance(value, str | bytes):
        raise UserError(f"{place}: column {name} must contain text, not {printable(str(value), 40)!r}")
    if len(value) > LONGEST:
        raise BrokenSample(f"its caption has {len(value)} characters, more than {LONGEST}")
    try:
        text = value.decode("utf-8-sig") if isinstance(value, bytes) else value
        text.encode()  # JSON can contain half of a surrogate pair
    except UnicodeError as error:
        raise BrokenSample(f"its caption is not UTF-8 text ({error})") from error
    return text


def _missing(row: Row, name: str) -> str:
    """Describe what is wrong if a row has no such column; empty if the row has it."""
    try:
        found = name in row or ("." in name and cell(row, name) is not None)
    except BrokenSample as error:
        return str(error)
    return "" if found else f"has no column {name!r}, only {_known(row)}"


def _hint(row: Row) -> str:
    texts = [*row, *(value for value in row.values() if isinstance(value, str))]
    addresses = any(text.startswith("http") for text in texts)
    return "; if these are addresses, download the images first, for example with img2dataset" if addresses else ""


def _known(row: Row) -> str:
    """List the columns of a row, or the first ones if there are many."""
    names = ", ".join(printable(name, 40) for name in islice(row, 12))
    return names if len(row) <= 12 else f"{names} ... ({len(row)} in all)"


def _filled(captions: list[str]) -> list[int]:
    """Return the indices of the captions that are not empty.

    Raises:
        BrokenSample: If all captions are empty.
    """
    found = [i for i, caption in enumerate(captions) if caption.strip()]
    if not found:
        raise BrokenSample("its caption is empty")
    return found
