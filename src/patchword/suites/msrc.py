"""Segmentation of the photographs of MSRC v2 (Shotton et al., ECCV 2006), the Microsoft Research Cambridge database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from patchword.errors import UserError
from patchword.files.published import read_lines, require_file
from patchword.metrics.segmentation import IGNORED
from patchword.suites.files import load_image
from patchword.suites.segmentation import Segmentation, label_table

# The colors of the ground truth: void, and the classes in the order of msrc_classes.txt.
_COLORS = (
    *((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128)),
    *((64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128), (64, 128, 128)),
    *((192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 64, 128), (0, 192, 128), (128, 192, 128)),
    *((64, 64, 0), (192, 64, 0)),
)


class MSRCv2(Segmentation):
    """Segmentation into the classes of MSRC v2. Pixels without a class (black) are ignored.

    Args:
        root: The folder of msrc_objcategimagedatabase_v2.zip, with `Images` (1_1_s.bmp) and `GroundTruth`
            (1_1_s_GT.bmp).
        split: A file in `root` with the names of the images to use, one per line, such as TextonBoost's
            `TextonBoostSplits/Test.txt`; null uses all images.
        train: A file in `root` with the names of other images, such as `TextonBoostSplits/Train.txt`, for class mean
            maps (see `Segmentation.training_labels`); null does not measure them.
        left_out: The classes whose pixels are ignored. The database is mostly used with 21 of its 23 classes, because
            it has few horses and mountains; an empty list uses all classes.
        options: Options of all segmentation suites; see `Segmentation`.

    Raises:
        UserError: If a class in `left_out` does not exist.
    """

    names_file = "msrc_classes.txt"

    def __init__(
        self,
        root: str,
        split: str | None = None,
        train: str | None = None,
        left_out: Sequence[str] = ("horse", "mountain"),
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.split = split
        self.train = train
        published = [name for _, name in read_lines(Path(__file__).parent / self.names_file)]
        if unknown := {*left_out} - {*published}:
            raise UserError(f"data.left_out: {unknown.pop()!r} is no class of MSRC v2: use {', '.join(published)}")
        self.values = [value for value, name in enumerate(published, start=1) if name not in left_out]
        self.names = [self.names[value - 1] for value in self.values]
        self.data_set = f"MSRC v2, {len(self.values)} classes"  # type: ignore[misc]

    @property
    def key(self) -> str:
        """`msrc_v2`, and the name of the list without its extension, in lower case."""
        return "msrc_v2" if self.split is None else f"msrc_v2_{Path(self.split).stem.lower()}"

    def files(self) -> list[tuple[Path, Path]]:
        """Return the images with their ground truth."""
        if self.split is None:
            names = sorted(path.stem.removesuffix("_GT") for path in (self.root / "GroundTruth").glob("*_GT.bmp"))
        else:
            names = self._listed(self.split)
        if not names:
            raise UserError(
                f"there is no ground truth *_GT.bmp in {self.root / 'GroundTruth'}: set data.root to the folder of "
                "msrc_objcategimagedatabase_v2.zip"
            )
        images = self.image_folder("Images")
        return [(images / f"{name}.bmp", self._truth(name)) for name in names]

    def training_labels(self) -> list[Path]:
        """Return the ground truth of the images in `train`.

        Raises:
            UserError: If the list is missing, or has an image that is tested.
        """
        if self.train is None:
            return []
        listed = [self._truth(name) for name in self._listed(self.train)]
        if both := {*listed} & {truth for _, truth in self.files()}:
            raise UserError(f"data.train: {self.root / self.train} has the image {min(both).name}, which is tested")
        return listed

    def _listed(self, name: str) -> list[str]:
        path = require_file(self.root, name, "a list of images, such as TextonBoost's")
        return [Path(line).stem for _, line in read_lines(path)]

    def _truth(self, name: str) -> Path:
        return self.root / f"GroundTruth/{name}_GT.bmp"

    @staticmethod
    def label_map(source: Path) -> UInt8[np.ndarray, "H W2"]:
        """Read the ground truth: 0 is void, and 1, 2, ... are the classes in their published order."""
        colors = np.asarray(load_image(source, "the ground truth", upright=False)[0])
        codes, known = (_code(np.asarray(each)) for each in (colors, _COLORS))
        order = known.argsort()
        values = order[known[order].searchsorted(codes).clip(max=len(known) - 1)]
        if (wrong := known[values] != codes).any():
            unknown = tuple(map(int, colors[wrong][0]))
            raise UserError(f"{source} has the color {unknown}, which is not one of MSRC v2: use the published file")
        return values.astype(np.uint8)

    def labels(self) -> UInt8[np.ndarray, " 256"]:
        """Map the classes that are not left out to 0, 1, ...; other pixels are ignored."""
        others = {value: IGNORED for value in range(len(_COLORS)) if value not in self.values}
        return label_table({value: label for label, value in enumerate(self.values)}, others)


def _code(colors: np.ndarray) -> np.ndarray:
    """One number per color."""
    return colors @ np.array([2**16, 2**8, 1])
