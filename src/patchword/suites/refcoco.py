"""RefCOCO, RefCOCO+ (Yu et al., ECCV 2016) and RefCOCOg (Mao et al., CVPR 2016): expressions that mean one object."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, ClassVar

from patchword.data.pixels import Box
from patchword.errors import InputError
from patchword.suites.files import field, named_inside, read_json, require_file
from patchword.suites.grounding import GroundedImage, PhraseGrounding, Region

_UNC = ("train", "val", "testA", "testB")


class RefCOCO(PhraseGrounding):
    """Referring expressions of RefCOCO: the whole expression is the phrase, and has one box.

    Args:
        root: The folder `data` of the REFER toolbox, in which each data set has a folder.
        split: The split; `testA` shows people, `testB` other objects.
        split_by: Whose splits: the name in `refs(<split_by>).p`; null for those that papers use (`unc`, of RefCOCOg
            `umd`).
        images: COCO's folder `train2014`; null for `images/mscoco/images/train2014` in `root`.
        options: What every suite takes; see `PhraseGrounding`.

    Raises:
        InputError: If the data set has no such split.
    """

    data_set = "RefCOCO"
    name_on_disk: ClassVar[str] = "refcoco"
    splits: ClassVar[dict[str, tuple[str, ...]]] = {"unc": _UNC, "google": ("train", "val", "test")}
    reported = {  # noqa: RUF012 - a ClassVar
        "pointing": (
            "pointing",
            "Share of expressions whose map (the mean of the objective's own maps of its tokens), upsampled "
            "bilinearly, has its highest pixel in the object's box.",
        ),
        "r@1_any": (
            "acc@0.5",
            "Share of expressions for which the box round the largest component of the map's pixels at or above the "
            "middle of its range has an IoU of 0.5 or more with the object's box.",
        ),
    }

    def __init__(
        self,
        root: str,
        split: str = "val",
        split_by: str | None = None,
        images: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.split_by = next(iter(self.splits)) if split_by is None else split_by
        if self.split_by not in self.splits:
            raise InputError(f"data.split_by of {self.data_set} must be {' or '.join(self.splits)}, not {split_by!r}")
        known = self.splits[self.split_by]
        if split not in known:
            raise InputError(
                f"data.split of {self.data_set} ({self.split_by}) must be one of {', '.join(known)}, not {split!r}"
            )
        self.split = split
        self.folder = self.root / "images/mscoco/images/train2014" if images is None else Path(images)

    @property
    def key(self) -> str:
        """With whose splits, and the split."""
        return f"{self.name_on_disk}_{self.split_by}_{self.split}".lower()

    def images(self) -> list[GroundedImage]:
        """Read the expressions of every image of the split, in the order of the images' ids."""
        refs_path = require_file(self.root, f"{self.name_on_disk}/refs({self.split_by}).p", "of the REFER toolbox")
        instances_path = require_file(self.root, f"{self.name_on_disk}/instances.json", "of the REFER toolbox")
        refs = read_plain_pickle(refs_path)
        if not isinstance(refs, list):
            raise InputError(f"{refs_path} must hold a list of references: is it the published file?")
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
                raise InputError(f"{place}: {instances_path} has no image {image} with an annotation {annotation}")
            for sentence in field(ref, "sentences", list, place):
                text = field(sentence, "sent", str, place)
                own = captions.setdefault(image, [])
                regions.setdefault(image, []).append(Region(len(own), 0, len(text), (boxes[annotation],)))
                own.append(text)
        if not captions:
            raise InputError(f"{refs_path} has no reference of the split {self.split}: is it the published file?")
        return [self._image(*sizes[i], captions[i], regions[i]) for i in sorted(captions)]

    def _image(self, image: Any, place: str, captions: list[str], regions: list[Region]) -> GroundedImage:
        path = named_inside(self.folder, field(image, "file_name", str, place), place)
        size = (field(image, "width", int, place), field(image, "height", int, place))
        return GroundedImage(image["id"], path, size, tuple(captions), tuple(regions))


class RefCOCOPlus(RefCOCO):
    """Referring expressions of RefCOCO+, without words of place; arguments as of `RefCOCO`."""

    data_set = "RefCOCO+"
    name_on_disk = "refcoco+"
    splits: ClassVar[dict[str, tuple[str, ...]]] = {"unc": _UNC}


class RefCOCOg(RefCOCO):
    """Referring expressions of RefCOCOg, which are longer; arguments as of `RefCOCO`."""

    data_set = "RefCOCOg"
    name_on_disk = "refcocog"
    splits: ClassVar[dict[str, tuple[str, ...]]] = {"umd": ("train", "val", "test"), "google": ("train", "val")}


def _box(annotation: Any, place: str) -> Box:
    box = field(annotation, "bbox", list, place)
    if len(box) != 4 or not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in box):
        raise InputError(f"{place}: bbox must be left, top, width and height, not {str(box)[:60]}")
    left, top, width, height = map(float, box)
    return left, top, left + width, top + height


class _Plain(pickle.Unpickler):
    """Of a pickle the numbers, strings, lists and dictionaries: anything else could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_plain_pickle(path: Path) -> Any:
    """The content of a pickle that is made of numbers, strings, lists, tuples and dictionaries.

    Raises:
        InputError: If it asks for anything else, which could be code, or is no pickle.
    """
    try:
        with path.open("rb") as file:
            return _Plain(file, encoding="latin-1").load()
    except Exception as error:  # of a broken pickle Python may make nearly any exception
        raise InputError(
            f"{path} is not the published file, a pickle of plain lists and dictionaries ({error}); none of it was run"
        ) from error
