"""The titles of metrics, the metrics that each table shows, and those that can be compared with a baseline."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from patchword.report.run import COSTS

SOURCES = {
    "align": "own map",
    "cosine": "cosine",
    "dot": "dot product",
    "value": "value path",
    "grad_eclip": "Grad-ECLIP",
    "chefer": "Chefer et al.",
    "legrad": "LeGrad",
    "grad_cam": "Grad-CAM",
    "banzhaf": "interactions",
}
REMOVAL = {
    "deletion": "deletion ↓",
    "insertion": "insertion ↑",
    "deletion_rank": "deletion, rank ↓",
    "insertion_rank": "insertion, rank ↑",
}
WAYS = {"image_to_text": "image → text", "text_to_image": "text → image"}
GROUNDING = {
    "pointing_game": "pointing game",
    "box_accuracy": "box accuracy",
    "average_precision": "average precision",
    "object_choice": "object choice",
    "swap_accuracy": "swap accuracy",
}
BASELINES = ("chance", "center_prior", "mean_prior", "class_prior")
REFERENCES = tuple(name.replace("_", " ") for name in BASELINES)
_COUNTS = ("images", "captions", "phrases", "negatives", "ties", "dropped")


@dataclass(frozen=True)
class Column:
    """A column of a table, which shows one metric.

    Attributes:
        metric: The name of the metric in `results.json`, without the split.
        title: The header of the column.
        subtitle: A second line of the header that distinguishes columns with the same title.
        references: The name of the same metric for each of `REFERENCES` that it has: for random guesses, for maps that
            peak at the center of the image, and for the mean maps of training phrases.
        lower_is_better: Whether lower numbers are better.
    """

    metric: str
    title: str
    subtitle: str = ""
    references: Mapping[str, str] = field(default_factory=dict, hash=False)
    lower_is_better: bool = False


@dataclass(frozen=True)
class Quality:
    """A measure of quality that is plotted: the mean of some metrics, which are named without their split.

    The key is used in file names.
    """

    key: str
    title: str
    metrics: tuple[str, ...]


def qualities(query: str) -> list[Quality]:
    """Return the measures of quality that are plotted."""
    precision = f"grounding/{query}/align/average_precision"
    return [
        Quality("retrieval", "R@1, mean of both ways", tuple(f"retrieval/{way}/r@1" for way in WAYS)),
        Quality("maps", "average precision of the objective's own map", (precision,)),
    ]


def headline(query: str) -> list[Column]:
    """Return the columns of the first table: retrieval in both directions, hard negatives, and maps of all sources."""
    ways = [
        Column(f"retrieval/{way}/r@1", "R@1", words, {"chance": f"retrieval/{way}/chance_r@1"})
        for way, words in WAYS.items()
    ]
    negatives = Column(
        "hard_negatives/per_negative",
        "hard negatives",
        "accuracy",
        {"chance": "hard_negatives/chance_per_negative"},
    )
    return [*ways, negatives, *(_grounding(query, source, "average_precision", True) for source in SOURCES)]


def grounding(query: str, source: str) -> list[Column]:
    """Return the columns for the maps of one source."""
    return [_grounding(query, source, name, False) for name in GROUNDING]


def removal(query: str, fill: str) -> list[Column]:
    """Return the columns of insertion and deletion, for all sources of maps and one way to remove patches."""
    place = f"removal/{query}/{fill}"
    return [
        Column(
            f"{place}/{source}/{name}",
            title,
            words,
            {shown: f"{place}/{baseline}/{name}" for shown, baseline in zip(REFERENCES, BASELINES, strict=True)},
            lower_is_better=name.startswith("deletion"),
        )
        for name, title in REMOVAL.items()
        for source, words in SOURCES.items()
    ]


def of_suite(definitions: Mapping[str, str]) -> list[Column]:
    """Return a column for each number that an evaluation suite defines."""
    columns = []
    for metric in definitions:
        group, slash, name = metric.rpartition("/")
        baselines = {prior: f"{group}{slash}{prior}_{name}" for prior in ("chance", "class_prior")}
        columns.append(Column(metric, name, group.replace("/", " "), baselines, name == "median_rank"))
    return columns


def is_compared(metric: str, definitions: Container[str] = ()) -> bool:
    """Return whether variants are compared by this metric; False for losses, counts, chance and priors.

    `definitions` has the metrics that the split defines itself, if it is an evaluation suite.
    """
    parts = metric.split("/")
    if parts[0] not in ("retrieval", "grounding", "hard_negatives", "removal"):
        return metric in COSTS or metric in definitions
    count = parts[-1] in _COUNTS or parts[-1].startswith("phrases_")  # the number of phrases of one type
    return not count and "chance" not in parts[-1] and not {*BASELINES} & {*parts}


def _grounding(query: str, source: str, name: str, by_source: bool) -> Column:
    return Column(
        f"grounding/{query}/{source}/{name}",
        GROUNDING[name],
        SOURCES[source] if by_source else "",
        {shown: f"grounding/{query}/{baseline}/{name}" for shown, baseline in zip(REFERENCES, BASELINES, strict=True)},
    )
