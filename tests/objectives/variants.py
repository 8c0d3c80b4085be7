"""Every objective, and every switch of it, that the contract is run on."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

import patchword.objectives
from patchword import Images, Objective, Texts
from patchword.objectives import CLIP, FILIP, Sum

# An objective is covered by being in `patchword.objectives.__all__`; its switches by a line here.
SWITCHES: dict[str, list[dict]] = {
    "CLIP": [{"temperature": 0.2}],
    # `padding: zero` is left out: that a loss depends on padding is what the contract forbids.
    "FILIP": [
        {"keep_ratio": 0.6},
        {"keep_ratio": 0.6, "drop": "both"},
        {"separate_temperatures": True, "label_smoothing": 0.1},
    ],
    "SigLIP": [{"temperature": 0.2, "bias": -1.0}],
    "FLAIR": [{"heads": 2}],
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
    ],
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

# Variants whose loss holds a part of itself constant: finite differences do not see that. The objective's own tests
# compare its gradient with autograd's through the plain formula.
STOPPED = ("SPARC-detach_weights=True", "MGCA", "LOUPE")

# Variants whose loss depends on where patches are, not only on what they hold.
SPATIAL = ("LOUPE",)
# Variants that draw random numbers, which `build` lets start from the same seed at every call; torch.compile
# breaks the graph there.
RANDOM = ("LOUPE-estimator",)


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
            found[label] = lambda cls=cls, switches=switches: cls(**switches)
    return found | SUMS


VARIANTS = _variants()
DIM = 8


def build(variant: str, dtype: torch.dtype = torch.float32) -> Objective:
    """The variant with its parameters for the sizes of `pairs`, the same at every call."""
    torch.manual_seed(0)
    objective = VARIANTS[variant]()
    objective.setup(DIM)
    if variant.startswith(RANDOM):
        objective.register_forward_pre_hook(lambda *_: torch.manual_seed(0) and None)
    return objective.to(dtype)


def pairs(
    batch: int = 5, grid: tuple[int, int] = (2, 3), length: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Images, Texts]:
    """Random pairs with captions of 1 to `length` tokens; all sizes differ, so that no transposition passes."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    lengths = torch.arange(batch) % length + 1
    lengths[0] = length
    mask = torch.arange(length) < lengths[:, None]
    images = Images(random(batch, DIM), random(batch, grid[0] * grid[1], DIM), grid)
    return images, Texts(random(batch, DIM), random(batch, length, DIM), mask)


def gradients(objective: Objective, images: Images, texts: Texts) -> dict[str, torch.Tensor]:
    """The gradient of the summed terms with respect to every input and parameter; zero where unused."""
    leaves = {
        "images.pooled": images.pooled,
        "images.patches": images.patches,
        "texts.pooled": texts.pooled,
        "texts.tokens": texts.tokens,
        **{n: p for n, p in objective.named_parameters() if p.requires_grad},
    }
    loss = torch.stack(list(objective(images, texts).values())).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(leaves.items(), found, strict=True)}
