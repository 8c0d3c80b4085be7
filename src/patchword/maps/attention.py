"""Read and change the attention of an image tower while it runs, whichever library the tower comes from.

timm and transformers call `torch.nn.functional.scaled_dot_product_attention`. A `TorchFunctionMode` receives these
calls, after rotary embeddings and norms of queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from patchword.encoders.base import Encoder


@dataclass
class Attention:
    """One attention of a tower, with Q queries and N keys; usually, *I are I images and H heads.

    Attributes:
        query: The queries.
        key: The keys.
        value: The values.
        weights: The weights of the values, whose rows sum to 1.
    """

    query: Float[Tensor, "*I Q C"]
    key: Float[Tensor, "*I N C"]
    value: Float[Tensor, "*I N V"]
    weights: Float[Tensor, "*I Q N"]

    def output(self) -> Float[Tensor, "*I Q V"]:
        """The weighted sum of the values, before the heads are joined and projected."""
        return self.weights @ self.value


@contextmanager
def attentions(read: Callable[[int, Attention], Tensor]) -> Iterator[None]:
    """A context in which each attention of a tower has the output that `read` returns.

    Args:
        read: A function of the number of the attention, from 0, and the attention.
    """
    with torch.compiler.set_stance("force_eager"), _Reader(read):  # compiled towers call no functions
        yield


class _Reader(TorchFunctionMode):
    def __init__(self, read: Callable[[int, Attention], Tensor]) -> None:
        super().__init__()
        self.read = read
        self.number = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replace the calls of attention; all others are unchanged."""
        kwargs = dict(kwargs or {})
        if func is functional.multi_head_attention_forward:
            kwargs["need_weights"] = False  # otherwise it does not call scaled_dot_product_attention
            # This mode is off while its handler runs, so it would not receive that call.
            with patch.object(functional, "scaled_dot_product_attention", self.attend):
                return func(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            return self.attend(*args, **kwargs)
        return func(*args, **kwargs)

    def attend(self, *args: Any, **kwargs: Any) -> Tensor:
        """What replaces `scaled_dot_product_attention`."""
        self.number += 1
        return self.read(self.number - 1, _attention(*args, **kwargs))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Attention:
    """The arguments of `scaled_dot_product_attention` as an `Attention`; towers in eval mode have no dropout."""
    if is_causal or enable_gqa:
        raise NotImplementedError("attention of an image tower is neither causal nor grouped")
    logits = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    return Attention(query, key, value, logits.softmax(-1))


_COUNTS: WeakKeyDictionary[Encoder, int] = WeakKeyDictionary()


def count_attentions(encoder: Encoder) -> int:
    """The number of attentions of the image tower, all of them over all tokens of an image.

    Raises:
        ValueError: If there are none, or if they are over windows or other numbers of tokens.
    """
    if encoder not in _COUNTS:
        _COUNTS[encoder] = _count(encoder)
    return _COUNTS[encoder]


def _count(encoder: Encoder) -> int:
    shapes = run_once(encoder)
    if not shapes:
        raise ValueError("the image tower computes no attention that could be read")
    tokens = shapes[-1][1][-2]
    whole = all(len(q) == 4 and len(q) == len(k) and q[0] == 2 and k[-2] == tokens for q, k in shapes)
    # A head that pools the tokens has one query.
    queries = [q[-2] for q, _ in shapes]
    patches = encoder.grid[0] * encoder.grid[1]
    if not whole or tokens < patches or {*queries[:-1]} - {tokens} or queries[-1] not in (1, tokens):
        raise ValueError("the image tower does not attend to all patches in each of its blocks")
    return len(shapes)


def run_once(encoder: Encoder) -> list[tuple[torch.Size, torch.Size]]:
    """Embed two black images. Returns the shapes of the queries and of the keys of each attention.

    The encoder is in eval mode meanwhile.
    """
    shapes: list[tuple[torch.Size, torch.Size]] = []

    def read(number: int, attention: Attention) -> Tensor:
        shapes.append((attention.query.shape, attention.key.shape))
        return attention.output()

    device = next(encoder.parameters(), torch.zeros(0)).device
    pixels = torch.zeros(2, 3, *encoder.image_size, dtype=torch.uint8, device=device)
    training = [part for part in encoder.modules() if part.training]
    try:
        encoder.eval()
        with torch.no_grad(), attentions(read):
            encoder.encode_images(pixels)
    finally:
        for part in training:
            part.training = True
    return shapes
