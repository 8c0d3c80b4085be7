"""Orders of the samples in a training epoch."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor


def by_shard(starts: Int64[Tensor, " S"], mix: int, generator: torch.Generator) -> Int64[Tensor, " N"]:
    """Order all N samples: those of `mix` random shards shuffled together, then those of the next `mix`, and so on.

    So a process reads from few files at a time.

    Args:
        starts: The number of samples in all shards before each shard; the last entry is N. Shape [S].
        mix: Number of shards whose samples are shuffled together.
        generator: The source of random numbers.
    """
    first = starts.tolist()
    shards = torch.randperm(len(first) - 1, generator=generator)
    pools = [torch.cat([torch.arange(first[i], first[i + 1]) for i in pool]) for pool in shards.split(mix)]
    return torch.cat([pool[torch.randperm(len(pool), generator=generator)] for pool in pools])


def apart(images: Int64[Tensor, " N"], batch: int, generator: torch.Generator) -> Int64[Tensor, " N"]:
    """Order all N samples so that no batch contains two samples of the same image.

    Samples are sorted by image, with the images in random order, and split into segments of one sample per batch. Every
    batch gets one random sample of each segment. Samples that do not fill a batch are drawn first and come last. If an
    image has more samples than there are batches, some batches must contain it twice.

    Args:
        images: The image of each sample, as numbers from 0. Shape [N].
        batch: Number of samples in a batch over all devices.
        generator: The source of random numbers.
    """
    samples = torch.randperm(len(images), generator=generator)
    batches = len(samples) // batch
    if batches == 0:
        return samples
    dealt, rest = samples[: batches * batch], samples[batches * batch :]
    turn = torch.randperm(int(images.max()) + 1, generator=generator)
    stretches = dealt[turn[images[dealt]].argsort(stable=True)].view(batch, batches)
    to = torch.rand(batch, batches, generator=generator).argsort(1)
    shown = images[stretches]
    cut = (shown[1:, 0] == shown[:-1, -1]).nonzero().flatten().tolist()  # the image's samples span two segments
    for i in cut:
        taken = torch.zeros(batches, dtype=torch.bool)
        taken[to[i][shown[i] == shown[i, -1]]] = True
        of_next = taken[to[i + 1]]
        to[i + 1] = torch.cat([to[i + 1][~of_next], to[i + 1][of_next]])  # they go to other batches
    ordered = torch.empty_like(stretches).scatter_(1, to, stretches)
    return torch.cat([ordered.T.flatten(), rest])
