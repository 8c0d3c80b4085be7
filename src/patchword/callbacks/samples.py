"""Checksums of the measured samples, which show whether two runs measured the same samples."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from patchword.data.batch import Batch
from patchword.distributed import gather
from patchword.suites.base import SuiteBatch


class SampleSums:
    """Collects the checksums of the samples of one split; repeated samples count once."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    def update(self, batch: Batch | SuiteBatch) -> None:
        """Add a batch; a suite's batch already contains its checksums."""
        if isinstance(batch, SuiteBatch):
            self._sums.append(torch.stack([batch.ids, batch.sums], -1).cpu())
        else:
            self._sums.append(sample_sums(batch))

    def compute(self, device: torch.device) -> dict[str, int | str]:
        """The number of `samples` and their common `checksum`, in any order; must be called on all ranks.

        Ranks exchange tensors on `device`.
        """
        own = torch.cat(self._sums).to(device)
        each = dict(gather(own).tolist())  # ranks repeat samples so that all have the same number
        return {"samples": len(each), "checksum": f"{sum(each.values()) % 2**32:08x}"}


def sample_sums(batch: Batch) -> Tensor:
    """Ids and checksums [I, 2] of the samples: of pixels, captions, phrases with their masks, and hard negatives."""
    cpu = batch.to("cpu")
    ids = [str(i).encode() for i in cpu.ids.tolist()]
    # Checksums of earlier results contain each id twice.
    words = [[i, i, image.numpy().tobytes()] for i, image in zip(ids, cpu.images, strict=True)]
    for caption, image in zip(cpu.captions, cpu.caption_image.tolist(), strict=True):
        words[image].append(caption.encode())
    for n, caption in enumerate(cpu.phrase_caption.tolist()):
        image = int(cpu.caption_image[caption])
        mask = b"" if cpu.phrase_mask is None else cpu.phrase_mask[n].numpy().tobytes()
        words[image] += [cpu.phrase_span[n].numpy().tobytes(), mask]
    for negative, image in zip(cpu.negatives, cpu.negative_image.tolist(), strict=True):
        words[image].append(negative.encode())
    return torch.stack([cpu.ids, torch.tensor([zlib.crc32(b"\0".join(of_one)) for of_one in words])], -1)
