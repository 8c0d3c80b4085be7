"""Text towers from transformers: BERT, RoBERTa, ModernBERT, T5, and the text towers of CLIP and SigLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchword.encoders.base import TextTower, Tokens
from patchword.encoders.frozen import Freezable
from patchword.encoders.loading import find_model, load, read_config
from patchword.encoders.lora import Lora, add_adapters
from patchword.encoders.positions import stretched
from patchword.encoders.probe import measure_positions, position_tables
from patchword.encoders.tokenizer import (
    FULL_LENGTH,
    SCENES,
    caption_tokenizer,
    load_tokenizer,
    require_vocabulary,
    with_vocabulary,
)
from patchword.provenance.hub import record

CLASSES = {
    "clip_text_model": "CLIPTextModel",
    "siglip_text_model": "SiglipTextModel",
    "siglip2_text_model": "Siglip2TextModel",
    "mt5": "MT5EncoderModel",
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
}


class HFText(Freezable, TextTower):
    """The token features of a transformers text model, after its last normalization.

    Of a model with an encoder and a decoder, the encoder is used. Models whose features depend on the padding after a
    caption (FNet, ConvBERT, Nystroemformer, YOSO) are refused, because the features of a caption would depend on the
    other captions of its batch.

    Args:
        model: A hub name (`OWNER/NAME`, or `OWNER/NAME@REVISION`) or a folder. If it is a pair of towers (CLIP,
            SigLIP), its text tower is used.
        config: An alternative to `model` that starts from random weights: the `model_type` and all values that differ
            from its defaults, as in `{"model_type": "t5", "num_layers": 0, "d_model": 96}`. The default of the
            vocabulary size is that of the tokenizer.
        tokenizer: A hub name, a folder, or `emoji-scenes` for the words of patchword's scenes. The default is the
            tokenizer of `model`.
        max_length: The maximum number of tokens of a caption. The default is the limit of the model and its tokenizer.
        stretch_positions: Multiply the number of positions after the first 20 by this factor: with 4, the 77 positions
            of CLIP become 248, as in Long-CLIP (arXiv 2403.15378). The first 20 stay as they are, and the others are
            interpolated. `max_length` is then all positions by default. null leaves the positions as they are.
        freeze: Whether to freeze the weights and keep the model in eval mode.
        lora: Train low-rank adapters and freeze the original weights. null trains all weights.

    Raises:
        UserError: If not exactly one of `model` and `config` is given, the weights of the model are incomplete, the
            tokenizer is missing or does not provide character spans, `max_length` is more than the number of positions
            of the model, its positions cannot be stretched, or the model does not compute one feature per token from
            captions alone.
    """

    backbone: Any

    def __init__(
        self,
        model: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        max_length: int | None = None,
        stretch_positions: int | None = None,
        freeze: bool = False,
        lora: Lora | None = None,
    ) -> None:
        super().__init__()
        source = find_model(model)
        other = None if tokenizer in (None, SCENES) else find_model(tokenizer)
        words = load_tokenizer(other or tokenizer or source)
        settings = read_config(source, None if config is None else with_vocabulary(config, words))
        settings = getattr(settings, "text_config", settings)  # the text tower of a pair
        require_vocabulary(words, settings)
        self.attend_all = settings.model_type in FULL_LENGTH
        self.backbone = load(source, settings, CLASSES)
        if settings.is_encoder_decoder and settings.model_type not in CLASSES:
            self.backbone = self.backbone.get_encoder()  # a decoder's features depend only on the preceding tokens
        self.commits = record(source, other)
        asked = (words, settings.model_type, self.attend_all)
        if stretch_positions is not None:
            tables = position_tables(self.eval()._features, *asked)
            self.backbone = stretched(self.backbone, tables, stretch_positions)
        if "pooler" in dict(self.backbone.named_children()):
            self.backbone.pooler = None
        add_adapters(self.backbone, lora, freeze)
        positions = measure_positions(self.eval()._features, *asked)
        if stretch_positions is not None:
            max_length = max_length or positions  # the limit of the tokenizer is that of the original model
        self.captions = caption_tokenizer(words, settings, max_length, positions)
        with torch.enable_grad():
            features = self(self.tokenize(["a"]))
        self.width = features.shape[-1]
        self.settle([features], freeze)

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Returns token ids with masks and character spans, on the CPU."""
        return self.captions(captions)

    def forward(self, tokens: Tokens) -> Float[Tensor, "T L C"]:
        """Returns the features of all tokens. They are also finite for captions without tokens."""
        return self._features(tokens.ids, tokens.mask)

    def _features(self, ids: Int[Tensor, "T L"], mask: Bool[Tensor, "T L"]) -> Float[Tensor, "T L C"]:
        return self.backbone(input_ids=ids, attention_mask=attention(mask, self.attend_all)).last_hidden_state


def attention(mask: Bool[Tensor, "T L"], attend_all: bool) -> Tensor | None:
    """The attention mask of a text model; None if it attends to all positions.

    A caption without any token attends to its first padding position, because a softmax over no positions is NaN.
    """
    if attend_all:
        return None
    mask = mask.clone()
    mask[:, 0] |= ~mask.any(-1)
    return mask.long()
