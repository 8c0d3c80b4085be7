"""Where an image of a published data set lies, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from patchword.suites.files import load_image


@runtime_checkable
class Picture(Protocol):
    """An image that is read when it is needed."""

    def read(self) -> tuple[Image.Image, int]:
        """The image upright in RGB, and a checksum of what it is made of.

        Raises:
            InputError: If it is missing or cannot be decoded.
        """
        ...


@dataclass(frozen=True)
class PictureFile:
    """An image in a file of its own.

    Attributes:
        path: The file.
        place: Where the data set names it, for messages.
    """

    path: Path
    place: str

    def read(self) -> tuple[Image.Image, int]:
        """See `Picture`."""
        return load_image(self.path, self.place)
