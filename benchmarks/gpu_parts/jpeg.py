"""Decoding of JPEGs by the GPU (nvJPEG in torchvision) beside decoding in threads of the CPU."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from loader import photograph
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from gpu_parts.rows import Cases, Setup
from patchword.data.pixels import read_image

Decode = Callable[[list[bytes]], list[Tensor]]


def cases(setup: Setup) -> Cases:
    """Pillow and torchvision on the CPU, and torchvision on the GPU."""
    pictures = [photograph(i) for i in range(8 if setup.small else 512)]
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        yield f"Pillow, {threads} threads", partial(speed, lambda files: list(pool.map(by_pillow, files)), pictures)
        yield f"torchvision, {threads} threads", partial(speed, lambda files: list(pool.map(on_cpu, files)), pictures)
        if setup.device == "cuda":
            yield "torchvision, GPU", partial(speed, on_gpu, pictures)


def by_pillow(file: bytes) -> Tensor:
    """Decode as patchword's data modules do."""
    return torch.from_numpy(np.array(read_image(io.BytesIO(file)))).permute(2, 0, 1)


def on_cpu(file: bytes) -> Tensor:
    """Decode with libjpeg-turbo in torchvision."""
    return decode_jpeg(raw(file), ImageReadMode.RGB)


def on_gpu(files: list[bytes]) -> list[Tensor]:
    """Decode in batches of 64 with nvJPEG."""
    batches = [files[i : i + 64] for i in range(0, len(files), 64)]
    found = [x for batch in batches for x in decode_jpeg([raw(f) for f in batch], ImageReadMode.RGB, device="cuda")]
    torch.cuda.synchronize()
    return found


def raw(file: bytes) -> Tensor:
    """The bytes as torchvision expects them."""
    return torch.frombuffer(bytearray(file), dtype=torch.uint8)


def speed(decode: Decode, pictures: list[bytes]) -> dict[str, Any]:
    """The time of all pictures after a warm-up run, and how far the pixels of the first are from Pillow's."""
    (first,) = decode(pictures[:1])
    differs = float((first.cpu().float() - by_pillow(pictures[0]).float()).abs().mean())
    decode(pictures)
    start = time.perf_counter()
    decode(pictures)
    seconds = time.perf_counter() - start
    note = f"mean difference from Pillow {differs:.2f} of 255"
    return {"seconds": seconds, "images_per_second": len(pictures) / seconds, "note": note}
