"""What metrics are called, which of them stand in the tables, and which can be compared with a baseline."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from patchword.report.run import COSTS

SOURCES = {"align": "own map", "cosine": "cosine", "dot": "dot product"}
WAYS = {"image_to_text": "image → text", "text_to_image": "text → image"}
GROUNDING = {
    "pointing": "pointing",
    "box_accuracy": "box accuracy",
    "average_precision": "average precision",
    "choice": "choice",
}
REFERENCES = ("chance", "centre")
_COUNTS = ("images", "captions", "phrases", "negatives", "dropped")


@dataclass(frozen=True)
class Column:
    """A metric of a table.

    Attributes:
        metric: Its name in `results.json`, without the split.
        title: The head of its column.
        subtitle: What tells it from others of that title.
        chance: The metric that is the same for a guess.
        centre: The metric that is the same for maps that point at the image's centre.
    """

    metric: str
    title: str
    subtitle: str = ""
    chance: str = ""
    centre: str = ""


def headline(query: str) -> list[Column]:
    """The few numbers that come first: retrieval both ways, hard negatives, and maps of every source."""
    ways = [
        Column(f"retrieval/{way}/r@1", "R@1", words, chance=f"retrieval/{way}/chance_r@1")
        for way, words in WAYS.items()
    ]
    negatives = Column(
        "hard_negatives/per_negative", "hard negatives", "beaten", chance="hard_negatives/chance_per_negative"
    )
    return [*ways, negatives, *(_grounding(query, source, "average_precision", True) for source in SOURCES)]


def grounding(query: str, source: str) -> list[Column]:
    """How well maps of one source lie on their objects."""
    return [_grounding(query, source, name, False) for name in GROUNDING]


def of_suite(definitions: Mapping[str, str]) -> list[Column]:
    """The numbers that an evaluation suite defines."""
    columns = []
    for metric in definitions:
        group, slash, name = metric.rpartition("/")
        columns.append(Column(metric, name, group.replace("/", " "), chance=f"{group}{slash}chance_{name}"))
    return columns


def is_compared(metric: str, definitions: Container[str] = ()) -> bool:
    """Whether a difference between variants means something: not for losses, counts, chance and the centre.

    Args:
        metric: Its name, without the split.
        definitions: The numbers that the split defines itself, as an evaluation suite does.
    """
    parts = metric.split("/")
    if parts[0] not in ("retrieval", "grounding", "hard_negatives"):
        return metric in COSTS or metric in definitions
    return parts[-1] not in _COUNTS and "chance" not in parts[-1] and not set(parts) & set(REFERENCES)


def _grounding(query: str, source: str, name: str, by_source: bool) -> Column:
    return Column(
        f"grounding/{query}/{source}/{name}",
        GROUNDING[name],
        SOURCES[source] if by_source else "",
        chance=f"grounding/{query}/chance/{name}",
        centre=f"grounding/{query}/centre/{name}",
    )
