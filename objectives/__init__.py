"""The alignment objectives. Each paper has its own file."""

if __name__ != "patchword.objectives":
    raise ImportError("import patchword.objectives: the folder objectives/ is part of the package patchword")

from patchword.objectives.beta_clip import BetaCLIP
from patchword.objectives.clip import CLIP
from patchword.objectives.cosmos import COSMOS
from patchword.objectives.dream_lip import DreamLIP
from patchword.objectives.fg_clip import FGCLIP
from patchword.objectives.fg_clip_2 import FGCLIP2
from patchword.objectives.filip import FILIP
from patchword.objectives.flair import FLAIR
from patchword.objectives.gloria import GLoRIA
from patchword.objectives.long_clip import LongCLIP
from patchword.objectives.loupe import LOUPE
from patchword.objectives.mgca import MGCA
from patchword.objectives.neg_clip import NegCLIP
from patchword.objectives.pacl import PACL
from patchword.objectives.power_clip import PowerCLIP
from patchword.objectives.siglip import SigLIP
from patchword.objectives.smart_clip import SmartCLIP
from patchword.objectives.sparc import SPARC
from patchword.objectives.sum import Sum
from patchword.objectives.super_clip import SuperCLIP

__all__ = [
    "CLIP",
    "COSMOS",
    "FGCLIP",
    "FGCLIP2",
    "FILIP",
    "FLAIR",
    "LOUPE",
    "MGCA",
    "PACL",
    "SPARC",
    "BetaCLIP",
    "DreamLIP",
    "GLoRIA",
    "LongCLIP",
    "NegCLIP",
    "PowerCLIP",
    "SigLIP",
    "SmartCLIP",
    "Sum",
    "SuperCLIP",
]
