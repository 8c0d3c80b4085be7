"""What is compared: the loss and the gradients of one batch, by one process and in every other mode of training.

One process, everything at once, in float64, is the reference. Modes that may differ from it by rounding alone run in
float64, too, so that nothing hides behind rounding; `fp32` and `bf16` show how much that is in practice. The towers
are small transformers, so that gradients run through what users train: attention, adapters, heads and temperatures.
Ranks hold captions of different lengths.
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
from patchword.data.batch import Batch, collate
from patchword.data.scenes import EmojiScenes
from patchword.distributed import Exchange
from patchword.encoders import HFText, TimmImage, TwoTowers
from patchword.module import AlignmentModule
from patchword.named import OURS, build
from patchword.sharding import shard
from patchword.unused import freeze_unused

DIM = 16
ROUNDING = 1e-7  # what is right in float64: DDP multiplies gradients by a 1/N that is rounded to float32


@dataclass(frozen=True)
class Mode:
    """A way to compute the same thing.

    Attributes:
        name: What its column says.
        tolerance: The largest relative difference from the reference that is right; None where it is only shown.
        exchange: As of `AlignmentModule`.
        chunked: Whether the towers see a part of the batch at a time.
        sharded: Whether FSDP2 splits the parameters over the ranks; else DDP repeats them.
        dtype: Of the weights.
        autocast: Whether the towers compute in bfloat16.
    """

    name: str
    tolerance: float | None = ROUNDING
    exchange: Exchange = "gather"
    chunked: bool = False
    sharded: bool = False
    dtype: torch.dtype = torch.float64
    autocast: bool = False


@dataclass(frozen=True)
class Difference:
    """How far a mode is from the reference.

    Attributes:
        objective: Its name.
        mode: The mode's name.
        ranks: The number of processes.
        loss: Relative difference of the loss.
        gradient: The largest relative difference of a parameter's gradient, in Euclidean norms. Gradients whose norm is
            below a millionth of that of all together are compared with this instead: they are zero but for rounding.
        parameter: The parameter that it is the gradient of.
        right: Whether both are within the mode's tolerance, and finite.
    """

    objective: str
    mode: str
    ranks: int
    loss: float
    gradient: float
    parameter: str
    right: bool


def modes(ranks: int) -> list[Mode]:
    """The modes that so many processes have."""
    if ranks == 1:
        return [
            Mode("two-pass", chunked=True),
            Mode("fp32", tolerance=None, dtype=torch.float32),
            Mode("bf16", tolerance=None, dtype=torch.float32, autocast=True),
        ]
    return [Mode("gather"), Mode("ring", exchange="ring"), Mode("two-pass", chunked=True), Mode("FSDP2", sharded=True)]


def differences(names: list[str], ranks: int, batch_size: int, device: str) -> Iterator[Difference]:
    """Every objective in every mode; all ranks call it and get the same.

    Args:
        names: Of our objectives, or where others are imported from.
        ranks: The number of processes.
        batch_size: Pairs of each.
        device: Where this process computes.
    """
    whole = scenes(ranks * batch_size)
    own = slice(distributed.rank() * batch_size, (distributed.rank() + 1) * batch_size)
    part = collate(whole[own])
    for name in names:
        with distributed.alone():
            expected = _compute(name, Mode("reference"), collate(whole), device)
        for mode in modes(ranks):
            found = _compute(name, mode, part, device, chunk_size=batch_size // 2 + 1 if mode.chunked else None)
            yield _difference(name, mode, ranks, found, expected)


def scenes(size: int) -> list[Any]:
    """Scenes of 32 pixels, those with short captions first."""
    drawn = EmojiScenes("train", size, image_size=32)
    return sorted((drawn[i] for i in range(size)), key=lambda scene: len(scene.captions[0].split()))


class _Loss(nn.Module):
    """A module whose forward pass is the loss, as distributed training wants it."""

    def __init__(self, module: AlignmentModule, autocast: bool) -> None:
        super().__init__()
        self.module = module
        self.autocast = autocast

    def forward(self, batch: Batch) -> Tensor:
        device = batch.images.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.autocast):
            images, texts, _ = self.module(batch)
            return torch.stack(list(self.module.losses(images, texts).values())).sum()


def _compute(name: str, mode: Mode, batch: Batch, device: str, chunk_size: int | None = None) -> dict[str, Tensor]:
    """The loss, averaged over ranks, and the gradient of every parameter."""
    torch.manual_seed(0)
    sizes = {"patch_size": 8, "depth": 2, "embed_dim": DIM, "num_heads": 2}
    image = TimmImage("vit_tiny_patch16_224", image_size=32, model_args=sizes)
    config = {"model_type": "t5", "num_layers": 1, "d_model": DIM, "d_kv": 8, "d_ff": 32, "num_heads": 2}
    text = HFText(config=config | {"dropout_rate": 0.0}, tokenizer="emoji-scenes")
    encoder, objective = TwoTowers(image, text, embed_dim=DIM), build(OURS.get(name, name))
    module = AlignmentModule(encoder, objective, chunk_size=chunk_size, exchange=mode.exchange)
    freeze_unused(module)
    module.to(device, mode.dtype).train()
    loss: nn.Module = _Loss(module, mode.autocast)
    if mode.sharded:
        warnings.filterwarnings("ignore", ".*returned a view tensor.*")  # a danger that the comparison would show
        shard(encoder, objective, init_device_mesh(device.partition(":")[0], (distributed.world_size(),)))
    elif distributed.world_size() > 1:
        loss = DistributedDataParallel(loss)
    torch.manual_seed(0)  # the same random numbers on all ranks, and in all modes
    value = loss(batch.to(device))
    value.backward()
    gradients = {n: _whole(p.grad.detach()) for n, p in module.named_parameters() if p.grad is not None}
    return {"loss": distributed.mean(value)} | gradients


def _whole(gradient: Tensor) -> Tensor:
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def _difference(name: str, mode: Mode, ranks: int, found: dict[str, Tensor], expected: dict[str, Tensor]) -> Difference:
    norms = {n: x.norm() for n, x in expected.items() if n != "loss"}
    least = 1e-6 * torch.stack(list(norms.values())).norm()
    by_parameter = {
        n: float((found[n].double() - expected[n]).norm() / norm.clamp_min(least)) if n in found else float("inf")
        for n, norm in norms.items()
    }
    parameter = max(by_parameter, key=lambda n: (by_parameter[n] != by_parameter[n], by_parameter[n]))
    loss = float((found["loss"].double() - expected["loss"]).abs() / expected["loss"].abs())
    # Ranks may differ, if a mode is broken: the worst counts.
    worst = distributed.maximum(torch.tensor([loss, by_parameter[parameter]], device=expected["loss"].device))
    loss, gradient = worst.tolist()
    right = bool(worst.isfinite().all()) and (mode.tolerance is None or max(loss, gradient) <= mode.tolerance)
    return Difference(name, mode.name, ranks, loss, gradient, parameter, right)
