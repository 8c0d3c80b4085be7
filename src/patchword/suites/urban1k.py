"""Retrieval by long captions on Urban1k."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from patchword.errors import InputError
from patchword.suites.pictures import PictureFile
from patchword.suites.retrieval import Captioned, RetrievalSuite


class Urban1k(RetrievalSuite):
    """Retrieval on Urban1k (of Long-CLIP: Zhang et al., ECCV 2024, arXiv 2403.15378): 1,000 images of busy streets.

    Each has one caption of some 100 words: the first line of its file, as the authors read it. Captions that the
    tokenizer cuts are counted as `cut_captions`.

    Args:
        root: The folder with `image/*.jpg` and `caption/*.txt`; an image and its caption have one name.
        image_size: Height and width in pixels; null for what the encoder takes.
        fit: How an image becomes a square: `backbone` as the image tower was trained, `crop` its centre, `stretch` the
            whole image.
        batch_size: Samples per batch on each device.
        num_workers: Processes that read images; 0 reads them in the main process.
    """

    data_set = "Urban1k"
    key = "urban1k"

    def __init__(
        self,
        root: str,
        image_size: int | None = None,
        fit: Literal["backbone", "crop", "stretch"] = "backbone",
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(image_size, fit, batch_size, num_workers)
        self.root = Path(root)

    def records(self) -> list[Captioned]:
        """See `RetrievalSuite.records`; ids are positions in the order of file names."""
        files = sorted((self.root / "caption").glob("*.txt"))
        if not files:
            raise InputError(
                f"there is no caption {self.root / 'caption' / '*.txt'}: give Urban1k's folder as data.root"
            )
        found = []
        for i, file in enumerate(files):
            try:
                lines = file.read_text(encoding="utf-8-sig").splitlines()
            except ValueError as error:
                raise InputError(f"{file} is not UTF-8 text ({error})") from error
            if not lines or not lines[0].strip():
                raise InputError(f"{file} has no caption in its first line: is it the published file?")
            image = self.root / "image" / f"{file.stem}.jpg"
            found.append(Captioned(i, PictureFile(image, str(file)), (lines[0],)))
        return found
