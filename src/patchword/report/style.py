"""How plots look: a colour, a marker and a line for each variant, told apart with every kind of colour vision."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's, without the yellow that white paper swallows and with grey for black, which dark pages swallow.
_COLOURS = ("#1f83c4", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
_LINES = ("-", "--", "-.", ":")
_LONGEST = 30  # characters of a name
_SIZE = (5.8, 4.3)  # inches, the legend included
FONT = 10


@dataclass(frozen=True)
class Ink:
    """The colours of a plot's text and lines."""

    text: str
    grid: str
    paper: str


LIGHT = Ink("#2b2b2b", "#dddddd", "#ffffff")
DARK = Ink("#d8d8d4", "#3d3f42", "#1b1c1e")


def look_of(variant: int) -> dict[str, Any]:
    """The colour, marker and line style of the variant with this number."""
    return {
        "color": _COLOURS[variant % len(_COLOURS)],
        "marker": _MARKERS[variant % len(_MARKERS)],
        "linestyle": _LINES[variant // len(_COLOURS) % len(_LINES)],
    }


def panel(title: str, x: str, y: str, ink: Ink) -> tuple[Figure, Axes]:
    """An empty figure of one panel."""
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
    """A name that has room in a plot."""
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def legend(figure: Figure, axes: Axes, ink: Ink) -> None:
    """The variants below the panel."""
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
    """The figure as a PNG file."""
    made = io.BytesIO()
    figure.savefig(made, format="png", dpi=dpi)
    return made.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as an SVG file, the same bytes for the same figure."""
    from matplotlib import rc_context

    made = io.BytesIO()
    with rc_context({"svg.hashsalt": "patchword"}):
        figure.savefig(made, format="svg", metadata={"Date": None})
    return made.getvalue()
