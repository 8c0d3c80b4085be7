"""Images and texts whose patches and tokens are prepared for an objective when it first reads them.

Patches and tokens are most of the data, and many losses use only the global embeddings. Such a loss pays for no copy.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from patchword.features import Images, Texts
from patchword.ops import without_padding

Side = TypeVar("Side", Images, Texts)


class _OnDemand:
    """Data without the field `local`, so that Python calls `__getattr__` when the field is first read."""

    local: ClassVar[str]

    def __getattr__(self, name: str) -> Tensor:
        if name != self.local:
            raise AttributeError(f"'{type(self).__name__[1:]}' object has no attribute '{name}'")
        source, mask, trains = (vars(self)[key] for key in ("source", "mask", "trains"))
        with torch.set_grad_enabled(trains):  # The first reader may be a function without gradients.
            found = without_padding(_widen(source), mask, 1, 0.0)
        object.__setattr__(self, name, found)
        return found


class _Images(_OnDemand, Images):
    local = "patches"


class _Texts(_OnDemand, Texts):
    local = "tokens"


def on_demand(side: Side) -> Side:
    """`side` in float32 or float64, with zeros for the padding of patches and tokens; itself if it already is."""
    if "source" in vars(side):
        return side
    cls = _Images if isinstance(side, Images) else _Texts
    found = object.__new__(cls)
    for name, x in vars(side).items():
        if name == cls.local:
            object.__setattr__(found, "source", x)
        else:
            object.__setattr__(found, name, _widen(x) if isinstance(x, Tensor) else x)
    object.__setattr__(found, "trains", torch.is_grad_enabled())
    return found


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
