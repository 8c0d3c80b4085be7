"""Pretrained pairs compute the same embeddings as transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from patchword.encoders import PretrainedPair
from patchword.errors import UserError

TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION = TOWER | {"image_size": 32, "patch_size": 8}
STYLE = {"clip": "clip", "siglip": "unigram"}
LINES = ["A red fire truck", "", "two dogs play on the grass"]


def pair(kind, tokenizers, **arguments):
    text = TOWER | {"max_position_embeddings": 24, "projection_size": 16}
    config = {"model_type": kind, "text_config": text, "vision_config": VISION}
    torch.manual_seed(0)
    return PretrainedPair(config=config, tokenizer=tokenizers[STYLE[kind]], **arguments)


@pytest.fixture(params=["clip", "siglip"])
def kind(request):
    return request.param


@pytest.mark.parametrize("size", [32, 48])
def test_equal_to_transformers(kind, size, tokenizers, tmp_path, capfd):
    made = pair(kind, tokenizers)
    made.model.save_pretrained(tmp_path)
    made.captions.tokenizer.save_pretrained(tmp_path)
    capfd.readouterr()
    loaded = PretrainedPair(str(tmp_path), image_size=size)
    assert loaded.training
    loaded.eval()
    assert "REPORT" not in "".join(capfd.readouterr())
    reference = AutoModel.from_pretrained(tmp_path).eval()
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    images = loaded.encode_images(pixels)
    normal = loaded.normalize(pixels)
    expected = reference.get_image_features(pixel_values=normal, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(images.pooled, expected)
    assert images.grid == (size // 8, size // 8)
    tokens = loaded.tokenize(LINES)
    texts = loaded.encode_texts(tokens, "words")
    mask = tokens.mask.long() if kind == "clip" else None
    expected = reference.get_text_features(input_ids=tokens.ids, attention_mask=mask).pooler_output
    torch.testing.assert_close(texts.pooled, expected)
    assert images.patches.shape[-1] == texts.tokens.shape[-1] == loaded.embed_dim


@pytest.mark.parametrize("part", ["vision_model.post_layernorm", "text_model.encoder.layers.1.mlp.fc1"])
def test_a_pair_without_some_weights_is_refused(kind, part, tokenizers, tmp_path):
    """transformers would initialize the missing weights."""
    made = pair(kind, tokenizers)
    weights = {key: value for key, value in made.model.state_dict().items() if not key.startswith(part)}
    made.model.save_pretrained(tmp_path, state_dict=weights)
    made.captions.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path} .* 2 are missing, first {part}.bias"):
        PretrainedPair(str(tmp_path))


def test_the_token_that_clip_pools_is_the_pooled_vector(tokenizers):
    model = pair("clip", tokenizers).eval()
    tokens = model.tokenize(LINES)
    texts = model.encode_texts(tokens)
    last = tokens.mask.sum(-1) - 1
    torch.testing.assert_close(texts.pooled, texts.tokens[torch.arange(3), last])


def test_every_trainable_parameter_gets_a_gradient(kind, tokenizers):
    model = pair(kind, tokenizers)
    images = model.encode_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    texts = model.encode_texts(model.tokenize(LINES))
    sum(x.square().sum() for x in (images.pooled, images.patches, texts.pooled, texts.tokens)).backward()
    idle = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert idle <= {"model.logit_scale", "model.logit_bias"}  # objectives have their own parameters
    assert not [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_frozen(kind, tokenizers):
    model = pair(kind, tokenizers, freeze=True).train()
    assert not any(module.training for module in model.modules())
    assert not model.encode_texts(model.tokenize(LINES)).pooled.requires_grad


def test_messages(tokenizers):
    with pytest.raises(ValueError, match="TwoTowers"):
        PretrainedPair(config={"model_type": "bert"}, tokenizer=tokenizers["words"])
    with pytest.raises(ValueError, match="end-of-text token"):
        PretrainedPair(config={"model_type": "clip"}, tokenizer=tokenizers["words"])
    with pytest.raises(ValueError, match="set image_size"):
        pair("clip", tokenizers).encode_images(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
