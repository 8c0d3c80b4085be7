"""Retrieval on Flickr30k."""

from __future__ import annotations

from typing import Any

from patchword.suites.karpathy import karpathy
from patchword.suites.retrieval import Captioned, RetrievalSuite


class Flickr30kRetrieval(RetrievalSuite):
    """Retrieval on Flickr30k (Young et al., TACL 2014), Karpathy's test split: 1,000 images, five captions each.

    Args:
        root: The folder with `dataset_flickr30k.json` and `flickr30k-images/`.
        captions_per_image: The first so many captions of an image; null takes all.
        options: What every suite takes; see `Suite`.
    """

    data_set = "Flickr30k, Karpathy's test split"
    key = "flickr30k_test"

    def __init__(self, root: str, captions_per_image: int | None = 5, **options: Any) -> None:
        super().__init__(root, **options)
        self.captions_per_image = captions_per_image

    def records(self) -> list[Captioned]:
        """See `RetrievalSuite.records`."""
        return karpathy(self.root, "dataset_flickr30k.json", "flickr30k-images", self.captions_per_image)
