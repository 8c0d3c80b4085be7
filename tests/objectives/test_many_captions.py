"""Several captions of an image are all its own where an objective says so, and are refused where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.testing import assert_close
from torch.utils.data import DataLoader

from patchword import Images, Objective, Texts
from patchword.data.batch import Sample, collate
from patchword.errors import InputError
from patchword.objectives import CLIP, FLAIR, SigLIP, Sum
from tests import tiny

K = 3


def features() -> tuple[Images, Texts]:
    """Four images with three texts each."""
    torch.manual_seed(0)
    images = Images(torch.randn(4, 16), torch.randn(4, 6, 16), (2, 3))
    texts = Texts(torch.randn(4 * K, 16), torch.randn(4 * K, 5, 16), torch.ones(4 * K, 5).bool())
    return images, texts


def multi_positive(scores: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """FLAIR's equation for scores [I, K I]: a sum over texts, a mean over images."""
    total = torch.zeros(())
    for i, row in enumerate(scale * scores + bias):
        for j, z in enumerate(row):
            total = total - logsigmoid(z if j // K == i else -z)
    return total / len(scores)


@pytest.mark.parametrize("objective", [SigLIP(bias=-1.0), FLAIR(bias=-1.0)], ids=["SigLIP", "FLAIR"])
def test_losses_equal_the_equation(objective: SigLIP | FLAIR) -> None:
    """Each loss from its own matrix of scores, written as two loops."""
    images, texts = features()
    objective.setup(16)
    k, b = objective.scale(), objective.bias.squeeze()
    found = objective(images, texts)
    whole = multi_positive(SigLIP().score(images, texts), k, b)
    if isinstance(objective, SigLIP):
        assert_close(found["global"], whole)
    else:
        assert_close(found["global"], 0.5 * whole)
        assert_close(found["text_conditioned"], 0.5 * multi_positive(objective.score(images, texts), k, b))


def test_the_order_of_an_images_captions_does_not_matter() -> None:
    images, texts = features()
    objective = FLAIR()
    objective.setup(16)
    mixed = torch.tensor([2, 0, 1, 3, 5, 4, 8, 7, 6, 10, 11, 9])
    assert_close(objective(images, texts[mixed]), objective(images, texts))


def test_a_sum_takes_several_captions_if_all_its_parts_do() -> None:
    assert Sum({"a": SigLIP(), "b": FLAIR()}).many_captions
    assert not Sum({"a": SigLIP(), "b": CLIP()}).many_captions


def samples(captions: tuple[int, ...]) -> DataLoader[Sample]:
    """A batch of images with so many captions each."""
    pixels = torch.randint(256, (len(captions), 3, 64, 64), dtype=torch.uint8)
    made = [
        Sample(i, pixels[i], [f"a red apple {'and a snail ' * j}" for j in range(n)], [[] for _ in range(n)], [])
        for i, n in enumerate(captions)
    ]
    return DataLoader(made, batch_size=len(made), collate_fn=collate)  # type: ignore[arg-type]


def fit(objective: Objective, captions: tuple[int, ...], folder: Path) -> float:
    trainer = tiny.trainer(folder, max_steps=1, limit_val_batches=0)
    trainer.fit(tiny.module(objective), samples(captions), samples((1,)))
    return float(trainer.callback_metrics["train/loss"])


def test_training_takes_as_many_captions_as_the_data_gives(tmp_path: Path) -> None:
    assert fit(SigLIP(), (2, 2, 2), tmp_path) > 0


@pytest.mark.parametrize(
    ("objective", "captions", "message"),
    [
        (CLIP(), (2, 2, 2), "CLIP takes one caption of each image, and the batch has 6 for 3 images"),
        (SigLIP(), (1, 2, 3), "each image of a training batch must have the same number of captions"),
    ],
)
def test_captions_that_would_be_taken_for_negatives_are_refused(
    objective: Objective, captions: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        fit(objective, captions, tmp_path)
