"""ARO's COCO-Order and Flickr30k-Order: is a caption told from its own words in another order?"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from patchword.metrics.compositional import Answers, chance_of_captions, share
from patchword.suites.karpathy import karpathy
from patchword.suites.matching import MatchingSuite, Question
from patchword.suites.retrieval import Captioned
from patchword.suites.shuffles import cleaned, wrong_orders
from patchword.suites.tagger import tagged


class OrderSuite(MatchingSuite):
    """A caption among four orders of its words.

    The authors publish no orders and set no seed: orders are drawn anew, with a seed, and words are those of spaCy
    (the authors split by NLTK for two of the four orders).

    Args:
        root: The folder of the data set, as it is published.
        tagger: The spaCy model that finds nouns and adjectives.
        seed: Each seed draws other orders.
        options: What every suite takes; see `Suite`.
    """

    definitions: ClassVar[dict[str, str]] = {
        "accuracy": "Share of captions that score strictly higher with their image than each of four orders of their "
        "words (nouns and adjectives, all others, within threes, of threes), as spaCy splits them, drawn with the "
        "seed; all in lower case without punctuation, 30 words at most; an order that equals the caption is left out.",
    }

    def __init__(self, root: str, tagger: str = "en_core_web_sm", seed: int = 0, **options: Any) -> None:
        super().__init__(root, **options)
        self.tagger = tagger
        self.seed = seed

    @abstractmethod
    def records(self) -> list[Captioned]:
        """The images with all their captions."""

    def questions(self) -> list[Question]:
        """See `MatchingSuite.questions`: one for each caption that has another order; ids count all captions."""
        pairs = [(record, caption) for record in self.records() for caption in record.captions]
        found = []
        words = tagged((caption for _, caption in pairs), self.tagger)
        for number, ((record, caption), own) in enumerate(zip(pairs, words, strict=True)):
            orders = wrong_orders(own, np.random.default_rng((self.seed, number)))
            true, wrong = cleaned(caption), [cleaned(order) for order in orders]
            if others := tuple(order for order in wrong if order != true and order != cleaned(_text(own))):
                found.append(Question(number, "", (record.picture,), (true, *others)))
        return found

    def numbers(self, answers: Answers) -> dict[str, float]:
        """See `MatchingSuite.numbers`."""
        return {
            "accuracy": share(answers.caption),
            "chance_accuracy": chance_of_captions(answers),
            "orders": float((answers.captions - 1).sum()),
        }


class CocoOrder(OrderSuite):
    """COCO-Order of ARO (Yuksekgonul et al., ICLR 2023, arXiv 2210.01936), on Karpathy's test split.

    Args:
        root: The folder with `dataset_coco.json` and `val2014/`.
    """

    data_set = "ARO COCO-Order, Karpathy's test split"
    key = "aro_coco_order"

    def records(self) -> list[Captioned]:
        """See `OrderSuite.records`."""
        return karpathy(self.root, "dataset_coco.json", None, None)


class Flickr30kOrder(OrderSuite):
    """Flickr30k-Order of ARO (Yuksekgonul et al., ICLR 2023, arXiv 2210.01936), on Karpathy's test split.

    Args:
        root: The folder with `dataset_flickr30k.json` and `flickr30k-images/`.
    """

    data_set = "ARO Flickr30k-Order, Karpathy's test split"
    key = "aro_flickr30k_order"

    def records(self) -> list[Captioned]:
        """See `OrderSuite.records`."""
        return karpathy(self.root, "dataset_flickr30k.json", "flickr30k-images", None)


def _text(tagged_words: list[tuple[str, str]]) -> str:
    """The caption's words in their own order, with spaces where spaCy splits."""
    return " ".join(word for word, _ in tagged_words)
