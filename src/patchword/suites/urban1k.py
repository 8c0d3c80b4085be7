"""Retrieval with long captions on Urban1k."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from patchword.errors import UserError
from patchword.suites.captioned import Captioned
from patchword.suites.pictures import PictureFile
from patchword.suites.retrieval import RetrievalSuite
from patchword.suites.sentences import sentences

_FOLDERS = ("image", "images")


class Urban1k(RetrievalSuite):
    """Retrieval on Urban1k (of Long-CLIP: Zhang et al., ECCV 2024, arXiv 2403.15378): 1,000 images of busy streets.

    Each image has one caption of about 100 words: the first line of its file, as in the authors' evaluation.
    `cut_captions` counts the captions that the tokenizer truncates. If the first line is empty, as it very likely is in
    the published 592.txt, the caption is the empty text, as in the authors' evaluation; a warning and `empty_captions`
    report the number of such files.

    Args:
        root: The folder with `image/*.jpg` and `caption/*.txt`. An image and its caption have the same file name. FLAIR
            distributes the same captions as `annotations/annotations.json`, with the images in `images/`.
    """

    data_set = "Urban1k"
    key = "urban1k"

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`. The ids are positions in the order of file names."""
        listed = self.root / "annotations/annotations.json"
        if listed.is_file():
            return self._listed(listed)
        files = sorted((self.root / "caption").glob("*.txt"))
        if not files:
            raise UserError(f"there is no caption {self.root / 'caption' / '*.txt'}: set data.root to Urban1k's folder")
        images, found = self.image_folder(*_FOLDERS), []
        for i, file in enumerate(files):
            try:
                line = file.read_text(encoding="utf-8-sig").partition("\n")[0]
            except ValueError as error:
                raise UserError(f"{file} is not UTF-8 text ({error})") from error
            found.append(Captioned(i, (PictureFile(images / f"{file.stem}.jpg", str(file)),), (line,)))
        return _reported(found, ", because the first line of their file is empty")

    def _listed(self, path: Path) -> list[Captioned]:
        """The captions of FLAIR's list, in the same order."""
        found = sorted(sentences(path, self.image_folder(*_FOLDERS)), key=lambda one: f"{_file(one).stem}.txt")
        if wrong := [_file(one) for one in found if len(one.captions) != 1]:
            raise UserError(f"{path}: {wrong[0].name} must have one caption: use the published file")
        return _reported([replace(one, id=number) for number, one in enumerate(found)])


def _file(one: Captioned) -> Path:
    (picture,) = one.pictures
    assert isinstance(picture, PictureFile)
    return picture.path


def _reported(found: list[Captioned], why: str = "") -> list[Captioned]:
    """Warn about empty captions; `why` is the reason if it is known."""
    if empty := [one for one in found if not one.captions[0].strip()]:
        shown = f"{empty[0].pictures[0].place}{' ...' if len(empty) > 1 else ''}"  # type: ignore[union-attr]
        rank_zero_warn(
            f"{len(empty)} of {len(found)} captions are empty{why}: {shown}. They are counted, as in the authors' "
            "evaluation"
        )
    return found
