"""RefCOCO, RefCOCO+ (Yu et al., ECCV 2016) and RefCOCOg (Mao et al., CVPR 2016): referring expressions."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.utilities import rank_zero_info

from patchword.data.pixels import Box
from patchword.errors import UserError
from patchword.files.published import field, named_inside, read_json, require_file
from patchword.suites.grounding import GroundedImage, PhraseGrounding, Region
from patchword.suites.objects import require_inside

_UNC = ("train", "val", "testA", "testB")
_CHOICE = (
    "Share of expressions for which the candidate box with the highest mean of the map over its area has an IoU of 0.5 "
    "or more with the object's box; a tie with a wrong candidate is wrong, and chance is the mean share of right "
    "candidates. Candidates:"
)
_CANDIDATES = {
    "ground_truth": "the boxes of all annotated objects of the image.",
    "regions": "the regions that the objective proposes.",
    "proposals": "the boxes of a file.",
}


class RefCOCO(PhraseGrounding):
    """Referring expressions of RefCOCO. The complete expression is the phrase, and it has one box.

    Args:
        root: The folder `data` of the REFER toolbox, which has one folder per data set.
        split: The split. The objects of `testA` are people, those of `testB` other objects.
        split_by: The authors of the splits: the name in `refs(<split_by>).p`. null for the splits that papers use
            (`umd` for RefCOCOg, otherwise `unc`).
        candidates: The boxes among which a map chooses, for the accuracy of the choice: `ground_truth` are the boxes of
            all annotated objects of the image, `regions` those that the objective proposes (LOUPE), and a file has
            proposals in the format of COCO's results: a JSON list of `{"image_id": 1, "bbox": [left, top, width,
            height]}`. null measures no choice.
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
        candidates: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.candidates = candidates
        self.proposes = candidates == "regions"
        if candidates is not None:
            kind = candidates if candidates in _CANDIDATES else "proposals"
            self.choice = f"acc@0.5_of_{kind}", f"{_CHOICE} {_CANDIDATES[kind]}"
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

    def protocol(self) -> dict[str, Any]:
        """See `Suite.protocol`. `candidates` were added later and are left out while they are null."""
        found = super().protocol()
        candidates = found.pop("candidates")
        return found if candidates is None else found | {"candidates": self.choice[0].partition("_of_")[2]}  # type: ignore[index]

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
        candidates = self._candidates(instances, boxes, sizes, instances_path)
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
        unused = sum(len(own) for i, own in candidates.items() if i not in captions)
        if unused and self.choice is not None:
            rank_zero_info(f"{unused} candidate boxes are of images without expressions of the split {self.split}")
        return [self._image(*sizes[i], captions[i], regions[i], candidates.get(i, [])) for i in sorted(captions)]

    def _candidates(
        self, instances: Any, boxes: dict[int, Box], sizes: dict[int, tuple[Any, str]], path: Path
    ) -> dict[int, list[Box]]:
        """The candidate boxes of each image by its id; none if they come from the model."""
        found: dict[int, list[Box]] = {}
        if self.candidates == "ground_truth":
            for one in instances["annotations"]:
                place = f"{path}: annotation {one['id']}"
                found.setdefault(field(one, "image_id", int, place), []).append(boxes[one["id"]])
        elif self.candidates is not None and not self.proposes:
            for image, box, place in read_proposals(Path(self.candidates)):
                if image not in sizes:
                    raise UserError(f"{place}: {path} has no image {image}: use proposals for these images")
                record, where = sizes[image]
                size = (field(record, "width", int, where), field(record, "height", int, where))
                found.setdefault(image, []).append(require_inside(box, size, place))
        return found

    def _image(
        self, image: Any, place: str, captions: list[str], regions: list[Region], candidates: list[Box]
    ) -> GroundedImage:
        folder = self.image_folder("images/mscoco/images/train2014", "train2014")
        path = named_inside(folder, field(image, "file_name", str, place), place)
        size = (field(image, "width", int, place), field(image, "height", int, place))
        return GroundedImage(image["id"], path, size, tuple(captions), tuple(regions), candidates=tuple(candidates))


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


def read_proposals(path: Path) -> list[tuple[int, Box, str]]:
    """Read boxes in the format of COCO's results: the id of the image, the box, and its place for messages.

    Raises:
        UserError: If the file is missing or has another format, or if a box has no area; the message names the row.
    """
    if not path.is_file():
        kinds = " or ".join(kind for kind in _CANDIDATES if kind != "proposals")
        raise UserError(f"data.candidates must be {kinds} or a file of proposals, but there is no file {path}")
    content = read_json(path)
    if not isinstance(content, list):
        raise UserError(f'{path} must be a list of proposals such as {{"image_id": 1, "bbox": [0, 0, 10, 20]}}')
    found = []
    for i, one in enumerate(content):
        place = f"{path}, [{i}]"
        box = _box(one, place)
        if box[0] >= box[2] or box[1] >= box[3]:
            raise UserError(f"{place}: the width and height of a proposal must be above 0: leave it out")
        found.append((field(one, "image_id", int, place), box, place))
    return found


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
