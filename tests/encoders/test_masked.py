"""Inputs with masked patches and tokens: what is masked, what is not, and that encoding them leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from patchword.encoders import PretrainedPair
from patchword.encoders.base import Encoder
from patchword.encoders.masked import masked_images, masked_pixels, masked_texts
from patchword.errors import UserError
from patchword.training.fsdp import shard
from tests import tiny
from tests.objectives.variants import build
from tests.ranks import on_ranks

CAPTIONS = ["a red apple", "a snail next to a green frog", "a blue umbrella"]


def encoder(convolutional: bool = False, dropout: float = 0.5) -> Encoder:
    make = tiny.module if convolutional else tiny.exact_module
    return make(build("CLIP"), dropout=dropout).encoder


def pixels(count: int = 3) -> Tensor:
    return torch.randint(256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_masked_patches_are_zero_after_normalization() -> None:
    """The color is right up to the rounding of pixels, and the other patches are unchanged."""
    tower, drawn = encoder().image, pixels()
    keep = torch.rand(3, *tower.grid) < 0.5
    given: list[Tensor] = []
    tower.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    masked_images(encoder_of(tower), drawn)(torch.arange(3), keep.flatten(1))
    shown = keep.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(given[0][shown], drawn[shown])
    assert tower.normalize(given[0])[~shown].abs().max() < 0.5 / 255 / tower.normalize.std.min() + 1e-6


def encoder_of(tower: Any) -> Encoder:
    made = encoder()
    made.image = tower
    return made


def test_patches_that_do_not_divide_the_image_are_masked_as_a_whole() -> None:
    """Each pixel belongs to one patch: the one that its center is in."""
    keep = torch.tensor([[[True, False, True], [False, True, False]]])
    found = masked_pixels(torch.ones(1, 3, 5, 10, dtype=torch.uint8), keep, torch.zeros(3, 1, 1, dtype=torch.uint8))
    for row in range(5):
        for column in range(10):
            patch = keep[0, int((row + 0.5) / 5 * 2), int((column + 0.5) / 10 * 3)]
            assert (found[0, :, row, column] == patch).all(), (row, column)


def test_special_and_unselected_tokens_are_never_masked() -> None:
    """A caption without its content words is that of the other tokens, and selected words do not stay by mistake."""
    made = encoder()
    tokens = made.tokenize(CAPTIONS)
    content, words = tokens.select("content"), tokens.select("words")
    nothing = torch.zeros_like(content)
    without = masked_texts(made, tokens, content)(torch.arange(3), nothing)
    only = masked_texts(made, tokens, words)(torch.arange(3), words & ~content)
    assert_close(without, only)
    specials = masked_texts(made, tokens, tokens.mask)(torch.arange(3), nothing)
    assert_close(specials, masked_texts(made, tokens, words)(torch.arange(3), nothing))
    everything = made.eval().encode_texts(tokens).pooled
    assert_close(masked_texts(made, tokens, content)(torch.arange(3), content), everything)
    assert not torch.allclose(without, everything)


@pytest.mark.parametrize("convolutional", [False, True])
def test_encoding_again_leaves_no_trace(convolutional: bool) -> None:
    """Training mode, statistics of batch norms, gradients and random numbers are the same afterwards, also if it fails.

    The embeddings do not depend on the rest of the batch.
    """
    made = encoder(convolutional).train()
    made.text.eval()
    modes = {name: part.training for name, part in made.named_modules()}
    state, random = {n: x.clone() for n, x in made.state_dict().items()}, torch.get_rng_state()
    keep = torch.rand(4, 64 if convolutional else 16, generator=torch.Generator().manual_seed(0)) < 0.5
    at = torch.tensor([2, 0, 0, 1])
    found = masked_images(made, pixels())(at, keep)
    assert_close(masked_images(made, pixels())(at[3:], keep[3:]), found[3:])
    with pytest.raises((RuntimeError, IndexError)):
        masked_images(made, pixels())(torch.tensor([5]), keep[:1])
    assert {name: part.training for name, part in made.named_modules()} == modes
    assert all(torch.equal(x, state[n]) for n, x in made.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not found.requires_grad


def test_at_most_a_chunk_is_encoded_at_a_time() -> None:
    """Memory does not grow with the number of coalitions: masked pixels are made for one chunk at a time."""
    made, sizes = encoder(), []
    made.image.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    at, keep = torch.arange(11) % 3, torch.rand(11, 16) < 0.5
    whole = masked_images(made, pixels(), 11)(at, keep)
    assert_close(masked_images(made, pixels(), 4)(at, keep), whole)
    masked_images(made, pixels())(at, keep)
    assert sizes == [11, 4, 4, 3, 3, 3, 3, 2]
    assert masked_images(made, pixels())(at[:0], keep[:0]).shape == (0, made.embed_dim)


def test_towers_that_attend_to_masked_tokens_are_refused() -> None:
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = {"model_type": "siglip", "text_config": tower | {"projection_size": 16}}
    config["vision_config"] = tower | {"image_size": 32, "patch_size": 16}
    made = PretrainedPair(config=config, tokenizer="emoji-scenes")
    tokens = made.tokenize(["a red apple"])
    with pytest.raises(UserError, match="words cannot be masked, because the text tower attends to its padding"):
        masked_texts(made, tokens, tokens.mask)


def _again(rank: int) -> tuple[list[int], Tensor]:
    """The passes of a rank that asks for none, and of one that asks for five."""
    made, sizes = encoder(), []
    made.image.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    at, keep = torch.arange(5 * rank) % 3, torch.ones(5 * rank, 16, dtype=torch.bool)
    return sizes, masked_images(made, pixels(), 2)(at, keep)


def test_all_ranks_encode_equally_often() -> None:
    """Sharded towers exchange weights in each pass, so that a rank without coalitions has to join in."""
    (first, nothing), (second, found) = on_ranks(_again)
    assert first == second == [2, 2, 1]
    assert nothing.shape == (0, 16)
    assert_close(found[:3], encoder().eval().encode_images(pixels()).pooled.detach())


def _sharded(rank: int) -> tuple[bool, Tensor]:
    """The embeddings of masked images by sharded towers, of three images on one rank and of none on the other."""
    made, objective = encoder().double(), build("CLIP", torch.float64)
    shard(made, objective, init_device_mesh("cpu", (2,)))
    keep = torch.rand(3, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    found = masked_images(made, pixels(), 2)(torch.arange(3 * rank), keep[: 3 * rank])
    return any(isinstance(p, DTensor) for p in made.parameters()), found


@pytest.mark.filterwarnings("ignore:.*returned a view tensor.*")
def test_sharded_towers_encode_the_same() -> None:
    (sharded, nothing), (_, found) = on_ranks(_sharded)
    keep = torch.rand(3, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    assert sharded
    assert len(nothing) == 0
    assert_close(found, masked_images(encoder().double(), pixels())(torch.arange(3), keep))
