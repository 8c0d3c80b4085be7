"""Text towers from transformers: BERT, RoBERTa, ModernBERT, T5, and the text half of CLIP and SigLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchword.encoders.base import TextTower, Tokens
from patchword.encoders.frozen import Freezable
from patchword.encoders.loading import find_model, load, read_config
from patchword.encoders.lora import Lora, add_adapters
from patchword.encoders.tokenizer import FULL_LENGTH, SCENES, caption_tokenizer, load_tokenizer, with_vocabulary
from patchword.hub import record

CLASSES = {
    "clip_text_model": "CLIPTextModel",
    "siglip_text_model": "SiglipTextModel",
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
}


class HFText(Freezable, TextTower):
    """The token features of a transformers text model, after its last normalisation.

    Args:
        model: A hub name (`OWNER/NAME`, or `OWNER/NAME@REVISION`) or a folder. One that holds a pair of towers (CLIP,
            SigLIP) gives its text tower.
        config: Instead of `model`, to start from random weights: `model_type` and what differs from its defaults,
            as in `{"model_type": "t5", "num_layers": 0, "d_model": 96}`. The vocabulary follows the tokenizer.
        tokenizer: A hub name, a folder, or `emoji-scenes` for the words of patchword's scenes. Left out, that of
            `model`.
        max_length: Longest caption in tokens. Left out, what the model or else its tokenizer allows.
        freeze: Whether to keep the weights as they are, in eval mode.
        lora: Train low-rank adapters and keep the weights as they are; null trains all weights.

    Raises:
        ValueError: If not exactly one of `model` and `config` is given, a tokenizer is missing or does not tell
            which characters its tokens cover, or `max_length` is more than the model has positions for.
    """

    backbone: Any

    def __init__(
        self,
        model: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        max_length: int | None = None,
        freeze: bool = False,
        lora: Lora | None = None,
    ) -> None:
        super().__init__()
        source = find_model(model)
        other = None if tokenizer in (None, SCENES) else find_model(tokenizer)
        words = load_tokenizer(other or tokenizer or source)
        settings = read_config(source, None if config is None else with_vocabulary(config, words))
        settings = getattr(settings, "text_config", settings)  # of a pair, the text half
        self.captions = caption_tokenizer(words, settings, max_length)
        self.attend_all = settings.model_type in FULL_LENGTH
        self.backbone = load(source, settings, CLASSES)
        self.commits = record(source, other)
        if "pooler" in dict(self.backbone.named_children()):
            self.backbone.pooler = None
        add_adapters(self.backbone, lora, freeze)
        self.width = settings.hidden_size
        with torch.enable_grad():
            self.settle([self.eval()(self.tokenize(["a"]))], freeze)

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Token ids with masks and character spans, on the CPU."""
        return self.captions(captions)

    def forward(self, tokens: Tokens) -> Float[Tensor, "T L C"]:
        """Token features; finite for captions without a token, too."""
        return self.backbone(input_ids=tokens.ids, attention_mask=attention(tokens, self.attend_all)).last_hidden_state


def attention(tokens: Tokens, attend_all: bool) -> Tensor | None:
    """Which positions a text model attends to; None for all of them.

    A caption without any token attends to its first padding: a softmax over nothing is not a number.
    """
    if attend_all:
        return None
    mask = tokens.mask.clone()
    mask[:, 0] |= ~mask.any(-1)
    return mask.long()
