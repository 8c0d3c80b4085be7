"""ARO's COCO-Order and Flickr30k-Order: does a caption score higher than its words in other orders?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from patchword.metrics.compositional import Answers, chance_of_captions, share
from patchword.suites import coco, flickr30k
from patchword.suites.base import Suite
from patchword.suites.captioned import Captioned
from patchword.suites.karpathy import coco_image, karpathy
from patchword.suites.matching import MatchingSuite
from patchword.suites.shuffles import cleaned, wrong_orders
from patchword.suites.tagger import tagged


class OrderSuite(MatchingSuite):
    """A suite that compares a caption with four other orders of its words.

    The authors do not publish the orders and do not set a seed. Here the orders are drawn with a seed, and spaCy splits
    the words (the authors split words with NLTK for two of the four orders).

    Args:
        root: The folder of the data set, in its published layout.
        tagger: The spaCy model that finds nouns and adjectives.
        seed: The seed of the random orders.
        options: Options of all suites; see `Suite`.

    Attributes:
        files: The names of the file of the captions; see `karpathy`.
        find: The path of an image; see `karpathy`.
    """

    files: ClassVar[tuple[str, str]]
    find: ClassVar[Callable[[Suite, str], Path]]
    definitions: ClassVar[dict[str, str]] = {
        "accuracy": "Share of captions that score strictly higher with their image than each of four random orders of "
        "their words: shuffled nouns and adjectives, shuffled other words, shuffled words within groups of three, and "
        "shuffled groups of three. SpaCy splits the words. Texts are in lower case, without punctuation, and have at "
        "most 30 words. An order that equals the caption or another order is left out.",
    }

    def __init__(self, root: str, tagger: str = "en_core_web_sm", seed: int = 0, **options: Any) -> None:
        super().__init__(root, **options)
        self.tagger = tagger
        self.seed = seed

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`. Each caption with another order is one question; ids count all captions."""
        images = karpathy(self, self.files, type(self).find, None)
        pairs = [(image, caption) for image in images for caption in image.captions]
        found = []
        words = tagged((caption for _, caption in pairs), self.tagger)
        for number, ((image, caption), own) in enumerate(zip(pairs, words, strict=True)):
            orders = wrong_orders(own, np.random.default_rng((self.seed, number)))
            true, wrong = cleaned(caption), [cleaned(order) for order in orders]
            same = (true, cleaned(" ".join(word for word, _ in own)))
            if others := tuple(dict.fromkeys(order for order in wrong if order not in same)):
                found.append(Captioned(number, image.pictures, (true, *others)))
        return found

    def numbers(self, answers: Answers) -> dict[str, float]:
        """See `MatchingSuite.numbers`."""
        found = {"accuracy": share(answers.caption), "chance_accuracy": chance_of_captions(answers)}
        return found | {"orders": float((answers.captions - 1).sum())}


class CocoOrder(OrderSuite):
    """COCO-Order of ARO (Yuksekgonul et al., ICLR 2023, arXiv 2210.01936), on Karpathy's test split.

    Args:
        root: The folder of the data set; see `CocoRetrieval`.
    """

    data_set = "ARO COCO-Order, Karpathy's test split"
    key = "aro_coco_order"
    files = coco.FILES
    find = coco_image


class Flickr30kOrder(OrderSuite):
    """Flickr30k-Order of ARO (Yuksekgonul et al., ICLR 2023, arXiv 2210.01936), on Karpathy's test split.

    Args:
        root: The folder of the data set; see `Flickr30kRetrieval`.
    """

    data_set = "ARO Flickr30k-Order, Karpathy's test split"
    key = "aro_flickr30k_order"
    files = flickr30k.FILES
    find = flickr30k.flickr30k_image
