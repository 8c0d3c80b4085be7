"""Retrieval with long captions on DCI, the Densely Captioned Images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from patchword.errors import UserError
from patchword.files.published import field, named_inside, read_json, require_file
from patchword.suites.captioned import Captioned
from patchword.suites.pictures import PictureFile
from patchword.suites.retrieval import RetrievalSuite

_SPLITS = ("train", "valid", "test")


class DCIRetrieval(RetrievalSuite):
    """Retrieval on DCI (Urbanek et al., CVPR 2024, arXiv 2312.08578): one long caption per image of SA-1B.

    Papers on long captions use all 7,805 images, as the default does. `cut_captions` counts the captions that the
    tokenizer truncates.

    Args:
        root: The folder with `annotations/`, `photos/` and `splits.json`, or the folder with
            `densely_captioned_images/`.
        split: `all` uses the three splits of the data set together.
        caption: `full` is the short caption, a line break, and the extra caption, as in FLAIR's evaluation; `extra` is
            the extra caption alone, as in FG-CLIP's evaluation.
        options: Options of all suites; see `Suite`.
    """

    def __init__(
        self,
        root: str,
        split: Literal["all", "train", "valid", "test"] = "all",
        caption: Literal["full", "extra"] = "full",
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if (self.root / "densely_captioned_images").is_dir():
            self.root /= "densely_captioned_images"
        self.split = split
        self.caption = caption
        self.data_set = f"DCI, {split}"  # type: ignore[misc]

    @property
    def key(self) -> str:
        """`dci_` and the split, such as `dci_all`."""
        return f"dci_{self.split}"

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`. The ids count the images of the split, in the order of `splits.json`."""
        path = require_file(self.root, "splits.json", "of DCI's dci.tar.gz")
        splits, photos = read_json(path), self.image_folder("photos")
        found: list[Any] = []
        for split in _SPLITS if self.split == "all" else (self.split,):
            for name in field(splits, split, list, str(path)):
                if not isinstance(name, str):
                    raise UserError(f"{path}: {split} must be a list of file names, not {str(name)[:60]!r}")
                file = named_inside(self.root / "annotations", name, str(path))
                if not file.is_file():
                    raise UserError(f"{path}: there is no annotation {file}")
                found.append(self._record(len(found), file, photos))
        if not found:
            raise UserError(f"{path} has no images in {self.split}: use the published file")
        return found

    def _record(self, number: int, file: Path, photos: Path) -> Captioned:
        annotation, place = read_json(file), str(file)
        image = named_inside(photos, field(annotation, "image", str, place), place)
        names = ("short_caption", "extra_caption") if self.caption == "full" else ("extra_caption",)
        text = "\n".join(field(annotation, name, str, place) for name in names)
        return Captioned(number, (PictureFile(image, place),), (text,))
