"""The objectives and their options that the contract tests use."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

import patchword.objectives
from patchword import Images, Objective, Texts
from patchword.contract import sample
from patchword.contract.sample import DIM, VOCABULARY, again, alone, padded  # noqa: F401 - for other tests
from patchword.contract.values import gradients  # noqa: F401
from patchword.objectives import CLIP, FGCLIP2, FILIP, Sum, SuperCLIP

# Every objective in `patchword.objectives.__all__` is tested with default options, and with these options.
SWITCHES: dict[str, list[dict]] = {
    "CLIP": [{"temperature": 0.2}],
    # `padding: zero` is omitted, because its loss depends on padding, which the contract does not allow.
    "FILIP": [
        {"keep_ratio": 0.6},
        {"keep_ratio": 0.6, "drop": "both"},
        {"separate_temperatures": True, "label_smoothing": 0.1},
    ],
    "SigLIP": [{"temperature": 0.2, "bias": -1.0}, {"normalizer": "texts"}],
    "FLAIR": [{"heads": 2}, {"normalizer": "texts"}],
    "FGCLIP": [{"region_weight": 1.0}, {"region_weight": 0.0, "negative_weight": 0.0}],
    "FGCLIP2": [
        {"rank_similarity": "cosine", "neighbors": 2},
        {"region_weight": 0.0, "text_weight": 1.0, "similarity_limit": 0.2},
        {"region_weight": 0.0, "text_weight": 0.0, "negative_weight": 0.0, "batch_negative_weight": 0.0},
    ],
    "NegCLIP": [{"temperature": 0.2}],
    "SuperCLIP": [{"classification_weight": 0.3}],
    "MGCA": [
        {"attention": "plain"},
        {"attention": "plain", "learn_temperatures": True},
        {"token_weights": "uniform", "normalize_attended": False},
    ],
    "PACL": [{"compatibility": "cosine"}, {"pooling": "own", "attention_scale": 9.0}, {"learn_temperature": True}],
    "GLoRIA": [{"attention": "code"}, {"similarity": "scaled", "learn_temperatures": True}, {"aggregation": "mean"}],
    "LOUPE": [
        {"label": "negative", "regions": 3},
        {"label": "presence", "sides": (0.5, 1.0)},
        {"label": "similarity"},
        {"estimator": "sampled", "samples": 20},
        {"estimator": "neural", "samples": 20, "certainty": 0.1},
        {"estimator": "masked", "samples": 20, "masked_samples": 2, "certainty": 0.1},
    ],
    # `global_texts: first` is omitted, because its loss depends on the order of an image's texts.
    "BetaCLIP": [
        {"heads": 2, "beta": 0.3},
        {"pooling": "own"},
        {"loss": "bce", "beta": 0.3},
        {"loss": "bce", "pooling": "own"},
    ],
    "PowerCLIP": [{"zeta": 0.0, "regions": 3}, {"margin": 1.0, "zeta": 1.0, "smoothing": 0.1}],
    "SmartCLIP": [{"mask": "soft"}, {"masked_scores": True, "heads": 2}, {"learn_temperature": False}],
    "LongCLIP": [{"components": 2}, {"components": 1, "short_weight": 0.1, "label_smoothing": 0.0}],
    "COSMOS": [{"heads": 2, "global_texts": 1}, {"distillation_weight": 0.3}],
    "DreamLIP": [{"threshold": None, "separate_temperature": False}, {"candidates": "all", "threshold": 0.5}],
    "SPARC": [
        {"weights": "minmax"},
        {"weights": "softmax"},
        {"threshold": 0.5},
        {"similarity": "cosine"},
        {"detach_weights": True},
        {"negatives": "batch"},
        {"reduction": "sample"},
        {"separate_temperature": True},
    ],
}

# Options of all variants, also of the first one.
SMALL: dict[str, dict] = {"SuperCLIP": {"vocabulary": 300}}

# Variants whose loss contains detached parts, so that its gradient differs from finite differences. The objective's own
# tests compare the gradient with that of the plain formula.
STOPPED = ("SPARC-detach_weights=True", "MGCA", "LOUPE", "SmartCLIP-mask=soft")

# Variants whose loss depends on the positions of patches.
SPATIAL = ("LOUPE", "PowerCLIP")
# Variants that draw random numbers. `build` sets the same seed before every call. torch.compile breaks their graph.
RANDOM = ("LOUPE-estimator", "PowerCLIP")


def _sum(**switches: Any) -> Objective:
    return Sum({"clip": CLIP(), "filip": FILIP()}, **switches)


SUMS = {
    "Sum": _sum,
    "Sum-weights": lambda: _sum(weights={"filip": 0.5}),
    "Sum-scored_by=clip-aligned_by=filip": lambda: _sum(scored_by="clip", aligned_by="filip"),
}


def _variants() -> dict[str, Callable[[], Objective]]:
    found: dict[str, Callable[[], Objective]] = {}
    for name in sorted({*patchword.objectives.__all__} - {"Sum"}):
        cls = getattr(patchword.objectives, name)
        assert issubclass(cls, Objective)
        assert not inspect.isabstract(cls)
        for switches in [{}, *SWITCHES.get(name, [])]:
            label = "-".join([name, *(f"{k}={v}" for k, v in switches.items())])
            options = SMALL.get(name, {}) | switches
            found[label] = lambda cls=cls, options=options: cls(**options)
    return found | SUMS


VARIANTS = _variants()


def is_ordered(variant: str) -> bool:
    """Whether the loss depends on the order of an image's captions."""
    ordered = variant.startswith(("LongCLIP", "DreamLIP", "FGCLIP", "COSMOS"))
    return ordered and "candidates=all" not in variant and "batch_negative_weight=0.0" not in variant


def pairs(batch: int = 5, grid: tuple[int, int] = (2, 3), **options: Any) -> tuple[Images, Texts]:
    """The pairs of the contract, with fewer patches."""
    return sample.pairs(batch, grid, **options)


def build(variant: str, dtype: torch.dtype = torch.float32) -> Objective:
    """The variant with its parameters for the sizes of `pairs`. Every call returns the same values."""
    torch.manual_seed(0)
    objective = VARIANTS[variant]()
    objective.build(DIM)
    if variant.startswith(RANDOM):
        objective.register_forward_pre_hook(lambda *_: torch.manual_seed(0) and None)
    if isinstance(objective, SuperCLIP | FGCLIP2):  # they store numbers that later calls use
        _forget(objective)
        objective.register_forward_pre_hook(_forget)
    return objective.to(dtype)


def _forget(objective: Objective, *_: Any) -> None:
    if isinstance(objective, SuperCLIP):
        objective.captions.zero_()
        objective.captions_with.zero_()
    elif isinstance(objective, FGCLIP2):
        objective.margin.fill_(0.5)
