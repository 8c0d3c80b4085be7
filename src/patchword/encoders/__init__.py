"""Encoders: pairs of timm and Hugging Face backbones that embed images and texts in one space.

Importing this package does not import timm or transformers. Constructors import them when they need them.
"""

from patchword.encoders.base import Encoder, ImageTower, Selection, TextTower, Tokens
from patchword.encoders.hf_image import HFImage
from patchword.encoders.hf_text import HFText
from patchword.encoders.lora import Lora
from patchword.encoders.pair import PretrainedPair
from patchword.encoders.timm_image import TimmImage
from patchword.encoders.two_towers import TwoTowers

__all__ = [
    "Encoder",
    "HFImage",
    "HFText",
    "ImageTower",
    "Lora",
    "PretrainedPair",
    "Selection",
    "TextTower",
    "TimmImage",
    "Tokens",
    "TwoTowers",
]
