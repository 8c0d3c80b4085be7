"""Stretch the position table of a text model, so that it takes longer captions (Long-CLIP, arXiv 2403.15378)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchword.encoders.loading import reason
from patchword.errors import UserError

KEPT = 20  # how many positions stay as they are: pretrained models have seen few captions that are longer


def stretched(backbone: Any, tables: list[tuple[Tensor, int]], factor: int) -> Any:
    """A copy of `backbone` whose positions after the first 20 are `factor` times as many.

    Args:
        backbone: A text model of transformers.
        tables: Its position tables, each with its row for the first position; see `probe.position_tables`.
        factor: Every position after the first 20 becomes this number of positions. See `stretch`.

    Raises:
        UserError: If `factor` is less than 2, or the model does not have exactly one table with 22 positions or more,
            or transformers cannot build it with another number of positions.
    """
    kind = backbone.config.model_type
    if factor < 2:
        raise UserError(f"stretch_positions must be 2 or more, not {factor}")
    found = {name: first for table, first in tables for name, p in backbone.named_parameters() if p is table}
    if len(found) != 1:
        raise UserError(
            f"{kind} does not have one table of positions that could be stretched: leave stretch_positions out"
        )
    ((name, first),) = found.items()
    table = backbone.get_parameter(name).detach()
    if (number := len(table) - first) < KEPT + 2:
        raise UserError(
            f"{kind} has {number} positions: stretch_positions keeps the first {KEPT} and needs at least 2 more"
        )
    longer = torch.cat([table[: first + KEPT], stretch(table[first + KEPT :], factor)])
    config = deepcopy(backbone.config)
    try:
        config.max_position_embeddings += len(longer) - len(table)
        with torch.random.fork_rng():
            model = type(backbone)(config)
        model.load_state_dict(backbone.state_dict() | {name: longer})
    except Exception as error:  # models differ in what depends on the number of positions
        raise UserError(f"the positions of {kind} cannot be stretched ({reason(error)})") from error
    return model.train(backbone.training)


def stretch(rows: Float[Tensor, "P C"], factor: int) -> Float[Tensor, "Q C"]:
    """Q = P * factor rows, of which every `factor`-th is a row, and those between two rows are interpolated linearly.

    After the last row, the difference between the last two rows continues.
    """
    following = torch.cat([rows[1:], 2 * rows[-1:] - rows[-2:-1]])
    share = torch.arange(factor, dtype=rows.dtype, device=rows.device)[:, None] / factor
    return torch.lerp(rows[:, None], following[:, None], share).flatten(0, 1)
