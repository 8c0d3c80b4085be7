"""Tokenize captions into padded token ids with character spans."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from patchword.encoders.base import Tokens
from patchword.encoders.loading import find_model, pretrained
from patchword.errors import UserError
from patchword.provenance.hub import Repository

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

# The name of the tokenizer for the words of patchword's scenes.
SCENES = "emoji-scenes"

# Types that were trained on captions in lower case that are padded to the full length, with attention to the padding.
# Their tokenizers on the hub do not always convert captions to lower case.
FULL_LENGTH = frozenset({"siglip_text_model", "siglip2_text_model"})

# The vocabulary size of the first SigLIP, which was trained without punctuation. SigLIP 2 has another vocabulary.
FIRST_SIGLIP_WORDS = 32_000


class CaptionTokenizer:
    """A fast tokenizer of the transformers library that returns `Tokens`.

    Args:
        tokenizer: The tokenizer.
        max_length: The maximum number of tokens. Longer captions are truncated. None means no limit.
        full_length: Whether to pad captions to `max_length` instead of the longest caption of the batch.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int | None, full_length: bool = False) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.full_length = full_length

    def save_pretrained(self, folder: Path) -> None:
        """Save the tokenizer with its maximum length in the format of transformers."""
        words = deepcopy(self.tokenizer)
        words.backend_tokenizer.no_truncation()
        words.backend_tokenizer.no_padding()
        words.model_max_length = self.max_length or words.model_max_length
        words.save_pretrained(folder)

    def __call__(self, captions: Sequence[str]) -> Tokens:
        """Returns T captions as `Tokens` on the CPU. They have at least one position."""
        captions = list(captions)
        rows = []
        if captions:  # tokenizers do not accept an empty list
            truncate = self.max_length is not None
            rows = self.tokenizer(captions, truncation=truncate, max_length=self.max_length).encodings
        length = max([1, *map(len, rows)])
        if self.full_length and self.max_length is not None:
            length = self.max_length
        for row in rows:  # pads in place
            row.pad(length, pad_id=self.tokenizer.pad_token_id, pad_token=self.tokenizer.pad_token)
        shape = (len(rows), length)
        ids = torch.tensor([row.ids for row in rows], dtype=torch.long).view(shape)
        special = torch.tensor([row.special_tokens_mask for row in rows], dtype=torch.bool).view(shape)
        unknown = self.tokenizer.unk_token_id  # some tokenizers also use this token as a special token
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
    """The tokenizer of a hub name, a folder or a repository, or of `emoji-scenes`, the words of patchword's scenes.

    Raises:
        UserError: If `name` is None or does not exist, or the tokenizer does not provide character spans, or has no
            padding token.
    """
    if name is None:
        raise UserError("config does not include a tokenizer: set tokenizer to a hub name, a folder or emoji-scenes")
    if name == SCENES:
        from patchword.data.scenes.tokenizer import scene_tokenizer

        return scene_tokenizer()
    from transformers import AutoTokenizer

    source = find_model(name) if isinstance(name, str) else name
    assert source is not None
    name = source.name
    tokenizer: Any = pretrained(AutoTokenizer.from_pretrained, source)
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {name} does not provide character spans: use a model with a fast tokenizer (with a "
            "tokenizer.json), for example SigLIP 2 instead of SigLIP"
        )
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of {name} has no padding token: set its pad_token and save it to a folder")
    return tokenizer


def with_vocabulary(config: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """`config` with the vocabulary size and special ids of `tokenizer` as defaults."""
    known = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return {key: value for key, value in known.items() if value is not None} | config


def require_vocabulary(tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig) -> None:
    """Require that the text model of `config` has embeddings for all tokens of a tokenizer.

    Raises:
        UserError: If the tokenizer has more tokens than the model.
    """
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, but the text model has {config.vocab_size}: use the tokenizer "
            "of the model"
        )


def caption_tokenizer(
    tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig, max_length: int | None, positions: int | None = None
) -> CaptionTokenizer:
    """`tokenizer` with the user's `max_length`; None for the limit of the tokenizer and of the text model of `config`.

    `positions` is the measured number of positions of the model; None for the value in `config`.

    Raises:
        UserError: If `max_length` is less than 1, or more than the number of positions of the model.
    """
    if positions is None:
        positions = getattr(config, "max_position_embeddings", None)  # T5 has none
    if max_length is not None and max_length < 1:
        raise UserError(f"max_length must be 1 or more, not {max_length}")
    if max_length is not None and positions is not None and max_length > positions:
        raise UserError(
            f"the text model has {positions} positions: set max_length to that or less, not {max_length}, or set "
            "stretch_positions of HFText"
        )
    if config.model_type in FULL_LENGTH:
        _canonicalize(tokenizer, config.vocab_size == FIRST_SIGLIP_WORDS)
    limits = [tokenizer.model_max_length if tokenizer.model_max_length < 10**6 else None, positions]
    limit = max_length or min((n for n in limits if n is not None), default=None)
    return CaptionTokenizer(tokenizer, limit, config.model_type in FULL_LENGTH)


def _canonicalize(tokenizer: PreTrainedTokenizerFast, without_punctuation: bool) -> None:
    """Make `tokenizer` convert captions to lower case and remove punctuation. Spans refer to the original caption."""
    from tokenizers import Regex, normalizers

    backend = tokenizer.backend_tokenizer
    first: list[normalizers.Normalizer] = [normalizers.Lowercase()]
    if without_punctuation:
        first.append(normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""))
    backend.normalizer = normalizers.Sequence([*first, *([backend.normalizer] if backend.normalizer else [])])
