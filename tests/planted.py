"""A model with a known answer: only the red patches of an image decide its score with the word "red"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, scaled_dot_product_attention

from patchword import AlignmentModule, Objective
from patchword.encoders import TwoTowers
from patchword.encoders.base import ImageTower, TextTower, Tokens
from patchword.encoders.tokenizer import CaptionTokenizer, load_tokenizer
from patchword.objectives import CLIP

GRID = (4, 4)
PLACE = 6  # of the planted patch: the second row, the third column


class FlatBlock(nn.Module):
    """All tokens attend to all patches equally."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.zeros_like(x)[:, None]
        return x + scaled_dot_product_attention(flat, flat, self.values(x)[:, None])[:, 0]


class RedTower(ImageTower):
    """One block in which all tokens attend to all patches equally; features are redness and a constant.

    Args:
        has_class_token: Whether there is a class token before the patches.
        attention: Whether the block computes attention; otherwise, the features are those of the patches.
    """

    width, image_size, grid = 2, (32, 32), GRID

    def __init__(self, has_class_token: bool = True, attention: bool = True) -> None:
        super().__init__()
        self.has_class_token = has_class_token
        self.blocks = nn.Sequential(FlatBlock()) if attention else nn.Sequential()
        self.unused = nn.Parameter(torch.zeros(1))  # a tower has a device

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        red, green, blue = adaptive_avg_pool2d(pixels.float() / 255, self.grid).flatten(2).unbind(1)
        redness = (red - (green + blue) / 2 - 0.2).relu()  # the mean color of an image is not red
        x = torch.stack([redness, torch.ones_like(red)], -1)
        if self.has_class_token:
            x = torch.cat([torch.zeros_like(x[:, :1]), x], 1)
        x = self.blocks(x)
        return (x[:, 1:], x[:, 0]) if self.has_class_token else (x, None)


class RedWords(TextTower):
    """The word `red` is redness, and every other word is the constant."""

    width = 2

    def __init__(self) -> None:
        super().__init__()
        self.captions = CaptionTokenizer(load_tokenizer("emoji-scenes"), 16)
        (self.red,) = self.captions(["red"]).ids[0, ~self.captions(["red"]).special[0]].tolist()

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        return self.captions(captions)

    def forward(self, tokens: Tokens) -> Tensor:
        red = (tokens.ids == self.red).float()
        return torch.stack([red, 1 - red], -1)


def planted(objective: Objective | None = None, attention: bool = True, pool: str = "cls") -> AlignmentModule:
    """Return the model in eval mode."""
    encoder = TwoTowers(RedTower(pool == "cls", attention), RedWords(), embed_dim=2, image_pool=pool)
    with torch.no_grad():
        for adapter in (encoder.image_adapter, encoder.text_adapter):
            adapter.weight.copy_(torch.eye(2))
            adapter.bias.zero_()
    return AlignmentModule(encoder, objective or CLIP()).eval()


def image(place: int = PLACE) -> Tensor:
    """An image of gray noise with one red patch."""
    noise = torch.randint(100, 140, (1, 32, 32), generator=torch.Generator().manual_seed(0))
    pixels = noise.expand(3, -1, -1).clone()
    row, column = divmod(place, GRID[1])
    pixels[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = torch.tensor([220, 40, 40])[:, None, None]
    return pixels.to(torch.uint8)
