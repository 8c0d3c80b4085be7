"""A model and data small enough to train in a test."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from patchword import AlignmentModule, Objective
from patchword.callbacks.checkpoint import Checkpoint
from patchword.data.scenes.datamodule import Scenes
from patchword.encoders import HFText, TimmImage, TwoTowers
from patchword.training.lr_schedule import Schedule


def module(objective: Objective, dropout: float = 0.1, **arguments: Any) -> AlignmentModule:
    """Return an untrained module, with the same weights at every call."""
    seed_everything(0)
    image = TimmImage("mobilenetv4_conv_small_050", level=2, image_size=64)
    text = HFText(
        config={"model_type": "t5", "num_layers": 0, "d_model": 16, "dropout_rate": dropout}, tokenizer="emoji-scenes"
    )
    optimizer = functools.partial(torch.optim.AdamW, lr=3e-3)
    arguments = {"token_selection": "content", "schedule": Schedule(warmup_steps=5)} | arguments
    return AlignmentModule(TwoTowers(image, text, embed_dim=16), objective, optimizer=optimizer, **arguments)


def exact_module(objective: Objective, dropout: float = 0.0, **arguments: Any) -> AlignmentModule:
    """Return an untrained module of transformers, whose features do not depend on the rest of the batch."""
    seed_everything(0)
    sizes = {"depth": 2, "embed_dim": 16, "num_heads": 2}
    image = TimmImage("vit_tiny_patch16_224", image_size=64, model_args={**sizes, "proj_drop_rate": dropout})
    config = {"model_type": "t5", "num_layers": 1, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2}
    text = HFText(config=config | {"dropout_rate": dropout}, tokenizer="emoji-scenes")
    optimizer = functools.partial(torch.optim.AdamW, lr=3e-3)
    arguments = {"token_selection": "content", "schedule": Schedule(warmup_steps=5)} | arguments
    return AlignmentModule(TwoTowers(image, text, embed_dim=16), objective, optimizer=optimizer, **arguments)


def data(num_workers: int = 0, **arguments: Any) -> Scenes:
    """Return scenes for six training steps per epoch."""
    sizes = {"batch_size": 16, "train_size": 96, "val_size": 24, "test_size": 24} | arguments
    return Scenes(num_workers=num_workers, **sizes)


def trainer(folder: Path, *callbacks: Callback, every_n_steps: int = 4, **arguments: Any) -> Trainer:
    """Return a quiet trainer for two epochs, which saves checkpoints in `folder`."""
    arguments = {"max_epochs": 2, "logger": CSVLogger(folder, name="logs")} | arguments
    return Trainer(
        accelerator="cpu",
        callbacks=[
            Checkpoint(dirpath=folder, save_last=True, save_top_k=0, every_n_train_steps=every_n_steps),
            *callbacks,
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **arguments,
    )
