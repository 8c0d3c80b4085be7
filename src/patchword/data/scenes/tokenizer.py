"""A word-level tokenizer for the captions of the emoji scenes, built from the table of concepts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from patchword.data.scenes.captions import LEADS, RELATIONS
from patchword.data.scenes.concepts import CONCEPTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def scene_tokenizer() -> PreTrainedTokenizerFast:
    """Create a tokenizer that lower-cases texts, splits words and punctuation, and knows every word of every split.

    Id 0 is [PAD], 1 is [UNK], and all words follow in alphabetical order. The tokenizer adds no special tokens.
    With truncation it cuts texts after 64 tokens.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *_words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    )


def _words() -> list[str]:
    texts = [*LEADS, *RELATIONS, "and", ",", *(concept.phrase for concept in CONCEPTS)]
    return sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
