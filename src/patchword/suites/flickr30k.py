"""Retrieval on Flickr30k."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchword.suites.base import Suite
from patchword.suites.captioned import Captioned
from patchword.suites.karpathy import karpathy
from patchword.suites.retrieval import RetrievalSuite

FILES = ("dataset_flickr30k.json", "flickr30k_test.json")
FOLDERS = ("flickr30k-images", "flickr30k_images", "images")


def flickr30k_image(suite: Suite, name: str) -> Path:
    """Return the path of the image with this name, such as `1007129816.jpg`."""
    return suite.image_folder(*FOLDERS) / name


class Flickr30kRetrieval(RetrievalSuite):
    """Retrieval on Flickr30k (Young et al., TACL 2014), Karpathy's test split: 1,000 images with five captions each.

    Args:
        root: The folder with `dataset_flickr30k.json` (or BLIP's `flickr30k_test.json`) and `flickr30k-images/`.
        captions_per_image: Use the first captions of each image, up to this number; null uses all captions.
        options: Options of all suites; see `Suite`.
    """

    data_set = "Flickr30k, Karpathy's test split"
    key = "flickr30k_test"

    def __init__(self, root: str, captions_per_image: int | None = 5, **options: Any) -> None:
        super().__init__(root, **options)
        self.captions_per_image = captions_per_image

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`."""
        return karpathy(self, FILES, flickr30k_image, self.captions_per_image)
