"""The sources of maps: what they need, and how they run.

`align`, `cosine` and `dot` are computed from embeddings. The sources of `TowerSource` run the towers again; each is a
function in a file of its name, whose docstring has the paper, the equations, the needs and the cost:

    value       cosine of the token with the patches on the value path of the last attention (MaskCLIP)
    grad_eclip  values of the last attention, weighted by gradients of the token's score (Grad-ECLIP)
    chefer      relevance of patches through all blocks, by gradients of the attention (Chefer et al.)
    legrad      gradients of the attention of each block, for what the block has formed (LeGrad)
    grad_cam    last features, weighted by gradients of the token's score (Grad-CAM), for convolutional networks
    banzhaf     interaction of patch and word in the score of the pair, by removing both (FIxLIP)

All of them return one map for each token, over all patches, and the map of a phrase is the mean of the maps of its
query tokens, as for `cosine`. What gradients explain is the score of the image with the token's own embedding as the
text (`pairs.word_scores`), so that all sources look for the same vector in the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchword.encoders.base import Encoder
from patchword.encoders.pixels import require_one_shape
from patchword.errors import UserError
from patchword.features import map_tensors
from patchword.maps.attention import count_attentions
from patchword.maps.banzhaf import banzhaf
from patchword.maps.chefer import chefer
from patchword.maps.grad_cam import grad_cam, require_mean_pooling
from patchword.maps.grad_eclip import grad_eclip
from patchword.maps.legrad import attended_blocks, legrad
from patchword.maps.pairs import Pairs
from patchword.maps.value import value
from patchword.objective import Objective

PlainSource = Literal["align", "cosine", "dot"]
TowerSource = Literal["value", "grad_eclip", "chefer", "legrad", "grad_cam", "banzhaf"]
TokenSource = Literal[PlainSource, TowerSource]
PLAIN_SOURCES: tuple[PlainSource, ...] = get_args(PlainSource)
TOWER_SOURCES: tuple[TowerSource, ...] = get_args(TowerSource)
TOKEN_SOURCES: tuple[TokenSource, ...] = (*PLAIN_SOURCES, *TOWER_SOURCES)

_MAPS: Mapping[TowerSource, Callable[[Objective, Pairs], Tensor]] = MappingProxyType(
    {
        "value": value,
        "grad_eclip": grad_eclip,
        "chefer": chefer,
        "legrad": legrad,
        "grad_cam": grad_cam,
        "banzhaf": banzhaf,
    }
)
_REQUIRE: Mapping[TowerSource, Callable[[Encoder], object]] = MappingProxyType(
    {
        "value": count_attentions,
        "grad_eclip": count_attentions,
        "chefer": count_attentions,
        "legrad": attended_blocks,
        "grad_cam": require_mean_pooling,
    }
)
_IMAGES = 16  # images at a time, because gradients keep the activations of the tower


def require_sources(sources: Sequence[str], encoder: Encoder, option: str = "map_sources") -> None:
    """Check that the encoder can give maps of these sources, before anything is computed.

    Args:
        sources: The names of the sources.
        encoder: The encoder.
        option: The option that names them, for messages.

    Raises:
        UserError: If there are none, one is unknown or named twice, or the encoder cannot give it.
    """
    if not sources or len({*sources}) < len(sources):
        raise UserError(f"{option} must name one or more sources of maps, each once, not {list(sources)}")
    for source in sources:
        if source not in TOKEN_SOURCES:
            raise UserError(f"{option}: there is no source of maps {source!r}; there are {', '.join(TOKEN_SOURCES)}")
        try:
            if source in _REQUIRE:
                _REQUIRE[source](encoder)  # type: ignore[index]
        except ValueError as error:
            given = ", ".join(possible_sources(encoder))
            raise UserError(f"{option}: no maps of {source}, because {error}. This model gives {given}") from error


def possible_sources(encoder: Encoder) -> list[TokenSource]:
    """The sources whose maps this encoder can give."""
    return [source for source in TOKEN_SOURCES if _is_possible(source, encoder)]


def tower_maps(source: TowerSource, objective: Objective, pairs: Pairs) -> Float[Tensor, "T L P"]:
    """The maps of all wanted tokens, in full precision; those of other tokens are arbitrary.

    Parameters get no gradients. It also works inside `torch.inference_mode`.

    Raises:
        UserError: If the images have several shapes (`resize_mode: native`).
    """
    refusal = f"map_sources: no maps of {source} for"
    require_one_shape(pairs.pixels, refusal, f", or use {', '.join(PLAIN_SOURCES)}")
    device = pairs.pixels.device.type
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device, enabled=False),
        _constant(pairs.encoder, objective),
    ):
        # Tensors of inference mode cannot be saved for backward passes.
        normal = replace(map_tensors(pairs, _copy), texts=map_tensors(pairs.texts, _copy))
        maps = normal.empty()
        for first in range(0, len(pairs.pixels), _IMAGES):
            rows, own = normal.of_images(first, first + _IMAGES)
            if len(rows) and own.wanted.any():
                maps[rows] = _MAPS[source](objective, own).detach()
    return maps


def _is_possible(source: TokenSource, encoder: Encoder) -> bool:
    try:
        if source in _REQUIRE:
            _REQUIRE[source](encoder)  # type: ignore[index]
    except ValueError:
        return False
    return True


def _copy(x: Tensor) -> Tensor:
    return (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x).detach().clone()


@contextmanager
def _constant(*modules: nn.Module) -> Iterator[None]:
    """A context in which no parameter gets a gradient."""
    trained = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
