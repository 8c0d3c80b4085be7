"""Maps of the names of classes over an image, from every source of maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from patchword.encoders.base import Tokens
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.maps.pairs import Pairs
from patchword.maps.phrases import Area, Queries, phrase_maps, query_tokens
from patchword.maps.sources import TOWER_SOURCES
from patchword.ops import masked_mean, normalize

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

_BLOCK = 256  # prompts at a time, because each has its own copy of the image's patches in memory


@dataclass(frozen=True)
class Seen:
    """One embedded image.

    Attributes:
        key: The number of the image, on which the maps of noise depend.
        pixels: The image as the model sees it.
        images: Its embeddings.
        area: Its part of the patch grid.
    """

    key: int
    pixels: UInt8[Tensor, "1 _ H W"]
    images: Images
    area: Area

    @property
    def size(self) -> tuple[int, int]:
        """The height and width of the image in pixels, without padding."""
        return self.area.pixels((self.pixels.shape[2], self.pixels.shape[3]))

    @property
    def patches(self) -> Float[Tensor, "p D"]:
        """The patches of the image without padding."""
        (rows, columns), patches = self.area.grid, self.images.patches[0].float()
        return patches.unflatten(0, self.area.whole)[:rows, :columns].flatten(0, 1)


@dataclass(frozen=True)
class Prompts:
    """Some embedded prompts.

    Attributes:
        texts: The embedded prompts.
        tokens: The tokenized prompts.
        query: True for the tokens of the class's name in each prompt.
        owner: The class of each prompt.
    """

    texts: Texts
    tokens: Tokens
    query: Bool[Tensor, "Q L"]
    owner: Int[Tensor, " Q"]


class ClassMaps:
    """The embedded names of C classes, and their maps over images.

    Unlike `prompts.ClassTexts`, it keeps what the sources that run the towers again need.

    Args:
        module: The model. If its `phrase_query` is `span`, the map of a name includes function words of the name.
        names: The name of each class.
        templates: The templates, each with one `{}`, which the name replaces.

    Raises:
        UserError: If the tokenizer keeps no token of a name.

    Attributes:
        cut: The number of prompts that the tokenizer truncated.
    """

    def __init__(self, module: AlignmentModule, names: Sequence[str], templates: Sequence[str]) -> None:
        self.module = module
        self.prompts = [*_embedded(module, names, templates)]
        self.owner = torch.cat([one.owner for one in self.prompts])
        self.cut = sum(int(one.tokens.truncated.sum()) for one in self.prompts)

    def pooled(self) -> Float[Tensor, "C D"]:
        """One unit vector per class: the normalized mean of its normalized pooled embeddings, as in CLIP."""
        return normalize(self._mean([normalize(one.texts.pooled.float()) for one in self.prompts]))

    def tokens(self) -> Float[Tensor, "C D"]:
        """One unit vector per class: the normalized mean over its prompts of the normalized mean token of its name."""
        return normalize(
            self._mean([normalize(masked_mean(one.texts.tokens.float(), one.query)) for one in self.prompts])
        )

    def maps(self, source: Any, seen: Seen) -> Float[Tensor, "C p"]:
        """The maps of all names over an image without its padding, averaged over the prompts of a class."""
        found = []
        for one in self.prompts:
            rows = torch.arange(len(one.texts), device=one.query.device)
            same = torch.zeros_like(rows)
            pairs = self._pairs(seen, one, same) if source in TOWER_SOURCES else None
            keys = torch.stack([same + seen.key, one.owner], 1)
            asked = Queries(seen.images[same], one.texts, one.query, keys, rows, pairs)
            found.append(phrase_maps(source, self.module.objective, asked).float())
        return seen.area.crop(self._mean(found))

    def _pairs(self, seen: Seen, one: Prompts, image: Int[Tensor, " Q"]) -> Pairs:
        """What the sources that run the towers again work on."""
        module = self.module
        return Pairs(module.encoder, seen.pixels, image, one.texts, one.tokens, one.query, module.token_selection)

    def _mean(self, values: Sequence[Float[Tensor, "q n"]]) -> Float[Tensor, "C n"]:
        """The mean over the prompts of each class of values of all prompts."""
        every = torch.cat([*values])
        count = self.owner.bincount()
        return every.new_zeros(len(count), every.shape[1]).index_add(0, self.owner, every) / count[:, None]


def _embedded(module: AlignmentModule, names: Sequence[str], templates: Sequence[str]) -> Iterator[Prompts]:
    """Embed the name of every class in every template, some prompts at a time."""
    prompts = [
        (template.replace("{}", name), template.index("{}"), len(name), number)
        for number, name in enumerate(names)
        for template in templates
    ]
    for first in range(0, len(prompts), _BLOCK):
        block = prompts[first : first + _BLOCK]
        texts, tokens = module.encode_texts([text for text, *_ in block])
        device = texts.pooled.device
        span = torch.tensor([(start, start + length) for _, start, length, _ in block], device=device)
        rows = torch.arange(len(block), device=device)
        query = query_tokens(tokens, rows, span, content=module.phrase_query != "span")
        owner = torch.tensor([number for *_, number in block], device=device)
        if not query.any(-1).all():
            name = names[int(owner[query.any(-1).int().argmin()])]
            raise UserError(f"the tokenizer keeps no token of the class name {name!r}: set data.prompts to label")
        yield Prompts(texts, tokens, query, owner)
