"""Which samples were measured: a checksum of each split, so that two runs can be told to have seen the same."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from patchword.data.batch import Batch
from patchword.distributed import gather
from patchword.suites.base import SuiteBatch


class SampleSums:
    """Collects a checksum of every sample of one split, each sample once."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    def update(self, batch: Batch | SuiteBatch) -> None:
        """Add a batch; that of a suite brings its sums along."""
        if isinstance(batch, SuiteBatch):
            self._sums.append(torch.stack([batch.ids, batch.sums], -1).cpu())
        else:
            self._sums.append(sample_sums(batch))

    def compute(self, device: torch.device) -> dict[str, int | str]:
        """Number of `samples`, and their common `checksum`, whatever their order; to be called on all ranks.

        Args:
            device: Where ranks exchange tensors.
        """
        own = torch.cat(self._sums).to(device)
        each = dict(gather(own).tolist())  # ranks repeat samples to have equally many
        return {"samples": len(each), "checksum": f"{sum(each.values()) % 2**32:08x}"}


def sample_sums(batch: Batch) -> Tensor:
    """Ids and checksums [I, 2] of a batch's samples: pixels, captions, phrases with their masks, hard negatives."""
    cpu = batch.to("cpu")
    words = [[str(i).encode(), image.numpy().tobytes()] for i, image in zip(cpu.ids.tolist(), cpu.images, strict=True)]
    for caption, image in zip(cpu.captions, cpu.caption_image.tolist(), strict=True):
        words[image].append(caption.encode())
    for n, caption in enumerate(cpu.phrase_caption.tolist()):
        image = int(cpu.caption_image[caption])
        mask = b"" if cpu.phrase_mask is None else cpu.phrase_mask[n].numpy().tobytes()
        words[image] += [cpu.phrase_span[n].numpy().tobytes(), mask]
    for negative, image in zip(cpu.negatives, cpu.negative_image.tolist(), strict=True):
        words[image].append(negative.encode())
    sums = [
        zlib.crc32(b"\0".join([str(i).encode(), *of_one])) for i, of_one in zip(cpu.ids.tolist(), words, strict=True)
    ]
    return torch.stack([cpu.ids, torch.tensor(sums)], -1)
