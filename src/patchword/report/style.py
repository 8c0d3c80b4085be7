"""The style of plots: each variant has a color, a marker and a line style that color-blind readers can distinguish."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito without yellow, which is hard to see on white, and with gray instead of black, which is
# invisible on dark pages.
_COLORS = ("#1f83c4", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
_LINES = ("-", "--", "-.", ":")
_LONGEST = 30  # maximum length of a name in characters
_SIZE = (5.8, 4.3)  # size of a figure in inches, including the legend
FONT = 10


@dataclass(frozen=True)
class Ink:
    """The colors of a plot's text and lines."""

    text: str
    grid: str
    paper: str


LIGHT = Ink("#2b2b2b", "#dddddd", "#ffffff")
DARK = Ink("#d8d8d4", "#3d3f42", "#1b1c1e")


def look_of(variant: int) -> dict[str, Any]:
    """Return the color, marker and line style of the variant with this index."""
    return {
        "color": _COLORS[variant % len(_COLORS)],
        "marker": _MARKERS[variant % len(_MARKERS)],
        "linestyle": _LINES[variant // len(_COLORS) % len(_LINES)],
    }


def panel(title: str, x: str, y: str, ink: Ink) -> tuple[Figure, Axes]:
    """Create an empty figure with one panel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained", facecolor=ink.paper)
    axes = figure.add_subplot(facecolor=ink.paper)
    axes.set_title(title, loc="left", fontsize=FONT + 1, color=ink.text, parse_math=False)
    axes.set_xlabel(x, fontsize=FONT, color=ink.text, parse_math=False)
    axes.set_ylabel(y, fontsize=FONT, color=ink.text, parse_math=False)
    axes.tick_params(labelsize=FONT, colors=ink.text, length=0)
    axes.grid(color=ink.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.margins(0.06)
    return figure, axes


def shorten(name: str) -> str:
    """Shorten a name so that it fits into a plot."""
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def legend(figure: Figure, axes: Axes, ink: Ink) -> None:
    """Add a legend of the variants below the panel."""
    handles, labels = axes.get_legend_handles_labels()
    labels = list(map(shorten, labels))
    longest = max(map(len, labels), default=0)
    made = figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=4 if longest < 10 else 3 if longest < 18 else 2,
        fontsize=FONT,
        frameon=False,
        labelcolor=ink.text,
        handlelength=2.6,
        columnspacing=1.4,
    )
    for text in made.get_texts():
        text.set_parse_math(False)


def png(figure: Figure, dpi: int = 200) -> bytes:
    """Return the figure as a PNG file."""
    made = io.BytesIO()
    figure.savefig(made, format="png", dpi=dpi)
    return made.getvalue()


def svg(figure: Figure) -> bytes:
    """Return the figure as an SVG file; equal figures give equal bytes."""
    from matplotlib import rc_context

    made = io.BytesIO()
    with rc_context({"svg.hashsalt": "patchword"}):
        figure.savefig(made, format="svg", metadata={"Date": None})
    return made.getvalue()
