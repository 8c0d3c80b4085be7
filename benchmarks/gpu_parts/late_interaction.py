"""Late interaction of all pairs: FILIP's loss, forward and backward, which keeps only the positions of its maxima.

Its plain formula stores the similarities of all tokens of all pairs, [B, B, P, L].
"""

from __future__ import annotations

from functools import partial

import torch

from gpu_parts.costs import costs
from gpu_parts.rows import Cases, Setup
from patchword.bench.candidates import Implementation, Setting


def cases(setup: Setup) -> Cases:
    """Both formulas, for growing batches."""
    for batch in (4,) if setup.small else (128, 512, 1024, 4096):
        sizes = (9, 5, 8) if setup.small else (196, 32, 256)
        setting = Setting("train", batch, batch, *sizes, "bfloat16", setup.device, torch.get_num_threads())
        for by in ("patchword", "plain"):
            yield f"{by}, B={batch}", partial(costs, Implementation("FILIP", by), setting)
