"""Shapes in signatures are checked at run time in tests, and only there."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook("patchword", "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
