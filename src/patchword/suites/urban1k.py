"""Retrieval by long captions on Urban1k."""

from __future__ import annotations

from patchword.errors import InputError
from patchword.suites.pictures import PictureFile
from patchword.suites.retrieval import Captioned, RetrievalSuite


class Urban1k(RetrievalSuite):
    """Retrieval on Urban1k (of Long-CLIP: Zhang et al., ECCV 2024, arXiv 2403.15378): 1,000 images of busy streets.

    Each has one caption of some 100 words: the first line of its file, as the authors read it. Captions that the
    tokenizer cuts are counted as `cut_captions`.

    Args:
        root: The folder with `image/*.jpg` and `caption/*.txt`; an image and its caption have one name.
    """

    data_set = "Urban1k"
    key = "urban1k"

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
                line = file.read_text(encoding="utf-8-sig").partition("\n")[0]
            except ValueError as error:
                raise InputError(f"{file} is not UTF-8 text ({error})") from error
            if not line.strip():
                raise InputError(f"{file} has no caption in its first line: is it the published file?")
            image = self.root / "image" / f"{file.stem}.jpg"
            found.append(Captioned(i, PictureFile(image, str(file)), (line,)))
        return found
