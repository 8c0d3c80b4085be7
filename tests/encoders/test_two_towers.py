"""Adapters and pooling of two towers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from patchword.encoders import HFText, TimmImage, TwoTowers

LINES = ["A red fire truck", "", "two dogs play on the grass"]


def encoder(tokenizers, style="words", backbone="test_vit", **arguments):
    torch.manual_seed(0)
    text = {"model_type": "t5", "d_model": 16, "num_layers": 0}
    image = TimmImage(backbone, image_size=64)
    return TwoTowers(image, HFText(config=text, tokenizer=tokenizers[style]), embed_dim=10, **arguments).eval()


def noise(count=2, size=64):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def test_shapes(tokenizers):
    pair = encoder(tokenizers)
    images, texts = pair.encode_images(noise()), pair.encode_texts(pair.tokenize(LINES))
    assert (pair.image_size, pair.grid, pair.embed_dim) == ((64, 64), (4, 4), 10)
    assert images.pooled.shape == (2, 10)
    assert images.patches.shape == (2, 16, 10)
    assert texts.tokens.shape == (3, 6, 10)
    torch.testing.assert_close(images.patches.mean(1), images.pooled)  # a linear adapter commutes with the mean


def test_extra_layer_is_for_the_pooled_vector_alone(tokenizers):
    pair = encoder(tokenizers, extra_layer=True)
    pixels = noise()
    patches, _ = pair.image(pixels)
    images = pair.encode_images(pixels)
    hidden = F.gelu(F.linear(patches.mean(1), pair.pooled_layer[0].weight, pair.pooled_layer[0].bias))
    torch.testing.assert_close(images.pooled, pair.image_adapter(hidden))
    torch.testing.assert_close(images.patches, pair.image_adapter(patches))


def test_class_token(tokenizers):
    pair = encoder(tokenizers, image_pool="cls")
    pixels = noise()
    torch.testing.assert_close(pair.encode_images(pixels).pooled, pair.image_adapter(pair.image(pixels)[1]))


@pytest.mark.parametrize(("pool", "positions"), [("mean", slice(None)), ("cls", slice(1)), ("eos", slice(-1, None))])
def test_text_pooling(pool, positions, tokenizers):
    pair = encoder(tokenizers, style="wordpiece", text_pool=pool)
    tokens = pair.tokenize(LINES)
    texts = pair.encode_texts(tokens)
    for row, mask in enumerate(tokens.mask):
        torch.testing.assert_close(texts.pooled[row], texts.tokens[row][mask][positions].mean(0))


@pytest.mark.parametrize("pool", ["mean", "cls", "eos"])
def test_an_empty_caption_pools_to_the_bias(pool, tokenizers):
    pair = encoder(tokenizers, text_pool=pool)
    tokens = pair.tokenize(["", ""])
    texts = pair.encode_texts(tokens)
    assert not texts.mask.any()
    torch.testing.assert_close(texts.pooled, pair.text_adapter.bias.expand(2, -1))


def test_selection_changes_the_mask_only(tokenizers):
    pair = encoder(tokenizers, style="wordpiece")
    tokens = pair.tokenize(LINES)
    everything, content = pair.encode_texts(tokens), pair.encode_texts(tokens, "content")
    torch.testing.assert_close(everything.pooled, content.pooled)
    torch.testing.assert_close(content.mask, tokens.select("content"))
    assert content.mask.sum() < everything.mask.sum()


def test_the_call_is_remembered(tokenizers):
    arguments = encoder(tokenizers, extra_layer=True).spec["init_args"]
    assert arguments["extra_layer"] is True
    assert arguments["image"]["init_args"]["name"] == "test_vit"


def test_messages(tokenizers):
    with pytest.raises(ValueError, match="no class token: set image_pool to mean"):
        encoder(tokenizers, backbone="test_resnet", image_pool="cls")
    with pytest.raises(ValueError, match="32 x 32 pixels and the encoder takes 64 x 64"):
        encoder(tokenizers).encode_images(noise(size=32))


def test_importing_encoders_imports_no_library_of_models():
    code = "import patchword.encoders, sys; print({'timm', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
