"""Folders of tiny models in the format of `save_pretrained`: weights, tokenizer and image processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PATCHES = {"image_size": 224, "patch_size": 56}


def clip_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """CLIP's own tokenizer, with the vocabulary of open_clip."""
    from open_clip.tokenizer import SimpleTokenizer

    words = SimpleTokenizer()
    merges = sorted(words.bpe_ranks, key=words.bpe_ranks.__getitem__)
    vocabulary = {
        {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}.get(word, word): number
        for word, number in words.encoder.items()
    }
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def save_clip(folder: Path) -> Path:
    """A CLIP that crops the center of an image."""
    torch.manual_seed(0)
    words = clip_tokenizer()
    text = {"vocab_size": len(words), "max_position_embeddings": 77, "projection_dim": 16, **TOWER}
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    config = transformers.CLIPConfig(
        text_config=text | ends, vision_config=TOWER | PATCHES | {"projection_dim": 16}, projection_dim=16
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    size = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    transformers.CLIPImageProcessor(**size).save_pretrained(folder)
    return folder


def save_siglip(folder: Path, tokenizer: str) -> Path:
    """A SigLIP that stretches images. SigLIP 2 with a fixed resolution has the same layout."""
    torch.manual_seed(0)
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    text = {"vocab_size": len(words), "max_position_embeddings": 64, "projection_size": 16, **TOWER}
    config = transformers.SiglipConfig(text_config=text, vision_config=TOWER | PATCHES)
    transformers.SiglipModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)
    return folder


def save_naflex(folder: Path, tokenizer: str, patch_size: int = 16, max_num_patches: int = 256) -> Path:
    """A SigLIP 2 NaFlex, which keeps the shapes of images, with a table of 4 x 4 positions."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    text = TOWER | ids | {"vocab_size": 64, "max_position_embeddings": 16, "projection_size": 16}
    vision = TOWER | {"patch_size": patch_size, "num_patches": 16}
    config = transformers.Siglip2Config(text_config=text, vision_config=vision)
    transformers.Siglip2Model(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    sizes = {"patch_size": patch_size, "max_num_patches": max_num_patches}
    transformers.Siglip2ImageProcessor(**sizes).save_pretrained(folder)
    return folder


def photo(width: int, height: int) -> Image.Image:
    """An image of color patches with soft edges."""
    colors = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC)
