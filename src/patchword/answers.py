"""The form of what an objective returns: named scalar terms, scores [I, T] and maps [B, L, P]."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from patchword.errors import UserError
from patchword.features import Images, Texts


def require_form(name: str, method: str, answer: Any, images: Images, texts: Texts) -> None:
    """Check the types and the shape of what `method` of the objective `name` returned. Values are not read.

    Raises:
        UserError: If `forward` does not return a dictionary of scalars, `align` not [B, L, P], or another method not
            [I, T] (`scores`: two of them). The message says what was returned and what was expected.
    """
    returned = f"{name}: {method} returned"
    if method == "scores":
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise UserError(f"{returned} {_described(answer)}; expected the pair (score, text_to_image_score)")
        for number, one in enumerate(answer):
            require_form(name, f"scores[{number}]", one, images, texts)
        return
    if method != "forward":
        axes, shape = "I, T", [len(images), len(texts)]
        if method == "align":
            axes, shape = "B, L, P", [len(images), texts.mask.shape[1], images.patches.shape[1]]
        if not _is(answer, shape):
            raise UserError(f"{returned} {_described(answer)}; expected [{axes}] = {shape}")
        return
    if not isinstance(answer, dict) or not answer:
        raise UserError(f"{returned} {_described(answer)}; expected named scalar terms, such as {{'global': loss}}")
    for term, value in answer.items():
        if not isinstance(term, str) or not _is(value, []):
            raise UserError(f"{returned} the term {term!r} as {_described(value)}; expected a name and a scalar, []")


def require_answers(objective: Any, images: Images, texts: Texts) -> None:
    """Call every method of an objective, and check what it returns.

    `score` gets one image less than there are texts, so that transposed scores are noticed. `forward` is the last one,
    because its mistakes often come from those of the others.

    Raises:
        UserError: If an answer has another form than `require_form` requires, or is not finite.
    """
    name = type(objective).__name__
    for method in ("score", "text_to_image_score", "align"):
        some = images if method == "align" else images[:-1]
        answer = getattr(objective, method)(some, texts)
        require_form(name, method, answer, some, texts)
        bad = int((~answer.isfinite()).sum())
        if bad:
            raise UserError(
                f"{name}: {method} returned {bad} of {answer.numel()} values that are nan or inf; expected finite ones"
            )
    for term, value in objective(images, texts).items():
        if not value.isfinite():
            raise UserError(f"{name}: forward returned the term {term!r} = {value.item()}; expected a finite number")


def _is(value: Any, shape: list[int]) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and list(value.shape) == shape


def _described(value: Any) -> str:
    """The shape of a tensor, with its type if it has no fractions; the type of anything else."""
    if not isinstance(value, Tensor):
        return "an empty dictionary" if value == {} else f"the type {type(value).__name__}"
    return f"{list(value.shape)}" + ("" if value.is_floating_point() else f" of {value.dtype}")
