"""The objectives and their options that the contract tests use."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

import patchword.objectives
from patchword import Images, Objective, Texts
from patchword.features import Masked
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
STOPPED = ("SPARC-detach_weights=True", "MGCA", "LOUPE", "SmartCLIP")

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


DIM = 8
VOCABULARY = 11


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


def pairs(
    batch: int = 5, grid: tuple[int, int] = (2, 3), length: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Images, Texts]:
    """Random pairs with captions of 1 to `length` tokens, and everything that an objective can need.


    All sizes differ, so that transposed axes raise errors.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    lengths = torch.arange(batch) % length + 1
    lengths[0] = length
    mask = torch.arange(length) < lengths[:, None]
    images = Images(random(batch, DIM), random(batch, grid[0] * grid[1], DIM), grid)
    texts = Texts(random(batch, DIM), random(batch, length, DIM), mask)
    ids = torch.randint(VOCABULARY, mask.shape, generator=generator).masked_fill(~mask, -1)
    # The second image has one hard negative and one region, all others have two.
    number = torch.full((batch, 1), 2).index_fill(0, torch.tensor([1 % batch]), 1)
    here = (torch.arange(2) < number)[..., None]
    shares = torch.rand(batch, 2, grid[0] * grid[1], generator=generator).to(dtype)
    images = replace(
        images,
        negatives=(random(batch, 2, DIM) * here).detach().requires_grad_(),
        regions=shares / shares.sum(-1, keepdim=True) * here,
        region_texts=(random(batch, 2, DIM) * here).detach().requires_grad_(),
        masked=again(images.patches.detach()),
        views=random(batch, 3, DIM),
        teacher=random(batch, 2, DIM).detach(),
    )
    teacher = random(batch, DIM).detach()
    return images, replace(texts, ids=ids, masked=again(texts.tokens.detach()), teacher=teacher)


def again(parts: torch.Tensor) -> Masked:
    """Encodes inputs again as a nonlinear function of the sum of the patches or tokens that stay."""

    def encode(at: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        length = min(parts.shape[1], keep.shape[1])
        return (parts[at, :length] * keep[:, :length, None]).sum(1).tanh() + parts[at, 0]

    return Masked(torch.arange(len(parts)), encode)


SHAPES = ((3, 4), (1, 4), (3, 2), (2, 3), (3, 4))  # of the images of `padded`


def padded(images: Images, grid: tuple[int, int], value: float = float("nan")) -> Images:
    """Images of `SHAPES`: the top left parts of `images`, on a larger grid whose other patches hold `value`."""
    mask = torch.zeros(len(images), *grid, dtype=torch.bool)
    for image, (rows, columns) in enumerate(SHAPES[: len(images)]):
        mask[image, :rows, :columns] = True

    def on_grid(x: torch.Tensor, value: float) -> torch.Tensor:
        rows, columns = images.grid
        found = torch.full((*grid, *x.shape[1:]), value, dtype=x.dtype)
        found[:rows, :columns] = x.unflatten(0, images.grid)
        return found.flatten(0, 1)

    patches = torch.stack([on_grid(x, value) for x in images.patches.detach()])
    patches = patches.masked_fill(~mask.flatten(1)[..., None], value).requires_grad_()
    shares = torch.stack([on_grid(x.T, 0.0).T for x in images.regions])
    shares = shares.masked_fill(~mask.flatten(1)[:, None], 0.0)
    shares = shares / shares.sum(-1, keepdim=True).clamp_min(1e-9)
    return replace(images, patches=patches, grid=grid, mask=mask.flatten(1), regions=shares)


def alone(images: Images, index: int) -> Images:
    """One of the images of `padded`, without padding."""
    image, (rows, columns) = images[index : index + 1], SHAPES[index]
    own = torch.zeros(images.grid, dtype=torch.bool)
    own[:rows, :columns] = True
    patches, shares = image.patches[:, own.flatten()], image.regions[..., own.flatten()]
    return replace(image, patches=patches, grid=(rows, columns), mask=None, regions=shares)


def gradients(objective: Objective, images: Images, texts: Texts) -> dict[str, torch.Tensor]:
    """The gradient of the summed terms with respect to every input and parameter; zero for unused ones."""
    leaves = {
        "images.pooled": images.pooled,
        "images.patches": images.patches,
        "texts.pooled": texts.pooled,
        "texts.tokens": texts.tokens,
        **{f"images.{n}": x for n in ("negatives", "region_texts", "views") if (x := getattr(images, n)) is not None},
        **{n: p for n, p in objective.named_parameters() if p.requires_grad},
    }
    loss = torch.stack(list(objective(images, texts).values())).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(leaves.items(), found, strict=True)}
