"""A CLIP or SigLIP pair as it was trained: its own pooling, projections and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from patchword.encoders.base import Encoder, Selection, Tokens
from patchword.encoders.frozen import Freezable
from patchword.encoders.hf_image import image_processor, patch_grid, pixel_statistics, preprocessing, vision_tokens
from patchword.encoders.hf_text import attention
from patchword.encoders.loading import find_model, load, read_config
from patchword.encoders.lora import Lora, add_adapters
from patchword.encoders.pixels import Normalize, require_size
from patchword.encoders.tokenizer import SCENES, caption_tokenizer, load_tokenizer, with_vocabulary
from patchword.errors import InputError
from patchword.features import Images, Texts
from patchword.hub import record

CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel"}


class PretrainedPair(Freezable, Encoder):
    """CLIP, SigLIP or SigLIP 2 of fixed resolution from transformers.

    Pooled embeddings are those of `get_image_features` and `get_text_features`. CLIP puts its patches and tokens
    through the layer norm and the projection that it was trained to apply to the class and end-of-text token
    alone. SigLIP pools images with an attention head and has no projection for single patches: its patches are
    the normalised tokens that the head reads, in the width of the shared space but not trained to lie in it,
    while its text tokens go through its text head. Without training, expect maps of either to be coarse.

    Args:
        model: A hub name (`OWNER/NAME`, or `OWNER/NAME@REVISION`) or a folder.
        config: Instead of `model`, to start from random weights: `model_type` (`clip` or `siglip`), `text_config`,
            `vision_config` and what else differs from the defaults. The vocabulary follows the tokenizer.
        tokenizer: A hub name, a folder, or `emoji-scenes`. Left out, that of `model`.
        image_size: Height and width in pixels. Position embeddings are interpolated to it. Left out, the size
            that the model was trained on.
        max_length: Longest caption in tokens. Left out, what the model allows.
        freeze: Whether to keep the weights as they are, in eval mode.
        lora: Train low-rank adapters and keep the weights as they are; null trains all weights.

    Raises:
        InputError: If the model is neither CLIP nor SigLIP, or an argument does not fit it.
    """

    model: Any

    def __init__(
        self,
        model: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        image_size: int | None = None,
        max_length: int | None = None,
        freeze: bool = False,
        lora: Lora | None = None,
    ) -> None:
        super().__init__()
        source = find_model(model)
        other = None if tokenizer in (None, SCENES) else find_model(tokenizer)
        words = load_tokenizer(other or tokenizer or source)
        if config is not None:
            config = config | {"text_config": with_vocabulary(config.get("text_config", {}), words)}
        settings = read_config(source, config)
        if settings.model_type not in CLASSES:
            raise InputError(f"{settings.model_type} is no CLIP or SigLIP: pair two towers with TwoTowers instead")
        self.is_clip = settings.model_type == "clip"
        if self.is_clip:
            _require_end(words, settings.text_config)
        self.captions = caption_tokenizer(words, settings.text_config, max_length)
        self.image_size, self.grid = patch_grid(settings.vision_config, image_size)
        processor = image_processor(source)
        self.normalize = Normalize(*pixel_statistics(processor, settings.model_type))
        self.preprocessing = preprocessing(processor, settings.model_type)
        self.model = load(source, settings, CLASSES)
        self.commits = record(source, other)
        add_adapters(self.model, lora, freeze)
        with torch.enable_grad():
            images = self.eval().encode_images(torch.zeros(1, 3, *self.image_size, dtype=torch.uint8))
            texts = self.encode_texts(self.tokenize(["a"]))
        self.embed_dim = images.pooled.shape[-1]
        self.settle([images.pooled, images.patches, texts.pooled, texts.tokens], freeze)

    def towers(self) -> list[nn.Module]:
        """The image half and the text half of the model."""
        return [self.model.vision_model, self.model.text_model]

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Token ids with masks and character spans, on the CPU; SigLIP's are padded to the full length."""
        return self.captions(captions)

    def encode_images(self, pixels: UInt8[Tensor, "I 3 H W"]) -> Images:
        """Embeddings of raw pixels.

        Raises:
            InputError: If the images do not have the size that the model takes.
        """
        require_size(pixels, self.image_size)
        vision = self.model.vision_model
        tokens = vision_tokens(vision, self.normalize(pixels))
        if not self.is_clip:
            return Images(vision.head(tokens), tokens, self.grid)
        embedded = self.model.visual_projection(tokens)
        return Images(embedded[:, 0], embedded[:, 1:], self.grid)

    def encode_texts(self, tokens: Tokens, selection: Selection = "all") -> Texts:
        """Embeddings of captions, with the tokens of `selection` in the mask; pooling does not depend on it."""
        text = self.model.text_model
        output = text(input_ids=tokens.ids, attention_mask=attention(tokens, attend_all=not self.is_clip))
        project = self.model.text_projection if self.is_clip else text.head
        # SigLIP's pooler output has been through the head already.
        pooled = project(output.pooler_output) if self.is_clip else output.pooler_output
        return Texts(pooled, project(output.last_hidden_state), tokens.select(selection))


def _require_end(tokenizer: Any, text_config: Any) -> None:
    """CLIP looks for the end-of-text token by its id; without it, it would pool the first token and say nothing."""
    legacy = text_config.eos_token_id == 2  # in configurations that predate the field, the last id of the vocabulary
    end = len(tokenizer) - 1 if legacy else text_config.eos_token_id
    if tokenizer.eos_token_id != end:
        raise InputError(
            f"CLIP pools a caption at its end-of-text token, id {end}, and that of the tokenizer is "
            f"{tokenizer.eos_token_id}: use the tokenizer of the model, or PretrainedPair with SigLIP, or TwoTowers"
        )
