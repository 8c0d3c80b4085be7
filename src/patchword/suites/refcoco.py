"""RefCOCO, RefCOCO+ (Yu et al., ECCV 2016) and RefCOCOg (Mao et al., CVPR 2016): referring expressions."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, ClassVar

from patchword.data.pixels import Box
from patchword.errors import UserError
from patchword.files.published import field, named_inside, read_json, require_file
from patchword.suites.grounding import GroundedImage, PhraseGrounding, Region

_UNC = ("train", "val", "testA", "testB")


class RefCOCO(PhraseGrounding):
    """Referring expressions of RefCOCO. The complete expression is the phrase, and it has one box.

    Args:
        root: The folder `data` of the REFER toolbox, which has one folder per data set.
        split: The split. The objects of `testA` are people, those of `testB` other objects.
        split_by: The authors of the splits: the name in `refs(<split_by>).p`. null for the splits that papers use
            (`umd` for RefCOCOg, otherwise `unc`).
        options: Options of all grounding suites; see `PhraseGrounding`.

    Raises:
        UserError: If the data set does not have this split.
    """

    data_set = "RefCOCO"
    name_on_disk: ClassVar[str] = "refcoco"
    splits: ClassVar[dict[str, tuple[str, ...]]] = {"unc": _UNC, "google": ("train", "val", "test")}
    reported = {  # noqa: RUF012 - a ClassVar
        "pointing_game": (
            "pointing_game",
            "Share of expressions whose map, upsampled bilinearly, has its highest pixel in the object's box.",
        ),
        "r@1_any": (
            "acc@0.5",
            "Share of expressions whose predicted box has an IoU of 0.5 or more with the object's box. The predicted "
            "box is the box around the largest component of the pixels at or above the midpoint of the map's range.",
        ),
    }

    def __init__(
        self,
        root: str,
        split: str = "val",
        split_by: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.split_by = next(iter(self.splits)) if split_by is None else split_by
        if self.split_by not in self.splits:
            raise UserError(f"data.split_by of {self.data_set} must be {' or '.join(self.splits)}, not {split_by!r}")
        known = self.splits[self.split_by]
        if split not in known:
            raise UserError(
                f"data.split of {self.data_set} ({self.split_by}) must be one of {', '.join(known)}, not {split!r}"
            )
        self.split = split

    @property
    def key(self) -> str:
        """The names of the data set, of the authors of the splits, and of the split."""
        return f"{self.name_on_disk}_{self.split_by}_{self.split}".lower()

    def images(self) -> list[GroundedImage]:
        """Read the expressions of every image of the split, in the order of image ids."""
        refs_path = require_file(self.root, f"{self.name_on_disk}/refs({self.split_by}).p", "of the REFER toolbox")
        instances_path = require_file(self.root, f"{self.name_on_disk}/instances.json", "of the REFER toolbox")
        refs = read_plain_pickle(refs_path)
        if not isinstance(refs, list):
            raise UserError(f"{refs_path} must be a list of references: use the published file")
        instances = read_json(instances_path)
        sizes = {
            field(one, "id", int, f"{instances_path}: an image"): (one, f"{instances_path}: image {one['id']}")
            for one in field(instances, "images", list, str(instances_path))
        }
        boxes = {
            field(one, "id", int, f"{instances_path}: an annotation"): _box(
                one, f"{instances_path}: annotation {one['id']}"
            )
            for one in field(instances, "annotations", list, str(instances_path))
        }
        captions: dict[int, list[str]] = {}
        regions: dict[int, list[Region]] = {}
        for number, ref in enumerate(refs):
            place = f"{refs_path}, reference {number}"
            if field(ref, "split", str, place) != self.split:
                continue
            image, annotation = field(ref, "image_id", int, place), field(ref, "ann_id", int, place)
            if image not in sizes or annotation not in boxes:
                raise UserError(f"{place}: {instances_path} has no image {image} with an annotation {annotation}")
            for sentence in field(ref, "sentences", list, place):
                text = field(sentence, "sent", str, place)
                own = captions.setdefault(image, [])
                regions.setdefault(image, []).append(Region(len(own), 0, len(text), (boxes[annotation],)))
                own.append(text)
        if not captions:
            raise UserError(f"{refs_path} has no reference of the split {self.split}: use the published file")
        return [self._image(*sizes[i], captions[i], regions[i]) for i in sorted(captions)]

    def _image(self, image: Any, place: str, captions: list[str], regions: list[Region]) -> GroundedImage:
        folder = self.image_folder("images/mscoco/images/train2014", "train2014")
        path = named_inside(folder, field(image, "file_name", str, place), place)
        size = (field(image, "width", int, place), field(image, "height", int, place))
        return GroundedImage(image["id"], path, size, tuple(captions), tuple(regions))


class RefCOCOPlus(RefCOCO):
    """Referring expressions of RefCOCO+, which have no words for locations. The arguments are those of `RefCOCO`."""

    data_set = "RefCOCO+"
    name_on_disk = "refcoco+"
    splits: ClassVar[dict[str, tuple[str, ...]]] = {"unc": _UNC}


class RefCOCOg(RefCOCO):
    """Referring expressions of RefCOCOg, which are longer. The arguments are those of `RefCOCO`."""

    data_set = "RefCOCOg"
    name_on_disk = "refcocog"
    splits: ClassVar[dict[str, tuple[str, ...]]] = {"umd": ("train", "val", "test"), "google": ("train", "val")}


def _box(annotation: Any, place: str) -> Box:
    box = field(annotation, "bbox", list, place)
    if len(box) != 4 or not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in box):
        raise UserError(f"{place}: bbox must be left, top, width and height, not {str(box)[:60]}")
    left, top, width, height = map(float, box)
    return left, top, left + width, top + height


class _Plain(pickle.Unpickler):
    """Loads only numbers, strings, lists, tuples and dictionaries. Other objects could execute code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it contains {module}.{name}")


def read_plain_pickle(path: Path) -> Any:
    """Return the content of a pickle that has only numbers, strings, lists, tuples and dictionaries.

    Raises:
        UserError: If the pickle contains other objects, which could execute code, or if the file is not a pickle.
    """
    try:
        with path.open("rb") as file:
            return _Plain(file, encoding="latin-1").load()
    except Exception as error:  # a broken pickle can raise nearly any exception
        raise UserError(
            f"{path} is not a pickle of plain lists and dictionaries ({error}): use the published file. "
            "No code was executed"
        ) from error
