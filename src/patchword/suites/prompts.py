"""Text prompts of classes: templates, class names, and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from patchword.errors import UserError
from patchword.features import Texts
from patchword.files.published import read_lines
from patchword.maps.phrases import query_tokens
from patchword.ops import normalize

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

_BLOCK = 256  # number of prompts that are encoded at a time


def read_templates(prompts: str) -> list[str]:
    """Return the templates that `prompts` selects.

    Args:
        prompts: `label` (the name only), `photo` ("a photo of a {}."), `clip` (the 80 templates of CLIP's ImageNet
            evaluation), or a text file with one template per line. The name replaces `{}` in the template.

    Raises:
        UserError: If the file does not exist, or if a line does not have exactly one `{}`.
    """
    if prompts == "label":
        return ["{}"]
    if prompts == "photo":
        return ["a photo of a {}."]
    path = Path(__file__).parent / "clip_templates.txt" if prompts == "clip" else Path(prompts)
    if not path.is_file():
        raise UserError(f"prompts must be label, photo, clip or a file of templates, but there is no file {prompts}")
    templates = read_lines(path)
    for number, template in templates:
        if template.count("{}") != 1:
            raise UserError(
                f"{path}, line {number}: a template must have {{}} exactly once, for the name, not {template!r}"
            )
    return [template for _, template in templates]


def split_names(names: str) -> list[str]:
    """Split the names of one class at commas."""
    return [name.strip() for name in names.split(",") if name.strip()]


@dataclass(frozen=True)
class ClassTexts:
    """The Q prompts of C classes, class by class.

    Attributes:
        texts: The embedded prompts. They have no tokens if token embeddings are not needed.
        owner: The class of each prompt.
        query: True for the tokens of the class's name in each prompt.
        cut: The number of prompts that the tokenizer truncated.
    """

    texts: Texts
    owner: Int[Tensor, " Q"]
    query: Bool[Tensor, "Q L"]
    cut: int

    @property
    def single(self) -> bool:
        """Whether each class has one prompt."""
        return bool((self.owner.diff() == 1).all())

    def embeddings(self) -> Float[Tensor, "C D"]:
        """One unit vector per class: the normalized mean of its normalized pooled embeddings, as in CLIP."""
        return normalize(self.mean(normalize(self.texts.pooled.float())))

    def mean(self, values: Float[Tensor, "Q n"]) -> Float[Tensor, "C n"]:
        """The mean of `values` over the prompts of each class."""
        return self.sum(values) / self.owner.bincount()[:, None]

    def sum(self, values: Float[Tensor, "q n"], start: int = 0) -> Float[Tensor, "C n"]:
        """The sum of `values` over the prompts of each class, for the q prompts from `start` on."""
        owner = self.owner[start : start + len(values)]
        return values.new_zeros(int(self.owner[-1]) + 1, values.shape[1]).index_add(0, owner, values)


def embed_classes(
    module: AlignmentModule, names: Sequence[Sequence[str]], templates: Sequence[str], keep_tokens: bool
) -> ClassTexts:
    """Embed every name of every class in every template.

    Args:
        module: The model that encodes the prompts. If its `phrase_query` is `span`, the map of a name includes function
            words of the name.
        names: One or more names of each class.
        templates: The templates, each with one `{}`.
        keep_tokens: Keep token embeddings, which need far more memory than pooled embeddings.
    """
    prompts, spans, owner = [], [], []
    for number, of_class in enumerate(names):
        for name in of_class:
            for template in templates:
                start = template.index("{}")
                prompts.append(template.replace("{}", name))
                spans.append((start, start + len(name)))
                owner.append(number)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    cut = 0
    for first in range(0, len(prompts), _BLOCK):
        texts, encoded = module.encode_texts(prompts[first : first + _BLOCK])
        rows = torch.arange(len(texts), device=texts.pooled.device)
        span = torch.tensor(spans[first : first + _BLOCK], device=rows.device)
        query = query_tokens(encoded, rows, span, content=module.phrase_query != "span")
        longest = int((texts.mask | query).any(0).nonzero().amax()) + 1 if keep_tokens else 0
        parts.append((texts.pooled, texts.tokens[:, :longest], texts.mask[:, :longest], query[:, :longest]))
        cut += int(encoded.truncated.sum())
    pooled, embedded, masks, queries = zip(*parts, strict=True)
    texts = Texts(torch.cat(pooled), _joined(embedded), _joined(masks))
    return ClassTexts(texts, torch.tensor(owner, device=texts.pooled.device), _joined(queries), cut)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate parts [q, l, ...], padded with zeros to the longest."""
    length = max(part.shape[1] for part in parts)
    return torch.cat([pad(part.transpose(1, -1), (0, length - part.shape[1])).transpose(1, -1) for part in parts])
