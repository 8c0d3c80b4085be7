"""Sizes that no machine or model can have give one message that names the option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from patchword.data.scenes.datamodule import Scenes
from patchword.data.tables.image_text import ImageText
from patchword.encoders import HFImage, HFText, PretrainedPair, TimmImage
from patchword.errors import UserError
from patchword.suites import RefCOCO
from tests.encoders.pretrained import TOWER

VIT = {"depth": 1, "num_heads": 1}
T5: dict[str, Any] = {"model_type": "t5", "num_layers": 1, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2}
CLIP: dict[str, Any] = {"model_type": "clip", "vision_config": TOWER | {"image_size": 64, "patch_size": 16}}


def text(**changes: Any) -> HFText:
    return HFText(config=T5 | changes, tokenizer="emoji-scenes")


def vision(image_size: int | None = None, **changes: Any) -> HFImage:
    config = {"model_type": "dinov2", **TOWER, "image_size": 56, "patch_size": 14}
    return HFImage(config=config | changes, image_size=image_size)


def timm(image_size: int, **model_args: Any) -> TimmImage:
    return TimmImage("vit_tiny_patch16_224", image_size=image_size, model_args=VIT | model_args)


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "scenes": (lambda: Scenes(image_size=100_000), "image_size must be from 32 to 4096 pixels, not 100000"),
    "small scenes": (lambda: Scenes(image_size=16), "image_size must be from 32 to 4096 pixels, not 16"),
    "tables": (
        lambda: ImageText("csv", "a.csv", image_size=100_000),
        "image_size must be from 1 to 4096 pixels, not 100000",
    ),
    "suites": (lambda: RefCOCO("data", image_size=100_000), "image_size must be from 1 to 4096"),
    "timm": (lambda: timm(100_000), "image_size must be from 1 to 4096 pixels, not 100000"),
    "timm, negative": (lambda: timm(-64), "image_size must be from 1 to 4096 pixels, not -64"),
    "transformers": (lambda: vision(140_000), "image_size must be from 1 to 4096 pixels, not 140000"),
    "transformers, 0": (lambda: vision(0), "image_size must be from 1 to 4096 pixels, not 0"),
    "transformers, in config": (lambda: vision(image_size=None, hidden_size=0), "config.hidden_size must be 1 or more"),
    "patches of 0": (lambda: vision(patch_size=0), "config.patch_size must be 1 or more, not 0"),
    "a width of 0": (lambda: text(d_model=0), "config.d_model must be 1 or more, not 0"),
    "a negative width": (lambda: text(d_ff=-1), "config.d_ff must be 1 or more, not -1"),
    "no heads": (lambda: text(num_heads=0), "config.num_heads must be 1 or more, not 0"),
    "a pair": (
        lambda: PretrainedPair(config=CLIP | {"text_config": {"hidden_size": 0}}, tokenizer="emoji-scenes"),
        "config.text_config.hidden_size must be 1 or more, not 0",
    ),
    "a pair without a space": (
        lambda: PretrainedPair(config=CLIP | {"projection_dim": 0}, tokenizer="emoji-scenes"),
        "config.projection_dim must be 1 or more, not 0",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_size_that_is_impossible_names_its_option(mistake: str) -> None:
    """The error comes before memory is taken, and instead of an error of another library."""
    build, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message):
        build()


def test_timm_with_a_width_of_0() -> None:
    """A timm model without channels is refused, by timm or by us."""
    with pytest.raises(UserError, match=r"timm cannot (build|run) vit_tiny|without channels: .* model_args"):
        timm(64, embed_dim=0)


def test_a_text_model_may_have_no_layers() -> None:
    """Numbers of layers are not sizes."""
    assert text(num_layers=0).width == 16
