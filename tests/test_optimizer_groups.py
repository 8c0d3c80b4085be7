"""Each parameter is in one optimizer group with the documented learning rate, also with rates per tower and block."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel

from patchword import AlignmentModule
from patchword.encoders import HFImage, HFText, PretrainedPair, TimmImage, TwoTowers
from patchword.encoders.lora import Lora
from patchword.errors import UserError
from patchword.objectives import CLIP
from patchword.training.param_groups import FineTuning, parameter_groups
from tests import tiny
from tests.encoders.conftest import tokenizers  # noqa: F401 - a fixture

DECAY = 0.5
VIT = {"depth": 2, "embed_dim": 16, "num_heads": 2}
TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def vit(**arguments):
    return TimmImage("vit_tiny_patch16_224", image_size=64, model_args=VIT, **arguments)


def bert(folder, style):
    """Return a BERT like MiniLM, which has a pooler that is not used."""
    BertModel(BertConfig(vocab_size=200, max_position_embeddings=32, **TOWER)).save_pretrained(folder)
    return HFText(str(folder), tokenizer=style)


def rates(encoder, **options):
    """Return learning rate and weight decay of each parameter in AdamW."""
    module = AlignmentModule(encoder, CLIP(), fine_tuning=FineTuning(**options))
    groups = parameter_groups(module, encoder, module.fine_tuning)
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(n for n, p in module.named_parameters() if p.requires_grad), "each in one group"
    module.optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.1)
    made = module.configure_optimizers()["optimizer"]
    owners = {id(p): (group["lr"], group["weight_decay"]) for group in made.param_groups for p in group["params"]}
    return {name: owners[id(p)] for name, p in module.named_parameters() if p.requires_grad}


def test_vit_and_bert(tokenizers, tmp_path):  # noqa: F811
    """Blocks of timm's ViT and of BERT have their factors, and heads and the temperature have the full rate."""
    encoder = TwoTowers(vit(), bert(tmp_path, tokenizers["wordpiece"]), embed_dim=8)
    found = rates(encoder, tower_lr=0.1, layer_decay=DECAY, decay_embeddings=False)
    image, text = "encoder.image.backbone", "encoder.text.backbone"
    expected = {
        f"{image}.cls_token": (0.1 * DECAY**3, 0),
        f"{image}.pos_embed": (0.1 * DECAY**3, 0),
        f"{image}.patch_embed.proj.weight": (0.1 * DECAY**3, 0.1),
        f"{image}.blocks.0.attn.qkv.weight": (0.1 * DECAY**2, 0.1),
        f"{image}.blocks.1.attn.qkv.weight": (0.1 * DECAY, 0.1),
        f"{image}.blocks.1.attn.qkv.bias": (0.1 * DECAY, 0),
        f"{image}.norm.weight": (0.1, 0),
        f"{text}.embeddings.word_embeddings.weight": (0.1 * DECAY**3, 0.1),
        f"{text}.embeddings.position_embeddings.weight": (0.1 * DECAY**3, 0),
        f"{text}.embeddings.LayerNorm.weight": (0.1 * DECAY**3, 0),
        f"{text}.encoder.layer.0.attention.self.query.weight": (0.1 * DECAY**2, 0.1),
        f"{text}.encoder.layer.1.output.dense.weight": (0.1 * DECAY, 0.1),
        "encoder.image_adapter.weight": (1.0, 0.1),
        "encoder.text_adapter.bias": (1.0, 0),
    }
    for name, (rate, decay) in expected.items():
        assert found[name] == pytest.approx((rate, decay)), name
    (temperature,) = [value for name, value in found.items() if name.startswith("objective.")]
    assert temperature == (1.0, 0.0)


def test_clip(tokenizers):  # noqa: F811
    """CLIP's projections are heads, and its class and position embeddings come before the first block."""
    text = TOWER | {"max_position_embeddings": 24, "projection_size": 16}
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    config = {"model_type": "clip", "text_config": text, "vision_config": vision}
    encoder = PretrainedPair(config=config, tokenizer=tokenizers["clip"])
    found = rates(encoder, tower_lr=0.1, layer_decay=DECAY, decay_embeddings=False)
    for half in ("vision_model", "text_model"):
        layers = f"encoder.model.{half}.encoder.layers"
        assert found[f"{layers}.0.self_attn.q_proj.weight"] == pytest.approx((0.1 * DECAY**2, 0.1))
        assert found[f"{layers}.1.self_attn.q_proj.weight"] == pytest.approx((0.1 * DECAY, 0.1))
        assert found[f"encoder.model.{half}.embeddings.position_embedding.weight"] == pytest.approx((0.1 * DECAY**3, 0))
    assert found["encoder.model.vision_model.embeddings.class_embedding"] == pytest.approx((0.1 * DECAY**3, 0))
    assert found["encoder.model.vision_model.post_layernorm.weight"] == pytest.approx((0.1, 0))
    assert found["encoder.model.visual_projection.weight"] == (1.0, 0.1)


def test_defaults_are_two_groups_in_the_old_order():
    """Without options there are two groups, matrices and vectors, with one learning rate."""
    module = tiny.module(CLIP())
    (matrices, vectors) = module.configure_optimizers()["optimizer"].param_groups
    trainable = [p for p in module.parameters() if p.requires_grad]
    for group, is_vector in ((matrices, False), (vectors, True)):
        assert [*map(id, group["params"])] == [id(p) for p in trainable if (p.ndim < 2) == is_vector]
        assert group["initial_lr"] == 3e-3
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.01, 0.0)


def test_stages_of_a_convolutional_network():
    """Blocks are numbered across stages, and a downsampling layer has the rate of the layers before the next block."""
    image = TimmImage("convnext_atto", image_size=64, model_args={"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)})
    text = HFText(config={"model_type": "t5", "num_layers": 0, "d_model": 16}, tokenizer="emoji-scenes")
    found = rates(TwoTowers(image, text, embed_dim=8), layer_decay=DECAY)
    stages = "encoder.image.backbone.stages"
    by_stage = [found[f"{stages}.{n}.blocks.0.conv_dw.weight"][0] for n in range(4)]
    assert by_stage == [DECAY**4, DECAY**3, DECAY**2, DECAY]
    assert found[f"{stages}.2.downsample.1.weight"][0] == DECAY**3
    assert found["encoder.text.backbone.shared.weight"][0] == 1, "a tower without blocks has no layers to tell apart"


def test_a_frozen_tower_and_adapters():
    """Groups contain only trained parameters, and adapters have the rate of their block."""
    text = HFText(config={"model_type": "t5", "num_layers": 0, "d_model": 16}, tokenizer="emoji-scenes", freeze=True)
    found = rates(TwoTowers(vit(lora=Lora(rank=2)), text, embed_dim=8), layer_decay=DECAY)
    assert {name for name in found if name.startswith("encoder.image.")} == {name for name in found if "lora_" in name}
    assert found["encoder.image.backbone.blocks.0.attn.qkv.lora_A.default.weight"][0] == DECAY**2
    assert not any(name.startswith("encoder.text.") for name in found)


def test_towers_that_are_images_of_transformers():
    """Blocks and position embeddings of transformers' DINOv2 are found."""
    image = HFImage(config={"model_type": "dinov2", "image_size": 56, "patch_size": 14, **TOWER}, image_size=56)
    text = HFText(config={"model_type": "t5", "num_layers": 0, "d_model": 16}, tokenizer="emoji-scenes")
    found = rates(TwoTowers(image, text, embed_dim=8), layer_decay=DECAY, decay_embeddings=False)
    at = "encoder.image.backbone"
    assert found[f"{at}.embeddings.position_embeddings"] == (DECAY**3, 0)
    assert found[f"{at}.layernorm.weight"] == (1, 0)


@pytest.mark.parametrize("options", [{"tower_lr": 0.0}, {"layer_decay": 1.5}, {"layer_decay": float("nan")}])
def test_factors_out_of_range(options):
    """Factors that are not in (0, 1] are refused."""
    (name,) = options
    with pytest.raises(UserError, match=f"fine_tuning.{name} must be a factor"):
        FineTuning(**options)
