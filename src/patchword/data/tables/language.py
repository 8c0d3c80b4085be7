"""Models of spaCy, which are optional."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from patchword.errors import UserError

SPACY_MODEL = "en_core_web_sm"


class Language:
    """A model of spaCy that finds parts of speech and noun phrases.

    Every process loads the model when it processes its first caption.

    Args:
        model: The name of an installed model.
        option: The option that needs the model, and the value that it has without the name of the model.

    Raises:
        UserError: If spaCy or the model is not installed.
    """

    def __init__(self, model: str, option: tuple[str, str]) -> None:
        name, value = option
        if find_spec("spacy") is None:
            raise UserError(f"{name} is {value}, but spaCy is not installed: pip install spacy, or change {name}")
        if find_spec(model) is None:
            raise UserError(
                f"{name}: the spaCy model {model} is not installed: pip install it, or choose an installed "
                f"one with {value}:MODEL"
            )
        self.model = model
        self.option = option
        self._loaded: Any = None

    def __call__(self, caption: str) -> Any:
        """Return the spaCy document of a caption. It does not depend on other captions, as in batches it could."""
        if self._loaded is None:
            self._loaded = import_module(self.model).load(exclude=["ner", "lemmatizer"])
        return self._loaded(caption)

    def __reduce__(self) -> tuple[type[Language], tuple[str, tuple[str, str]]]:
        return Language, (self.model, self.option)
