"""Named protocols of zero-shot segmentation: a run can only have the name if it has the protocol's options.

`training_free` is the protocol of the papers that segment with a frozen CLIP, as the code of NACLIP has it (Hajimiri et
al., WACV 2025, arXiv 2404.08181; sinahmr/NACLIP at 0cac3a6). `sparc` is that of SPARC (arXiv 2401.09865).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patchword.errors import UserError

if TYPE_CHECKING:
    from patchword.suites.segmentation import Segmentation

WINDOW, STRIDE = 224, 112  # in pixels
THRESHOLD, SCALE = 0.1, 40  # background: the highest softmax of SCALE * cosine is below THRESHOLD

_TRAINING_FREE = {
    "map": "pooled",
    "prompts": "clip",
    "candidates": "dataset",
    "upsampling": "bilinear",
    "several_names": "max",
}
_SPARC = {"map": "pooled", "prompts": "label", "candidates": "dataset", "upsampling": "nearest", "short_side": None}


def require_protocol(suite: Segmentation, window: int) -> None:
    """Check that the options of `suite` are those of the protocol that it names.

    Args:
        suite: The suite.
        window: The height and width of a window in pixels.

    Raises:
        UserError: If an option differs; the message names it.
    """
    name = suite.labeling.protocol
    if name is None:
        return
    if name == "sparc":
        _require(name, vars(suite.labeling), _SPARC, "data.labeling.")
        return
    fixed: dict[str, Any] = _TRAINING_FREE | {"short_side": suite.training_free_side}
    if suite.training_free_side is not None:
        _require(name, {"image_size": window}, {"image_size": WINDOW}, "data.")
        stride = suite.labeling.stride
        _require(name, {"stride": WINDOW // 2 if stride is None else stride}, {"stride": STRIDE}, "data.labeling.")
    _require(name, vars(suite.labeling), fixed, "data.labeling.")
    if suite.background == "threshold":
        given = {"threshold": suite.threshold, "temperature": suite.temperature}
        _require(name, given, {"threshold": THRESHOLD, "temperature": 1 / SCALE}, "data.")
    if suite.background == "count":
        raise UserError(f"data.labeling.protocol {name} has data.background ignore, not count")
    if suite.labeling.class_names is None:
        raise UserError(
            f"data.labeling.protocol {name} needs the class names that training-free papers use: set "
            "data.labeling.class_names to the file of the data set in the code of such a paper, such as cls_voc21.txt"
        )
    if suite.background == "threshold" and not suite.background_names:
        raise UserError(
            f"{suite.labeling.class_names} has no names of the background: data.labeling.protocol {name} needs them in "
            "the first line"
        )


def _require(protocol: str, given: dict[str, Any], fixed: dict[str, Any], prefix: str) -> None:
    for name, value in fixed.items():
        if given[name] != value:
            shown = "null" if value is None else value
            raise UserError(
                f"data.labeling.protocol {protocol} has {prefix}{name} {shown}, not {given[name]}: change it, or set "
                "data.labeling.protocol to null"
            )
