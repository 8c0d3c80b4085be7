"""Retrieval on Flickr30k."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from patchword.suites.karpathy import karpathy
from patchword.suites.retrieval import Captioned, RetrievalSuite


class Flickr30kRetrieval(RetrievalSuite):
    """Retrieval on Flickr30k (Young et al., TACL 2014), Karpathy's test split: 1,000 images, five captions each.

    Args:
        root: The folder with `dataset_flickr30k.json` and `flickr30k-images/`.
        captions_per_image: The first so many captions of an image; null takes all.
        image_size: Height and width in pixels; null for what the encoder takes.
        fit: How an image becomes a square: `backbone` as the image tower was trained, `crop` its centre, `stretch` the
            whole image.
        batch_size: Samples per batch on each device.
        num_workers: Processes that read images; 0 reads them in the main process.
    """

    data_set = "Flickr30k, Karpathy's test split"
    key = "flickr30k_test"

    def __init__(
        self,
        root: str,
        captions_per_image: int | None = 5,
        image_size: int | None = None,
        fit: Literal["backbone", "crop", "stretch"] = "backbone",
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(image_size, fit, batch_size, num_workers)
        self.root = Path(root)
        self.captions_per_image = captions_per_image

    def records(self) -> list[Captioned]:
        """See `RetrievalSuite.records`."""
        return karpathy(self.root, "dataset_flickr30k.json", "flickr30k-images", self.captions_per_image)
