"""Pretrained CLIP and SigLIP models with their own pooling, projections and tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from patchword.encoders.base import Encoder, Selection, Tokens
from patchword.encoders.frozen import Freezable
from patchword.encoders.hf_image import framing, patch_grid, vision_outputs
from patchword.encoders.hf_processor import image_processor, normalization
from patchword.encoders.hf_text import attention
from patchword.encoders.loading import find_model, load, read_config
from patchword.encoders.lora import Lora, add_adapters
from patchword.encoders.naflex import patch_mask
from patchword.encoders.pixels import require_size
from patchword.encoders.tokenizer import SCENES, caption_tokenizer, load_tokenizer, require_vocabulary, with_vocabulary
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.provenance.hub import record

CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}


class PretrainedPair(Freezable, Encoder):
    """CLIP, SigLIP or SigLIP 2 from transformers, also SigLIP 2 with images of any shape (NaFlex).

    Pooled embeddings equal those of `get_image_features` and `get_text_features`. For CLIP, the layer norm and the
    projection are applied to all patches and tokens, although they were trained only on the class token and the
    end-of-text token. SigLIP pools images with an attention head and has no projection for single patches. Its patches
    are the normalized input tokens of that head: they have the width of the shared space, but were not trained to lie
    in it. Its text tokens are projected by its text head. For images of any shape, see `HFImage`.

    Args:
        model: A hub name (`OWNER/NAME`, or `OWNER/NAME@REVISION`) or a folder.
        config: An alternative to `model` that starts from random weights: `model_type` (`clip`, `siglip`, or `siglip2`
            for NaFlex), `text_config`, `vision_config` and all other values that differ from the defaults. The default
            of the vocabulary size is that of the tokenizer.
        tokenizer: A hub name, a folder, or `emoji-scenes`. The default is the tokenizer of `model`.
        image_size: Height and width in pixels. Position embeddings are interpolated to this size. The default is the
            size that the model was trained on, or for NaFlex 1.5 times the side of a square image.
        max_num_patches: The largest number of patches of an image, only for NaFlex. The default is that of the model's
            image processor.
        max_length: The maximum number of tokens of a caption. The default is the limit of the model.
        freeze: Whether to freeze the weights and keep the model in eval mode.
        lora: Train low-rank adapters and freeze the original weights. null trains all weights.

    Raises:
        UserError: If the model is neither CLIP nor SigLIP, its weights are incomplete, or an argument does not fit the
            model.
    """

    model: Any

    def __init__(
        self,
        model: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        image_size: int | None = None,
        max_num_patches: int | None = None,
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
            kind = settings.model_type
            raise UserError(f"{kind} is neither CLIP nor SigLIP: combine two towers with TwoTowers instead")
        self.is_clip = settings.model_type == "clip"
        self.attend_all = not self.is_clip
        if self.is_clip:
            _require_end(words, settings.text_config)
        require_vocabulary(words, settings.text_config)
        self.captions = caption_tokenizer(words, settings.text_config, max_length)
        processor = image_processor(source)
        self.preprocessing, image_size = framing(settings.vision_config, processor, image_size, max_num_patches)
        self.image_size, self.grid = patch_grid(settings.vision_config, image_size)
        self.normalize = normalization(processor, settings.model_type)
        self.model = load(source, settings, CLASSES)
        self.commits = record(source, other)
        add_adapters(self.model, lora, freeze)
        with torch.enable_grad():
            images = self.eval().encode_images(torch.zeros(1, 3, *self.image_size, dtype=torch.uint8))
            texts = self.encode_texts(self.tokenize(["a"]))
        self.embed_dim = images.pooled.shape[-1]
        self.settle([images.pooled, images.patches, texts.pooled, texts.tokens], freeze)

    def towers(self) -> list[nn.Module]:
        """The image tower and the text tower of the model."""
        return [self.model.vision_model, self.model.text_model]

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Returns token ids with masks and character spans, on the CPU. SigLIP pads them to the full length."""
        return self.captions(captions)

    def encode_images(self, pixels: UInt8[Tensor, "I _ H W"]) -> Images:
        """Returns the embeddings of raw pixels, which must have the size `image_size`."""
        require_size(pixels, self.image_size, self.preprocessing)
        mask = patch_mask(pixels, self.grid)
        tokens, pooled = vision_outputs(self.model.vision_model, self.normalize(pixels[:, :3]), mask)
        if not self.is_clip:
            assert pooled is not None  # SigLIP's head
            return Images(pooled, tokens, self.grid, mask)
        embedded = self.model.visual_projection(tokens)
        return Images(embedded[:, 0], embedded[:, 1:], self.grid)

    def encode_texts(self, tokens: Tokens, selection: Selection = "all") -> Texts:
        """Returns the embeddings of captions. `selection` affects their mask, and not the pooled embeddings."""
        text = self.model.text_model
        output = text(input_ids=tokens.ids, attention_mask=attention(tokens.mask, self.attend_all))
        project = self.model.text_projection if self.is_clip else text.head
        # SigLIP has already applied the head to its pooler output.
        pooled = project(output.pooler_output) if self.is_clip else output.pooler_output
        return Texts(pooled, project(output.last_hidden_state), tokens.select(selection))


def _require_end(tokenizer: Any, text_config: Any) -> None:
    """Require the end-of-text token that CLIP pools. Without it, CLIP would silently pool the first token."""
    legacy = text_config.eos_token_id == 2  # old configurations: the end-of-text token is the last id of the vocabulary
    end = len(tokenizer) - 1 if legacy else text_config.eos_token_id
    if tokenizer.eos_token_id != end:
        raise UserError(
            f"CLIP pools a caption at its end-of-text token, which has id {end}, but the end-of-text token of the "
            f"tokenizer has id {tokenizer.eos_token_id}: use the tokenizer of the model, or SigLIP, or TwoTowers"
        )
