"""Names of classes as texts: templates, several names for a class, and their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from patchword.errors import InputError
from patchword.features import Texts
from patchword.maps import query_tokens
from patchword.ops import normalize

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

_BLOCK = 256  # prompts encoded at a time


def read_templates(prompts: str) -> list[str]:
    """The templates that `prompts` names.

    Args:
        prompts: `label` (the name alone), `photo` ("a photo of a {}."), `clip` (the 80 of CLIP's ImageNet evaluation),
            or a text file with a template on each line, whose `{}` the name replaces.

    Raises:
        InputError: If there is no such file, or a line has not exactly one `{}`.
    """
    if prompts == "label":
        return ["{}"]
    if prompts == "photo":
        return ["a photo of a {}."]
    path = Path(__file__).parent / "clip_templates.txt" if prompts == "clip" else Path(prompts)
    if not path.is_file():
        raise InputError(f"prompts must be label, photo, clip or a file of templates, and there is no file {prompts}")
    templates = read_lines(path)
    for number, template in templates:
        if template.count("{}") != 1:
            raise InputError(f"{path}, line {number}: a template must hold {{}} once, for the name: {template!r}")
    return [template for _, template in templates]


def read_lines(path: Path, comments: bool = True) -> list[tuple[int, str]]:
    """The lines of a text file with their numbers from 1, without empty ones.

    Args:
        path: The file.
        comments: Leave out lines that begin with `#`, too.

    Raises:
        InputError: If it is not text in UTF-8, or no line is left.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not UTF-8 text ({error})") from error
    found = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if comments:
        found = [(number, line) for number, line in found if not line.startswith("#")]
    if not found:
        raise InputError(f"{path} is empty")
    return found


def split_names(names: str) -> list[str]:
    """The names of one class, which commas separate."""
    return [name.strip() for name in names.split(",") if name.strip()]


@dataclass(frozen=True)
class ClassTexts:
    """The Q prompts of C classes, class by class.

    Attributes:
        texts: The embedded prompts; without tokens where nothing needs them.
        owner: The class of each prompt.
        query: The tokens of the class's name in each prompt.
        cut: Number of prompts that were longer than the tokenizer allows.
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
        """Each class as one vector of length 1: the mean of its normalised pooled embeddings, normalised (CLIP)."""
        return normalize(self.mean(normalize(self.texts.pooled.float())))

    def mean(self, values: Float[Tensor, "Q n"]) -> Float[Tensor, "C n"]:
        """The mean of each class's prompts."""
        return self.sum(values) / self.owner.bincount()[:, None]

    def sum(self, values: Float[Tensor, "q n"], start: int = 0) -> Float[Tensor, "C n"]:
        """The sum of `values`, of the q prompts from `start` on, over those of each class."""
        owner = self.owner[start : start + len(values)]
        return values.new_zeros(int(self.owner[-1]) + 1, values.shape[1]).index_add(0, owner, values)


def embed_classes(
    module: AlignmentModule, names: Sequence[Sequence[str]], templates: Sequence[str], tokens: bool
) -> ClassTexts:
    """Every name of every class in every template, embedded.

    Args:
        module: Encodes the prompts. Its `query` says whether function words in a name take part in the name's map
            (`span`), or not.
        names: The names of each class, one or more.
        templates: With one `{}` each.
        tokens: Keep token embeddings; pooled ones need a small part of the memory.
    """
    prompts, spans, owner = [], [], []
    for number, of_class in enumerate(names):
        for name in of_class:
            for template in templates:
                start = template.index("{}")
                prompts.append(template.replace("{}", name))
                spans.append((start, start + len(name)))
                owner.append(number)
    parts, queries, cut = [], [], 0
    for first in range(0, len(prompts), _BLOCK):
        texts, encoded = module.encode_texts(prompts[first : first + _BLOCK])
        rows = torch.arange(len(texts), device=texts.pooled.device)
        span = torch.tensor(spans[first : first + _BLOCK], device=rows.device)
        query = query_tokens(encoded, rows, span, content=module.query != "span")
        longest = int((texts.mask | query).any(0).nonzero().amax()) + 1 if tokens else 0
        parts.append(Texts(texts.pooled, texts.tokens[:, :longest], texts.mask[:, :longest]))
        queries.append(query[:, :longest])
        cut += int(encoded.truncated.sum())
    length = max(part.tokens.shape[1] for part in parts)
    parts = [_padded(part, length) for part in parts]
    texts = Texts(
        torch.cat([part.pooled for part in parts]),
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.mask for part in parts]),
    )
    query = torch.cat([pad(part, (0, length - part.shape[1])) for part in queries])
    return ClassTexts(texts, torch.tensor(owner, device=texts.pooled.device), query, cut)


def _padded(texts: Texts, length: int) -> Texts:
    more = length - texts.mask.shape[1]
    return replace(texts, tokens=pad(texts.tokens, (0, 0, 0, more)), mask=pad(texts.mask, (0, more)))
