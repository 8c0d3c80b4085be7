"""What `AlignmentModule` needs from data that defines its own measurement or prediction, or has boxes for training.

Evaluation suites measure each split in their own way, and `ZeroShot` predicts scores of images with texts that do not
belong to them. The boxes of training phrases are the source of the position priors. The module calls the methods below
and imports none of these data modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from patchword.data.pixels import Box
    from patchword.module import AlignmentModule


@runtime_checkable
class SplitEvaluation(Protocol):
    """Collects the statistics of one split, batch by batch, on every rank."""

    def update(self, batch: Any) -> None:
        """Add a batch of the split."""

    def compute(self) -> dict[str, float]:
        """Compute every metric by name, over the samples of all ranks. Every rank must call this."""

    def to(self, device: Any) -> SplitEvaluation:
        """Move the statistics to `device`."""


@runtime_checkable
class MeasuredSplit(Protocol):
    """A split that defines how it is measured, such as a suite."""

    def evaluation(self, module: AlignmentModule) -> SplitEvaluation:
        """Create empty statistics for one pass over the split."""


@runtime_checkable
class MeasuringData(Protocol):
    """A data module some of whose splits define how they are measured."""

    def suite(self, split: str) -> MeasuredSplit | None:
        """Return what measures the split of this name; None for the metrics of captions and phrases."""


@runtime_checkable
class PredictingData(Protocol):
    """A data module that defines what `patchword predict` computes for its batches."""

    def predict(self, module: AlignmentModule, batch: Any) -> Any:
        """Compute the predictions of a batch."""


@runtime_checkable
class BoxedData(Protocol):
    """A data module whose training phrases can have boxes, from which the position priors are computed."""

    def training_boxes(self) -> Iterable[tuple[str, Sequence[Box]]]:
        """Return the text and the boxes of each training phrase that has boxes.

        The edges of boxes are fractions of what the model sees of the image, from 0 to 1.
        """
