"""Rows of different lengths in one tensor, from which single rows are read quickly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def starts(lengths: Iterable[int]) -> Tensor:
    """The first position of each row in the concatenated rows, and the end of the last row."""
    return torch.tensor([0, *lengths]).cumsum(0)


def pack_rows(name: str, rows: Sequence[Tensor]) -> dict[str, Tensor]:
    """The concatenated rows under `name`, and the start of each row under `<name>_of`."""
    return {name: torch.cat([*rows]) if rows else torch.zeros(0, 0), f"{name}_of": starts(map(len, rows))}


def pack_texts(name: str, texts: Sequence[str]) -> dict[str, Tensor]:
    """The bytes of texts, as `pack_rows` packs them."""
    encoded = [text.encode() for text in texts]
    letters = torch.from_numpy(np.frombuffer(b"".join(encoded), np.uint8).copy())
    return {name: letters, f"{name}_of": starts(map(len, encoded))}


class Rows:
    """Rows that `pack_rows` or `pack_texts` has packed under `name`. Only the rows that are asked for are read."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str) -> None:
        self.values = tensors[name]
        self.starts = tensors[f"{name}_of"].numpy()

    def __getitem__(self, row: int) -> Tensor:
        """Returns a row."""
        return self.values[self.starts[row] : self.starts[row + 1]]

    def text(self, row: int) -> str:
        """Returns a row that is a text."""
        return self[row].numpy().tobytes().decode()
