"""Retrieval with long captions on Urban1k."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn

from patchword.errors import UserError
from patchword.suites.captioned import Captioned
from patchword.suites.pictures import PictureFile
from patchword.suites.retrieval import RetrievalSuite


class Urban1k(RetrievalSuite):
    """Retrieval on Urban1k (of Long-CLIP: Zhang et al., ECCV 2024, arXiv 2403.15378): 1,000 images of busy streets.

    Each image has one caption of about 100 words: the first line of its file, as in the authors' evaluation.
    `cut_captions` counts the captions that the tokenizer truncates. If the first line is empty, as it very likely is in
    the published 592.txt, the caption is the empty text, as in the authors' evaluation; a warning and `empty_captions`
    report the number of such files.

    Args:
        root: The folder with `image/*.jpg` and `caption/*.txt`. An image and its caption have the same file name.
    """

    data_set = "Urban1k"
    key = "urban1k"

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`. The ids are positions in the order of file names."""
        files = sorted((self.root / "caption").glob("*.txt"))
        if not files:
            raise UserError(f"there is no caption {self.root / 'caption' / '*.txt'}: set data.root to Urban1k's folder")
        found = []
        for i, file in enumerate(files):
            try:
                line = file.read_text(encoding="utf-8-sig").partition("\n")[0]
            except ValueError as error:
                raise UserError(f"{file} is not UTF-8 text ({error})") from error
            image = self.root / "image" / f"{file.stem}.jpg"
            found.append(Captioned(i, (PictureFile(image, str(file)),), (line,)))
        empty = [str(file) for file, one in zip(files, found, strict=True) if not one.captions[0].strip()]
        if empty:
            shown = f"{empty[0]}{' ...' if len(empty) > 1 else ''}"
            rank_zero_warn(
                f"{len(empty)} of {len(found)} captions are empty, because the first line of their file is empty: "
                f"{shown}. They are counted, as in the authors' evaluation"
            )
        return found
