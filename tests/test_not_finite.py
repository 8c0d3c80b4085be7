"""If the loss is not finite, training stops with a message that names the term and the samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from patchword import Images, Texts
from patchword.errors import TrainingError
from patchword.objectives import SPARC
from patchword.training.non_finite import diagnose
from tests import tiny
from tests.objectives.variants import pairs


def message(images: Images, texts: Texts, **terms: float) -> str:
    ids = torch.tensor([10, 11, 12, 13, 14])
    return diagnose({name: torch.tensor(value) for name, value in terms.items()}, images, texts, ids, 7)


def test_names_the_term_the_step_and_the_batch() -> None:
    """The message names the term of the loss, the step and the batch."""
    found = message(*pairs(), local=float("nan"), **{"global": 2.5})
    assert "not finite at step 7: local = nan, global = 2.5" in found
    assert "All features are finite" in found
    assert found.endswith("Samples of the batch: 10, 11, 12, 13, 14")


@pytest.mark.parametrize("part", ["images.pooled", "images.patches", "texts.pooled", "texts.tokens"])
def test_names_the_samples_whose_features_broke(part: str) -> None:
    """The message names the samples with features that are not finite."""
    sides = dict(zip(("images", "texts"), pairs(), strict=True))
    side, name = part.split(".")
    x = getattr(sides[side], name).detach().clone()
    x[2].flatten()[0] = float("inf")
    x[4].flatten()[0] = float("nan")
    sides[side] = replace(sides[side], **{name: x})
    assert "The features of these samples are not finite: 12, 14." in message(*sides.values(), local=float("inf"))


def test_padding_is_no_fault() -> None:
    """NaN in padding is not reported."""
    images, texts = pairs()
    tokens = texts.tokens.detach().masked_fill(~texts.mask[..., None], float("nan"))
    assert "All features are finite" in message(images, replace(texts, tokens=tokens), local=float("nan"))


def test_all_features_broken_means_the_weights() -> None:
    """If all features are not finite, the message blames the weights."""
    images, texts = pairs()
    found = message(replace(images, pooled=images.pooled * float("nan")), texts, local=float("nan"))
    assert "The features of all samples are not finite: the weights or the learning rate" in found


class Poison(Callback):
    """Break the image adapter before the third step."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.ids = batch.ids.tolist()
        if batch_idx == 2:
            module.encoder.image_adapter.weight.data[0, 0] = float("inf")


def test_training_stops_before_the_step_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    """The broken step does not change the weights, and the last checkpoint is kept."""
    poison = Poison()
    with pytest.raises(TrainingError, match="not finite at step 2") as error:
        tiny.trainer(tmp_path, poison, every_n_steps=1).fit(tiny.module(SPARC()), tiny.data())
    assert str(error.value).endswith("Samples of the batch: " + ", ".join(map(str, poison.ids)))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert all(x.isfinite().all() for x in saved["state_dict"].values())
