"""Parameters that a loss does not depend on are found, reported and frozen, and the search changes nothing else."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from patchword import AlignmentModule
from patchword.encoders import HFText, TimmImage, TwoTowers
from patchword.objectives import CLIP, FILIP, PACL
from patchword.training.fsdp import shard
from patchword.training.unused_parameters import freeze_unused, summary
from tests import tiny
from tests.objectives.variants import VARIANTS, again
from tests.ranks import on_ranks


def module(objective: object) -> AlignmentModule:
    """Return towers whose pooled image embedding has its own layer."""
    image = TimmImage("vit_tiny_patch16_224", image_size=32, model_args={"depth": 1, "embed_dim": 16, "num_heads": 2})
    text = HFText(config={"model_type": "t5", "num_layers": 0, "d_model": 16}, tokenizer="emoji-scenes")
    return AlignmentModule(TwoTowers(image, text, embed_dim=16, extra_layer=True), objective)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_found_is_what_gets_no_gradient(variant: str) -> None:
    """In a real backward pass, all remaining parameters get a gradient, and the frozen ones would get none."""
    made = module(VARIANTS[variant]())
    found = set(freeze_unused(made))
    for name, parameter in made.named_parameters():
        if name in found:
            parameter.requires_grad_(True)
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    texts, tokens = made.encode_texts(["a red apple", "two suns", "a fish above a snail", "one dog"])
    images, others = made.encoder.encode_images(pixels), texts.pooled[[1, 2, 3, 0], None]
    images = replace(images, negatives=others, regions=torch.ones(4, 1, images.patches.shape[1]), region_texts=others)
    images = replace(images, masked=again(images.patches.detach()))
    images = replace(images, views=images.pooled[[1, 2, 3, 0], None], teacher=others.detach())
    texts = replace(texts, ids=tokens.ids.masked_fill(~tokens.mask, -1), masked=again(texts.tokens.detach()))
    texts = replace(texts, teacher=texts.pooled.detach())
    sum(made.objective(images, texts).values()).backward()
    assert found == {n for n, p in made.named_parameters() if p.requires_grad and p.grad is None}
    assert bool(found) == variant.startswith(("FILIP", "PACL"))


def test_the_search_leaves_no_trace() -> None:
    """Gradients, running statistics and random states are the same after the search."""
    made = tiny.module(CLIP()).train()
    state, random = {n: x.clone() for n, x in made.state_dict().items()}, torch.get_rng_state()
    assert freeze_unused(made) == []
    assert all(torch.equal(x, state[n]) for n, x in made.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(part.training for part in made.modules())
    assert all(p.grad is None for p in made.parameters())


def _frozen_when_sharded(rank: int) -> tuple[int, int]:
    made = tiny.exact_module(CLIP())
    shard(made.encoder, made.objective, init_device_mesh("cpu", (2,)))
    before = sum(p.requires_grad for p in made.parameters())
    freeze_unused(made)
    return before, sum(p.requires_grad for p in made.parameters())


def test_a_sharded_module_keeps_its_parameters() -> None:
    """In a second `fit` the graph has gathered parameters, so a naive search would freeze all sharded ones."""
    for before, after in on_ranks(_frozen_when_sharded):
        assert before == after > 0


def test_whole_modules_are_named_once() -> None:
    """If all parameters of a module are unused, the message names only the module."""
    made = module(FILIP())
    assert summary(freeze_unused(made), made) == "encoder.pooled_layer"
    assert summary(["encoder.pooled_layer.0.bias"], made) == "encoder.pooled_layer.0.bias"


def test_a_fit_reports_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Training logs the unused parameters."""
    caplog.set_level(logging.INFO)
    made = module(PACL())
    tiny.trainer(tmp_path, max_steps=0, max_epochs=-1).fit(made, tiny.data(image_size=32))
    assert "not trained, since the loss of PACL does not depend on them: encoder.pooled_layer" in caplog.text
