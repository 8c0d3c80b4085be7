"""The key of cached features: all parts that the features of frozen towers depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from patchword.encoders.base import ImageTower, TextTower
from patchword.encoders.two_towers import TwoTowers
from patchword.errors import UserError
from patchword.objective import Need

FORMAT = 2


def feature_key(encoder: TwoTowers, data: str, precision: str, dtype: torch.dtype) -> dict[str, str]:
    """A short text for each part, by the name of the part.

    Args:
        encoder: The encoder. The constructor arguments and the weights of its towers are hashed.
        data: The fingerprint of the samples.
        precision: The precision in which the towers compute.
        dtype: The type in which features are stored.

    Raises:
        UserError: If the weights are sharded over ranks.
    """
    captions: Any = getattr(encoder.text, "captions", None)
    words = None if captions is None else [_backend(captions), captions.max_length, captions.full_length]
    return {
        "image tower": _tower(encoder.image),
        "text tower": _tower(encoder.text),
        "tokenizer": _hash(words),
        "preprocessing": _hash([asdict(encoder.preprocessing), list(encoder.image_size)]),
        "data": data,
        "precision": precision,
        "dtype": str(dtype).removeprefix("torch."),
        "format": str(FORMAT),
    }


def text_key(key: dict[str, str], made: Sequence[str], needs: Sequence[Need]) -> dict[str, str]:
    """The key of features of texts only, which do not depend on the image tower.

    Args:
        key: The key of the features of the images and captions.
        made: Descriptions of the texts that are made from the captions.
        needs: What the objective needs of captions besides their tokens.
    """
    shared = {name: part for name, part in key.items() if name != "image tower"}
    return shared | {"texts": ", ".join([*made, *needs])}


def key_hash(key: dict[str, str]) -> str:
    """A hash of all parts."""
    return _hash(key)


def _backend(captions: Any) -> str:
    return captions.tokenizer.backend_tokenizer.to_str()


def _tower(tower: ImageTower | TextTower) -> str:
    found = hashlib.sha256(json.dumps(tower.spec, sort_keys=True).encode())
    for name, value in sorted(tower.state_dict().items()):
        if isinstance(value, DTensor):
            raise UserError(
                "features can only be cached if each device has complete towers: set trainer.strategy to ddp"
            )
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(
            value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data if value.numel() else b""
        )
    return found.hexdigest()[:16]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
