"""Retrieval on Flickr30k."""

from __future__ import annotations

from typing import Any

from patchword.suites.captioned import Captioned
from patchword.suites.karpathy import karpathy
from patchword.suites.retrieval import RetrievalSuite


class Flickr30kRetrieval(RetrievalSuite):
    """Retrieval on Flickr30k (Young et al., TACL 2014), Karpathy's test split: 1,000 images with five captions each.

    Args:
        root: The folder with `dataset_flickr30k.json` and `flickr30k-images/`.
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
        return karpathy(self.root, "dataset_flickr30k.json", "flickr30k-images", self.captions_per_image)
