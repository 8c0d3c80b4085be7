"""Captions to padded token ids, with the characters that each token covers."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from patchword.encoders.base import Tokens
from patchword.encoders.loading import find_model, pretrained
from patchword.errors import InputError
from patchword.hub import Repository

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

# The words of patchword's own scenes, as a tokenizer's name.
SCENES = "emoji-scenes"

# Positions count from the padding id + 1 in these.
SHIFTED_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})

# Trained on captions in lower case, padded to the full length, with attention to the padding. Tokenizers on the hub may
# leave the letters as they are.
FULL_LENGTH = frozenset({"siglip_text_model"})

# Of the first SigLIP, which was trained without punctuation, too; SigLIP 2 has another vocabulary.
FIRST_SIGLIP_WORDS = 32_000


class CaptionTokenizer:
    """A fast tokenizer of the transformers library as `Tokens`.

    Args:
        tokenizer: The tokenizer.
        max_length: Longer captions lose their end; None for no limit.
        full_length: Whether to pad to `max_length` rather than to the longest caption of the batch.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int | None, full_length: bool = False) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.full_length = full_length

    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizer with its limit, as transformers loads it."""
        words = deepcopy(self.tokenizer)
        words.backend_tokenizer.no_truncation()
        words.backend_tokenizer.no_padding()
        words.model_max_length = self.max_length or words.model_max_length
        words.save_pretrained(folder)

    def __call__(self, captions: Sequence[str]) -> Tokens:
        """T captions as `Tokens` on the CPU, at least one position long."""
        captions = list(captions)
        rows = []
        if captions:  # tokenizers refuse an empty list
            truncate = self.max_length is not None
            rows = self.tokenizer(captions, truncation=truncate, max_length=self.max_length).encodings
        length = max([1, *map(len, rows)])
        if self.full_length and self.max_length is not None:
            length = self.max_length
        for row in rows:  # in place
            row.pad(length, pad_id=self.tokenizer.pad_token_id, pad_token=self.tokenizer.pad_token)
        shape = (len(rows), length)
        ids = torch.tensor([row.ids for row in rows], dtype=torch.long).view(shape)
        special = torch.tensor([row.special_tokens_mask for row in rows], dtype=torch.bool).view(shape)
        unknown = self.tokenizer.unk_token_id  # of some tokenizers a token that has its own use, too
        return Tokens(
            captions=captions,
            ids=ids,
            mask=torch.tensor([row.attention_mask for row in rows], dtype=torch.bool).view(shape),
            special=special,
            spans=torch.tensor([row.offsets for row in rows], dtype=torch.long).view(*shape, 2),
            truncated=torch.tensor([bool(row.overflowing) for row in rows], dtype=torch.bool),
            unknown=torch.zeros_like(special) if unknown is None else (ids == unknown) & ~special,
        )


def load_tokenizer(name: str | Repository | None) -> PreTrainedTokenizerFast:
    """The tokenizer of a hub name, a folder or a model, or `emoji-scenes`, the words of patchword's own scenes.

    Raises:
        InputError: If there is no name, or nothing of that name, or the tokenizer cannot say which characters a token
            covers, or has no padding token.
    """
    if name is None:
        raise InputError("config has no tokenizer of its own: set tokenizer to a hub name, a folder or emoji-scenes")
    if name == SCENES:
        from patchword.data.words import scene_tokenizer

        return scene_tokenizer()
    from transformers import AutoTokenizer

    source = find_model(name) if isinstance(name, str) else name
    assert source is not None
    name = source.name
    tokenizer: Any = pretrained(AutoTokenizer.from_pretrained, source)
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer of {name} does not say which characters its tokens cover: use a model with a fast "
            "tokenizer (one that has a tokenizer.json), such as SigLIP 2 in place of SigLIP"
        )
    if tokenizer.pad_token_id is None:
        raise InputError(f"the tokenizer of {name} has no padding token: set its pad_token and save it to a folder")
    return tokenizer


def with_vocabulary(config: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """`config` with the vocabulary size and special ids of `tokenizer`, where it does not set them itself."""
    known = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return {key: value for key, value in known.items() if value is not None} | config


def caption_tokenizer(
    tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig, max_length: int | None
) -> CaptionTokenizer:
    """`tokenizer` with the limits of the text model that `config` describes.

    Raises:
        InputError: If `max_length` is more than the model has positions for, or the tokenizer knows more tokens
            than the model.
    """
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens and the text model {config.vocab_size}: "
            "they do not belong together"
        )
    positions = getattr(config, "max_position_embeddings", None)  # T5 has none
    if positions is not None and config.model_type in SHIFTED_POSITIONS:
        positions -= config.pad_token_id + 1
    if max_length is not None and positions is not None and max_length > positions:
        raise InputError(f"the text model has {positions} positions: set max_length to that or less, not {max_length}")
    if config.model_type in FULL_LENGTH:
        _canonicalize(tokenizer, config.vocab_size == FIRST_SIGLIP_WORDS)
    limits = [tokenizer.model_max_length if tokenizer.model_max_length < 10**6 else None, positions]
    limit = max_length or min((n for n in limits if n is not None), default=None)
    return CaptionTokenizer(tokenizer, limit, config.model_type in FULL_LENGTH)


def _canonicalize(tokenizer: PreTrainedTokenizerFast, without_punctuation: bool) -> None:
    """Let `tokenizer` put captions into lower case, and drop their punctuation; spans stay those of the caption."""
    from tokenizers import Regex, normalizers

    backend = tokenizer.backend_tokenizer
    first: list[normalizers.Normalizer] = [normalizers.Lowercase()]
    if without_punctuation:
        first.append(normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""))
    backend.normalizer = normalizers.Sequence([*first, *([backend.normalizer] if backend.normalizer else [])])
