"""Adapters do not change the output before training, only adapters are trained, and checkpoints restore them."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from patchword import AlignmentModule
from patchword.distributed import own
from patchword.encoders import HFImage, HFText, PretrainedPair, TimmImage, TwoTowers
from patchword.encoders.compilation import compile_towers
from patchword.encoders.lora import Lora, merged
from patchword.errors import UserError
from patchword.objectives import CLIP, SPARC
from patchword.training.fsdp import shard
from patchword.training.lr_schedule import Schedule
from tests import tiny
from tests.ranks import on_ranks
from tests.test_engines import CAPTIONS, full, pixels, trained

TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {"depth": 2, "embed_dim": 16, "num_heads": 2}
T5 = {"model_type": "t5", "num_layers": 1, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "dropout_rate": 0.0}
PIXELS = torch.arange(2 * 3 * 64 * 64).view(2, 3, 64, 64).remainder(251).to(torch.uint8)
LORA = Lora(rank=2, alpha=4)
PHOTOS = pixels()


def timm_image(tokenizers, lora):
    return TimmImage("vit_tiny_patch16_224", image_size=64, model_args=VIT, lora=lora)


def hf_image(tokenizers, lora):
    return HFImage(config={"model_type": "dinov2", "image_size": 64, "patch_size": 16, **TOWER}, lora=lora)


def bert(tokenizers, lora):
    return HFText(config={"model_type": "bert", **TOWER}, tokenizer=tokenizers["wordpiece"], lora=lora)


def t5(tokenizers, lora):
    return HFText(config=T5, tokenizer=tokenizers["unigram"], lora=lora)


def pair(kind, tokenizers, lora):
    text = TOWER | {"max_position_embeddings": 24, "projection_size": 16}
    config = {"model_type": kind, "text_config": text, "vision_config": TOWER | {"image_size": 64, "patch_size": 16}}
    return PretrainedPair(config=config, tokenizer=tokenizers["clip" if kind == "clip" else "unigram"], lora=lora)


def clip(tokenizers, lora):
    return pair("clip", tokenizers, lora)


def siglip(tokenizers, lora):
    return pair("siglip", tokenizers, lora)


def output(tower):
    """All outputs of a tower for two images or captions."""
    if isinstance(tower, PretrainedPair):
        images, texts = tower.encode_images(PIXELS), tower.encode_texts(tower.tokenize(["a red fire truck", "a dog"]))
        return torch.cat([x.flatten() for x in (images.pooled, images.patches, texts.pooled, texts.tokens)])
    if isinstance(tower, HFText):
        return tower(tower.tokenize(["a red fire truck", "a dog"])).flatten()
    return tower(PIXELS)[0].flatten()


@pytest.mark.parametrize("make", [timm_image, hf_image, bert, t5, clip, siglip])
def test_adapters_start_at_zero_and_can_be_merged(make, tokenizers):
    """The initial output is the base model's, only adapters get gradients, and merging keeps the output."""
    torch.manual_seed(0)
    plain = make(tokenizers, None).eval()
    torch.manual_seed(0)
    tower = make(tokenizers, LORA).eval()
    torch.testing.assert_close(output(tower), output(plain), rtol=0, atol=1e-6)
    training = {name for name, p in tower.named_parameters() if p.requires_grad}
    assert training
    assert all("lora_" in name for name in training)
    output(tower).square().sum().backward()
    assert all(p.grad is not None for name, p in tower.named_parameters() if name in training)
    for name, parameter in tower.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    changed = output(tower)
    assert (changed - output(plain)).abs().max() > 1e-3
    name = "model" if isinstance(tower, PretrainedPair) else "backbone"
    setattr(tower, name, merged(getattr(tower, name)))
    assert not [key for key, _ in tower.named_parameters() if "lora_" in key]
    torch.testing.assert_close(output(tower), changed, rtol=1e-4, atol=1e-5)


def module(**arguments):
    torch.manual_seed(0)
    image = TimmImage("vit_tiny_patch16_224", image_size=64, model_args=VIT, lora=LORA)
    text = HFText(config=T5, tokenizer="emoji-scenes", lora=Lora(rank=2, targets=["q", "v"]))
    arguments = {"schedule": Schedule(final=1.0), "optimizer": torch.optim.AdamW} | arguments
    return AlignmentModule(TwoTowers(image, text, embed_dim=16), SPARC(), **arguments)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_checkpoint_rebuilds_adapters_and_training_goes_on(tmp_path):
    """Base weights do not change, and a resumed run ends with the weights of an uninterrupted run."""
    data = {"train_size": 32, "batch_size": 16}
    before = module().state_dict()
    whole = module()
    tiny.trainer(tmp_path / "whole", max_epochs=2, every_n_steps=2).fit(whole, tiny.data(**data))
    for name, value in whole.state_dict().items():
        if name.startswith(("encoder.image.", "encoder.text.")) and "lora_" not in name:
            assert torch.equal(value, before[name]), name
    moved = {n for n, v in whole.state_dict().items() if "lora_B" in n and v.any()}
    assert moved == {name for name in before if "lora_B" in name}

    tiny.trainer(tmp_path / "part", max_epochs=1, every_n_steps=2).fit(module(), tiny.data(**data))
    saved = tmp_path / "part" / "last.ckpt"
    loaded = AlignmentModule.load_from_checkpoint(saved, weights_only=True)
    assert loaded.encoder.image.spec["init_args"]["lora"] == {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": None}
    assert not any(p.requires_grad for n, p in loaded.encoder.named_parameters() if "base_layer" in n)
    resumed = module()
    tiny.trainer(tmp_path / "rest", max_epochs=2, every_n_steps=2).fit(
        resumed, tiny.data(**data), ckpt_path=saved, weights_only=True
    )
    for (name, value), expected in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0, msg=name)


def test_checkpointing_and_chunks_change_no_gradient():
    """Gradient checkpointing and chunks do not change the gradients of the adapters."""
    from patchword.data.batch import collate

    scenes = tiny.data().split("train")
    batch = collate([scenes[i] for i in range(4)])
    gradients = []
    for options in ({}, {"gradient_checkpointing": True}, {"chunk_size": 2}):
        made = module(**options).train()
        if options.get("gradient_checkpointing"):
            from patchword.encoders.checkpointing import checkpoint_gradients

            checkpoint_gradients(made.encoder)
        images, texts, _ = made(batch)
        sum(made.losses(images, texts).values()).backward()
        gradients.append({n: p.grad for n, p in made.named_parameters() if "lora_B" in n})
    assert all(value.any() for value in gradients[0].values())
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-7)


def test_messages(tokenizers, monkeypatch):
    """Each message names the option, and says how to correct it."""
    with pytest.raises(UserError, match="rank must be 1 or more"):
        Lora(rank=0)
    with pytest.raises(UserError, match="dropout must be"):
        Lora(dropout=1.0)
    with pytest.raises(UserError, match=r"has no layer 'q_proj'; .*qkv"):
        timm_image(tokenizers, Lora(targets=["q_proj"]))
    with pytest.raises(UserError, match="finds no linear layers in the blocks of ResNet"):
        TimmImage("resnet18", image_size=64, lora=LORA)
    with pytest.raises(UserError, match="remove freeze"):
        TimmImage("vit_tiny_patch16_224", image_size=64, model_args=VIT, freeze=True, lora=LORA)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'patchword\[lora\]'"):
        timm_image(tokenizers, LORA)


def _sharded(rank):
    encoder, objective = module().encoder.double(), CLIP().double()
    shard(encoder, objective, init_device_mesh("cpu", (2,)))
    assert all(isinstance(p, DTensor) for p in encoder.parameters())
    return trained(encoder, objective, own(PHOTOS), CAPTIONS[2 * rank : 2 * rank + 2])


def test_adapters_sharded_over_two_ranks_equal_one_process():
    """FSDP2: losses, gradients and weights after three AdamW steps are equal, and base weights do not change."""
    before = {name: full(x) for name, x in module().encoder.double().state_dict().items()}
    expected = trained(module().encoder.double(), CLIP().double(), PHOTOS, CAPTIONS)
    assert {name for name in expected["gradients"] if ".image." in name or ".text." in name} == {
        f"encoder.{name}" for name in before if "lora_" in name
    }
    for found in on_ranks(_sharded):
        assert_close(found, expected)
        for name, x in before.items():
            if "base_layer" in name:
                assert torch.equal(found["weights"][f"encoder.{name}"], x), name


def _compiled(rank):
    from torch._dynamo.utils import counters

    counters.clear()
    encoder = module().encoder.double()
    compile_towers(encoder, backend="aot_eager")
    found = trained(encoder, CLIP().double(), own(PHOTOS), CAPTIONS[2 * rank : 2 * rank + 2])
    plain = trained(module().encoder.double(), CLIP().double(), own(PHOTOS), CAPTIONS[2 * rank : 2 * rank + 2])
    graphs, breaks = counters["stats"]["unique_graphs"], dict(counters["graph_break"])
    torch._dynamo.reset()
    return graphs, breaks, found, plain


def test_compiled_adapters_change_nothing():
    """On two ranks, losses, gradients, weights and names are equal. Each tower has one graph without breaks."""
    for graphs, breaks, found, plain in on_ranks(_compiled):
        assert (graphs, breaks) == (2, {})
        assert_close(found, plain)
