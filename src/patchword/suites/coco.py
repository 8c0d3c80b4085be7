"""Retrieval on COCO: Karpathy's test split (5k, 1k) and the validation set of 2017."""

from __future__ import annotations

from typing import Any, Literal

from patchword.errors import InputError
from patchword.suites.files import field, named_inside, read_json, require_file
from patchword.suites.karpathy import karpathy, some
from patchword.suites.pictures import PictureFile
from patchword.suites.retrieval import DEFINITIONS, Captioned, RetrievalSuite

_FOLDS = "Mean over five folds of a fifth of the images each, consecutive in the published order, ranked by themselves."


class CocoRetrieval(RetrievalSuite):
    """Retrieval on COCO (Lin et al., ECCV 2014, arXiv 1405.0312), with several captions per image.

    Args:
        root: The folder with `dataset_coco.json` and `val2014/`; for `val2017`, with `val2017/` and
            `annotations/captions_val2017.json`.
        split: `5k` is Karpathy's test split; `1k` the mean over its five folds of 1,000 consecutive images; `val2017`
            the validation set of 2017, which papers also call 5k: its images are other ones.
        captions_per_image: The first so many captions of an image: 5 makes 25,000, as CLIP has it; null takes all.
        options: What every suite takes; see `Suite`.
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
        """See `RetrievalSuite.records`."""
        if self.split == "val2017":
            return self._val2017()
        found = karpathy(self.root, "dataset_coco.json", None, self.captions_per_image)
        if len(found) % self.folds:
            raise InputError(
                f"{self.root / 'dataset_coco.json'}: {len(found)} images of the split 'test' do not make {self.folds} "
                "folds of one size: is it the published file?"
            )
        return found

    def _val2017(self) -> list[Captioned]:
        path = require_file(self.root, "annotations/captions_val2017.json", "of COCO's annotations_trainval2017.zip")
        content = read_json(path)
        captions: dict[int, list[str]] = {}
        for i, annotation in enumerate(field(content, "annotations", list, str(path))):
            place = f"{path}, annotations[{i}]"
            captions.setdefault(field(annotation, "image_id", int, place), []).append(
                field(annotation, "caption", str, place)
            )
        found = []
        for i, image in enumerate(field(content, "images", list, str(path))):
            place = f"{path}, images[{i}]"
            file = named_inside(self.root, f"val2017/{field(image, 'file_name', str, place)}", place)
            own = captions.get(field(image, "id", int, place), [])
            found.append(Captioned(i, PictureFile(file, place), some(own, self.captions_per_image, place)))
        return found
