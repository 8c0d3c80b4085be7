"""The base class of alignment objectives, with three methods: the loss, the score and the map."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from patchword.answers import require_form
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.on_demand import on_demand
from patchword.ops import without_padding
from patchword.provenance.spec import Configurable

Need = Literal["ids", "negatives", "regions", "masked", "teacher", "views"]
NEEDS: Mapping[Need, str] = MappingProxyType(
    {
        "ids": "the ids of tokens (`ids`)",
        "negatives": "hard-negative captions (`negatives`; ImageText has the option data.negatives)",
        "regions": "boxes of phrases (`regions`; ImageText reads them with data.phrases: data)",
        "masked": "pixels to encode them again with masks (`masked`), and cached features have none",
        "teacher": "the embeddings of a teacher (`teacher`), and cached features have none",
        "views": "crops of images (`views`, see data.views), and cached features have none",
    }
)


class Objective(Configurable, nn.Module, ABC):
    """An alignment objective: the loss, the score and the map of images and texts in one space.

    An objective does not depend on Lightning, devices, ranks, data or logging. Its methods always run in float32 (or
    float64, if the inputs are float64) and outside autocast, at every precision of the caller. Half precision is not
    enough for min-max weights and for temperatures of 1/100.

    Attributes:
        uses_local_features: Whether `score` uses patches or tokens, and not only the pooled embeddings.
        multi_positive: Whether `forward` accepts K texts for each image, image by image, and treats all K as positives.
            Losses over all pairs in `contrast` do; terms within a pair can use `images.per_text(texts)`.
        needs: The optional parts of `Images` and `Texts` without which `forward` cannot be computed.
        map_measure: What the values of `align` measure, in one word, such as `weight`. The viewer shows it.
        map_is_pruned: Whether a zero in `align` means that the objective has discarded this patch.
    """

    uses_local_features: bool = False
    multi_positive: bool = False
    needs: tuple[Need, ...] = ()
    map_measure: str = "value"
    map_is_pruned: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("forward", "score", "text_to_image_score", "scores", "align"):
            if name in vars(cls):
                setattr(cls, name, _in_full_precision(vars(cls)[name]))

    def build(self, embed_dim: int) -> None:
        """Build the parameters that depend on the width D of the shared space. Called once, before training."""

    @abstractmethod
    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The named, weighted loss terms of the pairs (images[b], texts[b]). Training minimizes their sum."""

    @abstractmethod
    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """How well each image matches each text; higher is better. The score of a pair must not depend on other pairs.

        Scores must have the scale of a cosine or a larger one, because metrics treat differences of up to
        1e-6 max(1, |score|) as ties.
        """

    def text_to_image_score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """The score by which a text ranks images. It equals `score` unless the objective has two scores (FILIP)."""
        return self.score(images, texts)

    def scores(self, images: Images, texts: Texts) -> tuple[Float[Tensor, "I T"], Float[Tensor, "I T"]]:
        """`score` and `text_to_image_score`. An objective with two scores can compute them together here (FILIP)."""
        score = self.score(images, texts)
        return score, self.text_to_image_score(images, texts) if self.has_two_scores else score

    @property
    def has_two_scores(self) -> bool:
        """Whether the objective's class has a `text_to_image_score` of its own."""
        return type(self).text_to_image_score is not Objective.text_to_image_score

    @abstractmethod
    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """How strongly each token of texts[b] is related to each patch of images[b]; higher is stronger.

        Rows where `texts.mask` is False are zero. Columns where `images.mask` is False become zero.
        """

    def propose_regions(self, images: Images) -> tuple[Bool[Tensor, "B M P"], Float[Tensor, "B M"]] | None:
        """The regions that the objective proposes as objects, for the viewer: None unless a subclass overrides this.

        Returns:
            The patches of each region, which form a box, and its confidence as a logit, most confident first.
        """
        return None


def lacking(objective: Objective, images: Images, texts: Texts) -> list[Need]:
    """The parts that the objective needs and that are None in `images` or in `texts`."""
    return [need for need in objective.needs if any(getattr(side, need, 0) is None for side in (images, texts))]


def require_weights(objective: Objective) -> None:
    """Check the weights of an objective and of all objectives in it. Those of other packages are not checked.

    Raises:
        UserError: If an option `weights` or `*_weight` is negative or not finite, or if all weights of an objective
            are 0.
    """
    for part in objective.modules():
        if not isinstance(part, Objective) or not type(part).__module__.startswith("patchword."):
            continue
        options = part.spec["init_args"]
        weights = {name: value for name, value in options.items() if name.endswith("_weight")}
        weights |= {f"weights.{name}": 1.0 for name in options.get("objectives", {})}
        if isinstance(options.get("weights"), dict):
            weights |= {f"weights.{name}": value for name, value in options["weights"].items()}
        for name, value in weights.items():
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{type(part).__name__}: {name} must be 0 or more, not {value}")
        if weights and not any(weights.values()):
            raise UserError(f"{type(part).__name__}: {', '.join(weights)} are all 0; set at least one above 0")


def _in_full_precision(method: Any) -> Any:
    """`method` outside autocast, with half-precision inputs converted to float32 and padding set to zero.

    The values of padding, including NaN, can therefore reach neither a loss nor a gradient. Texts without any token
    (L = 0) get one padded position, so that maxima and means over tokens are defined. Maps are returned without it, and
    with zeros for the padding of patches. An answer of another form is refused (see `patchword.answers`).
    """

    @functools.wraps(method)
    def wrapper(self: Objective, images: Images, texts: Texts) -> Any:
        with torch.autocast(images.pooled.device.type, enabled=False):
            if method.__name__ == "forward":
                _require(self, images, texts)
            length = texts.mask.shape[1]
            if length == 0:
                texts = texts.padded(1)
            found = method(self, on_demand(images), on_demand(texts))
            require_form(type(self).__name__, method.__name__, found, images, texts)
            return without_padding(found[:, :length], images.mask, -1, 0.0) if method.__name__ == "align" else found

    return wrapper


def _require(objective: Objective, images: Images, texts: Texts) -> None:
    """Check that images and texts have what the objective needs."""
    for need in lacking(objective, images, texts):
        raise UserError(f"{type(objective).__name__} needs {NEEDS[need]}, which this data does not have")
