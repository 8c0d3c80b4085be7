"""Modules for the tests of the viewer: real ones, and one that finds red patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import adaptive_avg_pool2d

from patchword import AlignmentModule, Images, Texts
from patchword.encoders import HFText, TimmImage, TwoTowers
from patchword.encoders.base import Encoder, Selection, Tokens
from patchword.encoders.tokenizer import CaptionTokenizer, load_tokenizer
from patchword.objective import Objective
from patchword.objectives import CLIP
from tests.tiny import seed_everything

CAPTION = "a red fire truck, the apple's café and the other"


class Red(Encoder):
    """An encoder whose patches are their mean colors and whose words all mean red."""

    embed_dim, image_size, grid = 3, (32, 32), (8, 8)

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        return CaptionTokenizer(load_tokenizer("emoji-scenes"), 16)(captions)

    def encode_images(self, pixels: torch.Tensor) -> Images:
        patches = adaptive_avg_pool2d(pixels.float() / 255, self.grid).flatten(2).mT
        return Images(patches.mean(1), patches, self.grid)

    def encode_texts(self, tokens: Tokens, selection: Selection = "all") -> Texts:
        red = torch.tensor([1.0, -1.0, -1.0])
        return Texts(red.expand(len(tokens.ids), 3), red.expand(*tokens.ids.shape, 3), tokens.select(selection))


def finds_red() -> AlignmentModule:
    return AlignmentModule(Red(), CLIP()).eval()


def with_tokenizer(objective: Objective, tokenizer: str, **arguments) -> AlignmentModule:
    """Return an untrained module whose tokenizer splits words into pieces."""
    seed_everything(0)
    image = TimmImage("mobilenetv4_conv_small_050", level=2, image_size=64)
    config = {"model_type": "t5", "num_layers": 1, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2}
    text = HFText(config=config, tokenizer=tokenizer, max_length=arguments.pop("max_length", None))
    return AlignmentModule(TwoTowers(image, text, embed_dim=16), objective, **arguments).eval()
