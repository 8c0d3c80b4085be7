"""Measure on a few tokens how a text model uses positions and padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

from patchword.encoders.loading import reason
from patchword.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REAL, PADDED = 2, 4  # number of tokens of a short caption without padding, and with padding
TOLERANCE = 1000  # multiple of the rounding error; models that depend on padding exceed 10,000

Run = Callable[[Int[Tensor, "T L"], Bool[Tensor, "T L"]], Float[Tensor, "T L C"]]


def measure_positions(
    run: Run, tokenizer: PreTrainedTokenizerFast, model_type: str, padding_counts: bool
) -> int | None:
    """The maximum number of tokens of a caption, including special tokens; None if the model has no position table.

    Some types count positions from 0, some from the padding id + 1, and some from 2. The number is therefore measured
    from the rows that the model looks up. `run` computes features from token ids and a mask, in eval mode. With
    `padding_counts`, captions are always padded to one length, so that features may depend on padding.

    Raises:
        UserError: If the model needs other inputs than captions, does not compute one feature per token, or its
            features depend on the padding after a caption, and thus on the other captions of the batch.
    """
    tables = position_tables(run, tokenizer, model_type, padding_counts)
    return min((len(table) - first for table, first in tables), default=None)


def position_tables(
    run: Run, tokenizer: PreTrainedTokenizerFast, model_type: str, padding_counts: bool
) -> list[tuple[Tensor, int]]:
    """The position tables that a model looks up, each with its row for the first position; see `measure_positions`."""
    ordinary = [number for number in range(len(tokenizer)) if number not in tokenizer.all_special_ids] or [0]
    words = (ordinary[:PADDED] * PADDED)[:PADDED][::-1]  # in descending order, to distinguish them from positions
    padding: Any = tokenizer.pad_token_id
    ids = torch.tensor([words[:REAL] + [padding] * (PADDED - REAL), words])
    mask = torch.ones(2, PADDED, dtype=torch.bool)
    mask[0, REAL:] = False
    lookups = _Lookups()
    try:
        with torch.no_grad():
            alone = run(ids[:1, :REAL], mask[:1, :REAL])
            with lookups:
                padded = run(ids, mask)
    except Exception as error:  # models that also need images, sounds or a second text raise many kinds of errors
        raise UserError(
            f"{model_type} computes no features from captions alone ({reason(error)}): use another model"
        ) from error
    if padded.shape[:2] != ids.shape:
        raise UserError(f"{model_type} does not compute one feature per token: use another model")
    allowed = TOLERANCE * torch.finfo(alone.dtype).eps * alone.abs().max()
    if not padding_counts and (padded[0, :REAL] - alone[0]).abs().max() > allowed:
        raise UserError(
            f"the features of {model_type} depend on the padding after a caption, and thus on the other captions of "
            "its batch: use another model, such as bert"
        )
    return lookups.tables


class _Lookups(TorchFunctionMode):
    """Records each embedding table that is indexed by consecutive numbers, and the first index."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[tuple[Tensor, int]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls `function`, and records its tables if it is an embedding lookup."""
        if function is torch.nn.functional.embedding:
            rows = args[0].reshape(-1, args[0].shape[-1])
            last = rows[-1, :PADDED]
            # Relative positions, token types and languages do not have one index per token.
            if len(rows) <= 2 and rows.shape[1] >= PADDED and (last.diff() == 1).all():
                self.tables.append((args[1], int(last[0])))
        return function(*args, **(kwargs or {}))
