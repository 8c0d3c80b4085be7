"""The comparison of the loss and gradients of one batch in every mode of training with one process.

The reference is one process that computes everything at once in float64. The modes that must equal it up to rounding
also run in float64, so that rounding does not hide errors; `fp32` and `bf16` show the size of rounding errors in
practice. The towers are small transformers, so that gradients flow through the parts that users train: attention,
adapters, heads and temperatures. The ranks have captions of different lengths.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from patchword import distributed
from patchword.commands.objective_names import build
from patchword.data.augmentation import Views
from patchword.data.batch import Batch, collate
from patchword.data.scenes import EmojiScenes
from patchword.data.scenes.views import WithViews
from patchword.distributed import Exchange
from patchword.encoders import HFText, TimmImage, TwoTowers
from patchword.module import AlignmentModule
from patchword.training.fsdp import shard
from patchword.training.unused_parameters import freeze_unused

DIM = 16
ROUNDING = 1e-7  # tolerance in float64: DDP multiplies gradients by a 1/N that is rounded to float32


@dataclass(frozen=True)
class Mode:
    """A mode of training, which computes the same loss and gradients in a different way.

    Attributes:
        tolerance: The largest accepted relative difference from the reference; None if any difference is accepted.
        exchange: The `text_exchange` of `AlignmentModule`.
        chunked: Whether the towers process the batch in chunks (two-pass mode).
        sharded: Whether FSDP2 shards the parameters over the ranks; otherwise DDP replicates them.
        dtype: The type of the weights.
        autocast: Whether the towers compute in bfloat16.
    """

    name: str
    tolerance: float | None = ROUNDING
    exchange: Exchange = "all_gather"
    chunked: bool = False
    sharded: bool = False
    dtype: torch.dtype = torch.float64
    autocast: bool = False


@dataclass(frozen=True)
class Difference:
    """The difference of a mode from the reference.

    Attributes:
        loss: The relative difference of the loss.
        gradient: The largest relative difference of a parameter's gradient, in Euclidean norms. It is relative to the
            norm of this gradient, but at least to a millionth of the norm of all gradients together, because smaller
            gradients are zero except for rounding.
        parameter: The parameter with the largest difference.
        right: Whether both differences are finite and within the mode's tolerance.
    """

    objective: str
    mode: str
    ranks: int
    loss: float
    gradient: float
    parameter: str
    right: bool


def modes(ranks: int) -> list[Mode]:
    """Return the modes for this number of processes."""
    if ranks == 1:
        return [
            Mode("two-pass", chunked=True),
            Mode("fp32", tolerance=None, dtype=torch.float32),
            Mode("bf16", tolerance=None, dtype=torch.float32, autocast=True),
        ]
    return [
        Mode("all_gather"),
        Mode("ring", exchange="ring"),
        Mode("two-pass", chunked=True),
        Mode("FSDP2", sharded=True),
    ]


def differences(names: list[str], ranks: int, batch_size: int, device: str) -> Iterator[Difference]:
    """Yield the difference of every objective in every mode, with `batch_size` pairs per process.

    All ranks must call this and get the same results.
    """
    samples = scenes(ranks * batch_size)
    for name in names:
        expected = reference(name, samples, device)
        for mode in modes(ranks):
            yield compare(name, mode, samples, device, expected)


def reference(name: str, samples: list[Any], device: str) -> dict[str, Tensor]:
    """Return the loss and all gradients of all samples, computed by this process at once, in float64."""
    with distributed.alone():
        return _compute(name, Mode("reference"), collate(samples), device)


def compare(name: str, mode: Mode, samples: list[Any], device: str, expected: dict[str, Tensor]) -> Difference:
    """Return the difference of a mode from a `reference`, which can be from another device.

    All ranks must call this with the same samples, which are split evenly, and get the same result.
    """
    size = len(samples) // distributed.world_size()
    own = collate(samples[distributed.rank() * size : (distributed.rank() + 1) * size])
    found = _compute(name, mode, own, device, chunk_size=size // 2 + 1 if mode.chunked else None)
    return _difference(name, mode, found, {n: x.to(device) for n, x in expected.items()})


def scenes(size: int) -> list[Any]:
    """Return scenes of 32 x 32 pixels with a large and a small crop, sorted by the length of their captions."""
    drawn = WithViews(EmojiScenes("train", size, image_size=32), Views(local_crops=1, distort=False), seed=0)
    return sorted((drawn[i] for i in range(size)), key=lambda scene: len(scene.captions[0].split()))


class _Loss(nn.Module):
    """A module whose forward pass returns the loss, as DDP requires."""

    def __init__(self, module: AlignmentModule, autocast: bool) -> None:
        super().__init__()
        self.module = module
        self.autocast = autocast

    def forward(self, batch: Batch) -> Tensor:
        device = batch.images.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.autocast):
            images, texts, tokens = self.module(batch)
            images, texts = self.module.supply(images, texts, tokens, batch)
            return torch.stack(list(self.module.losses(images, texts).values())).sum()


def _compute(name: str, mode: Mode, batch: Batch, device: str, chunk_size: int | None = None) -> dict[str, Tensor]:
    """Return the loss, averaged over ranks, and the gradient of every parameter."""
    torch.manual_seed(0)
    sizes = {"patch_size": 8, "depth": 2, "embed_dim": DIM, "num_heads": 2}
    image = TimmImage("vit_tiny_patch16_224", image_size=32, model_args=sizes)
    config = {"model_type": "t5", "num_layers": 1, "d_model": DIM, "d_kv": 8, "d_ff": 32, "num_heads": 2}
    text = HFText(config=config | {"dropout_rate": 0.0}, tokenizer="emoji-scenes")
    encoder, objective = TwoTowers(image, text, embed_dim=DIM), build(name)
    module = AlignmentModule(encoder, objective, chunk_size=chunk_size, text_exchange=mode.exchange)
    freeze_unused(module)
    module.to(device, mode.dtype).train()
    loss: nn.Module = _Loss(module, mode.autocast)
    if mode.sharded:
        warnings.filterwarnings("ignore", ".*returned a view tensor.*")  # The comparison would reveal an error.
        teacher = None if module.teacher is None else module.teacher.module
        shard(encoder, objective, init_device_mesh(device.partition(":")[0], (distributed.world_size(),)), teacher)
    elif distributed.world_size() > 1:
        loss = DistributedDataParallel(loss)
    torch.manual_seed(0)  # the same random numbers on all ranks and in all modes
    value = loss(batch.to(device))
    value.backward()
    gradients = {n: _whole(p.grad.detach()) for n, p in module.named_parameters() if p.grad is not None}
    return {"loss": distributed.mean(value)} | gradients


def _whole(gradient: Tensor) -> Tensor:
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def _difference(name: str, mode: Mode, found: dict[str, Tensor], expected: dict[str, Tensor]) -> Difference:
    norms = {n: x.norm() for n, x in expected.items() if n != "loss"}
    least = 1e-6 * torch.stack(list(norms.values())).norm()
    by_parameter = {
        n: float((found[n].double() - expected[n]).norm() / norm.clamp_min(least)) if n in found else float("inf")
        for n, norm in norms.items()
    }
    parameter = max(by_parameter, key=lambda n: (by_parameter[n] != by_parameter[n], by_parameter[n]))
    loss = float((found["loss"].double() - expected["loss"]).abs() / expected["loss"].abs())
    # The ranks can differ if a mode is broken; the largest difference counts.
    worst = distributed.maximum(torch.tensor([loss, by_parameter[parameter]], device=expected["loss"].device))
    loss, gradient = worst.tolist()
    right = bool(worst.isfinite().all()) and (mode.tolerance is None or max(loss, gradient) <= mode.tolerance)
    return Difference(name, mode.name, distributed.world_size(), loss, gradient, parameter, right)
