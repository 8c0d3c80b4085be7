"""Names beside points, none over another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from patchword.report.style import FONT, Ink, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_DISTANCES = (7, 13, 21, 31)  # points
_NEAR = 8  # without a line from name to point
_SIDES = {1: "left", 0: "center", -1: "right"}, {1: "bottom", 0: "center", -1: "top"}


def label_points(
    figure: Figure, axes: Axes, names: Sequence[str], places: Sequence[tuple[float, float]], ink: Ink
) -> bool:
    """Write each name beside its point, inside the axes and over nothing else.

    Args:
        figure: The figure.
        axes: What the points are drawn in.
        names: The names.
        places: Where their points are, in the units of the axes.
        ink: The colour of text.

    Returns:
        False if that cannot be done; then nothing is written.
    """
    figure.draw_without_rendering()  # settles the layout
    taken = [_around(axes.transData.transform(place), 5 * figure.dpi / 72) for place in places]
    written: list[Annotation] = []
    for name, place in zip(names, places, strict=True):
        for distance, direction in product(_DISTANCES, _DIRECTIONS):
            note = _write(axes, name, place, direction, distance, ink)
            box = note.get_window_extent()
            if _inside(box, axes.bbox) and not any(box.overlaps(other) for other in taken):
                written.append(note)
                taken.append(box)
                break
            note.remove()
        else:
            for note in written:
                note.remove()
            return False
    return True


def _write(
    axes: Axes, name: str, place: tuple[float, float], direction: tuple[int, int], distance: int, ink: Ink
) -> Annotation:
    line = {"arrowstyle": "-", "color": ink.text, "linewidth": 0.5, "alpha": 0.6, "shrinkA": 0, "shrinkB": 4}
    return axes.annotate(
        shorten(name),
        place,
        (direction[0] * distance, direction[1] * distance),
        textcoords="offset points",
        ha=_SIDES[0][direction[0]],
        va=_SIDES[1][direction[1]],
        fontsize=FONT,
        color=ink.text,
        parse_math=False,
        arrowprops=line if distance > _NEAR else None,
    )


def _around(centre: np.ndarray, reach: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox([centre - reach, centre + reach])


def _inside(box: Bbox, other: Bbox) -> bool:
    return bool(box.x0 >= other.x0 and box.x1 <= other.x1 and box.y0 >= other.y0 and box.y1 <= other.y1)
