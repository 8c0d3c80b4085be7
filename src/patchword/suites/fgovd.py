"""FG-OVD: does a box in an image match its own caption better than captions with wrong attributes?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from patchword.data.pixels import Box
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.files.published import field, named_inside, read_json_lines, require_file
from patchword.metrics.compositional import Answers, chance_of_captions, share
from patchword.ops import cosine
from patchword.suites.captioned import Captioned, CaptionedBatch, CaptionedSample
from patchword.suites.files import checksum, load_image
from patchword.suites.matching import MatchingEvaluation, MatchingSuite
from patchword.suites.pictures import PictureFile
from patchword.training.needs import coverage

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

FILES = {
    "hard": "h_attributes_llava.jsonl",
    "medium": "m_attributes_llava.jsonl",
    "easy": "e_attributes_llava.jsonl",
    "trivial": "shuffle_negatives_llava.jsonl",
}
_REGIONS = {
    "crop": "the box, cut out of the image and scored by the objective's own score,",
    "patches": "the box, embedded as the mean of the image's patches over its area and scored by the cosine with the "
    "pooled text,",
}


@dataclass(frozen=True)
class BoxedPicture(PictureFile):
    """A complete image with a box.

    Attributes:
        box: Left, top, right and bottom of the box as shares of the width and height of the image.
    """

    box: Box = (0.0, 0.0, 1.0, 1.0)

    def read(self) -> tuple[Image.Image, int]:
        """Return the image as it is stored, to which the box refers, and a checksum of the image and the box."""
        image, crc = load_image(self.path, self.place, upright=False)
        return image, checksum(crc, *map(str, self.box))


@dataclass
class BoxedBatch(CaptionedBatch):
    """A batch of images with one box each.

    Attributes:
        boxes: Left, top, right and bottom of the boxes as shares of the width and height of the image.
    """

    boxes: Float[Tensor, "M 4"]


class FGOVD(MatchingSuite):
    """FG-OVD (Bianchi et al., CVPR 2024, arXiv 2311.17518), as FG-CLIP reports it: 11 captions for a box of COCO.

    The captions differ in attributes, such as color and material. FG-OVD was made for detectors, which also have to
    find the box. FG-CLIP (Xie et al., ICML 2025, arXiv 2505.05071) gives the box and only lets it choose its caption.

    Args:
        root: The folder with the four files of FG-CLIP's `data/fgovd`, and COCO's `val2017/` and `train2017/`.
        difficulty: The number of attributes that are wrong in a wrong caption: 1 (`hard`), 2 (`medium`) or 3 (`easy`).
            The wrong captions of `trivial` are captions of other objects.
        region: The embedding of the box. `crop` cuts the box out of the image and embeds it as an image. `patches` is
            the mean of the patches of the complete image over the area of the box, with FG-CLIP's comparison.
        resize_mode: How a crop becomes a square; see `Suite`. `patches` needs `stretch`, which shows the whole image.
        options: Options of all suites; see `Suite`.

    Raises:
        UserError: If `patches` are combined with a resize mode that does not show the whole image.
    """

    def __init__(
        self,
        root: str,
        difficulty: Literal["hard", "medium", "easy", "trivial"] = "hard",
        region: Literal["crop", "patches"] = "crop",
        resize_mode: Literal["backbone", "crop", "stretch"] = "stretch",
        **options: Any,
    ) -> None:
        super().__init__(root, resize_mode=resize_mode, **options)
        if region == "patches" and resize_mode != "stretch":
            raise UserError(f"data.region patches needs data.resize_mode stretch, not {resize_mode}")
        self.difficulty = difficulty
        self.region = region
        self.data_set = f"FG-OVD, {difficulty}"  # type: ignore[misc]
        self.definitions = {  # type: ignore[misc]
            "accuracy": f"Share of boxes for which {_REGIONS[region]} has a strictly higher score with its own caption "
            "than with each wrong caption; chance is the mean of 1 / (1 + number of wrong captions)."
        }

    @property
    def key(self) -> str:
        """`fgovd_` and the difficulty, such as `fgovd_hard`."""
        return f"fgovd_{self.difficulty}"

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`. The ids count the boxes."""
        path = require_file(self.root, FILES[self.difficulty], "of FG-CLIP's data/fgovd")
        folder = cache(self.image_folder)  # looked up once for each folder, not for each box
        found: list[Any] = []
        for line, row in read_json_lines(path):
            place = f"{path}, line {line}"
            image = self._image(field(row, "img_path", str, place), place)
            file = folder(image.parent.name) / image.name
            own, wrong = (_captions(row, name, place) for name in ("pos_expression", "neg_expression"))
            if len(own) != 1:
                raise UserError(f"{place}: pos_expression must be one caption, not {len(own)}: use the published file")
            found.append(Captioned(len(found), (self._picture(row, file, place),), (*own, *wrong)))
        return found

    def _image(self, name: str, place: str) -> Path:
        """The published path of an image such as `train2017/000000000009.jpg`: its folder and its file name."""
        image = PurePosixPath(name)
        return named_inside(self.root, f"{image.parent.name or 'val2017'}/{image.name}", place)

    def _picture(self, row: dict[str, Any], file: Path, place: str) -> PictureFile:
        box = field(row, "bbox", list, place)
        if len(box) != 4 or not all(isinstance(x, (int, float)) for x in box) or min(box[2:]) <= 0:
            raise UserError(f"{place}: bbox must be left, top, width and height, not {str(box)[:60]}")
        left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
        if self.region == "crop":
            return PictureFile(file, place, (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)))
        width, height = (field(row, side, int, place) for side in ("width", "height"))
        return BoxedPicture(file, place, box=(left / width, top / height, right / width, bottom / height))

    def collate(self, samples: Sequence[CaptionedSample]) -> CaptionedBatch:
        """Combine boxes into one batch."""
        batch = super().collate(samples)
        pictures = [picture for sample in samples for picture in sample.record.pictures]
        boxes = [picture.box for picture in pictures if isinstance(picture, BoxedPicture)]
        return BoxedBatch(**vars(batch), boxes=torch.tensor(boxes)) if boxes else batch

    def evaluation(self, module: AlignmentModule) -> MatchingEvaluation:
        """Return an empty evaluation with the chosen embedding of boxes."""
        return (MatchingEvaluation if self.region == "crop" else BoxEvaluation)(module, self)

    def numbers(self, answers: Answers) -> dict[str, float]:
        """See `MatchingSuite.numbers`."""
        return {"accuracy": share(answers.caption), "chance_accuracy": chance_of_captions(answers)}


class BoxEvaluation(MatchingEvaluation):
    """Embeds a box as the mean of the image's patches over its area; texts are compared by their pooled vectors."""

    def images(self, batch: BoxedBatch) -> Images:  # type: ignore[override]
        """Embed the boxes of a batch, in place of their images."""
        images = self.encode_images(batch.images)
        with torch.autocast(images.patches.device.type, enabled=False):
            patches = images.patches.float()
            shares = coverage(batch.boxes.to(patches), images.grid, (1, 1))
            return replace(images, pooled=torch.einsum("mp,mpd->md", shares, patches))

    def scores(self, images: Images, captions: Texts) -> tuple[Float[Tensor, "I T"], Float[Tensor, "I T"]]:
        """The cosines of boxes and pooled texts."""
        with torch.autocast(images.pooled.device.type, enabled=False):
            found = cosine(images.pooled, captions.pooled.float())
        return found, found


def _captions(row: dict[str, Any], name: str, place: str) -> list[str]:
    texts = field(row, name, list, place)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{place}: {name} must be a list of captions, not {str(texts)[:60]!r}: use the published file")
    return texts
