"""Retrieval on COCO: Karpathy's test split (5k, 1k) and the 2017 validation set."""

from __future__ import annotations

from typing import Any, Literal

from patchword.data.published.coco import images
from patchword.errors import UserError
from patchword.files.published import field, named_inside, require_file
from patchword.suites.captioned import Captioned
from patchword.suites.karpathy import coco_image, karpathy, some
from patchword.suites.pictures import PictureFile
from patchword.suites.retrieval import DEFINITIONS, RetrievalSuite

FILES = ("dataset_coco.json", "coco_karpathy_test.json")
_FOLDS = "Mean over five folds of consecutive images in the published order; each fold is ranked separately."


class CocoRetrieval(RetrievalSuite):
    """Retrieval on COCO (Lin et al., ECCV 2014, arXiv 1405.0312), with several captions per image.

    Args:
        root: The folder with `dataset_coco.json` (or BLIP's `coco_karpathy_test.json`) and `val2014/`; for `val2017`,
            with `val2017/` and `annotations/captions_val2017.json`.
        split: `5k` is Karpathy's test split. `1k` is the mean over its five folds of 1,000 consecutive images.
            `val2017` is the 2017 validation set, which papers also call 5k, but its images are different.
        captions_per_image: Use the first captions of each image, up to this number; 5 gives 25,000 captions in all, as
            in CLIP's evaluation. null uses all captions.
        options: Options of all suites; see `Suite`.
    """

    data_set = "COCO"

    def __init__(
        self,
        root: str,
        split: Literal["5k", "1k", "val2017"] = "5k",
        captions_per_image: int | None = 5,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.split = split
        self.captions_per_image = captions_per_image
        self.data_set = "COCO, val2017" if split == "val2017" else "COCO, Karpathy's test split"  # type: ignore[misc]
        if split == "1k":
            self.folds = 5
            self.definitions = {name: f"{text} {_FOLDS}" for name, text in DEFINITIONS.items()}  # type: ignore[misc]

    @property
    def key(self) -> str:
        """`coco_5k`, `coco_1k` or `coco_val2017`."""
        return f"coco_{self.split}"

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`."""
        if self.split == "val2017":
            return self._val2017()
        found = karpathy(self, FILES, coco_image, self.captions_per_image)
        if len(found) % self.folds:
            raise UserError(
                f"{self.root}: {len(found)} images of the split 'test' in {' or '.join(FILES)} cannot be divided into "
                f"{self.folds} folds of equal size: use the published file"
            )
        return found

    def _val2017(self) -> list[Captioned]:
        path = require_file(self.root, "annotations/captions_val2017.json", "of COCO's annotations_trainval2017.zip")
        folder, found = self.image_folder("val2017"), []
        for i, (place, image, captions) in enumerate(images(path)):
            file = named_inside(folder, field(image, "file_name", str, place), place)
            found.append(Captioned(i, (PictureFile(file, place),), some(captions, self.captions_per_image, place)))
        return found
