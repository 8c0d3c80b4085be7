"""Hard negatives, regions and long texts with cached features: the same batches and losses as without a cache."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from patchword import Objective
from patchword.cached import CachedFeatures
from patchword.data.batch import Batch
from patchword.data.tables.image_text import ImageText
from patchword.encoders import HFText, TimmImage
from patchword.objectives import CLIP, FGCLIP, LongCLIP, NegCLIP
from tests import tiny
from tests.cached.test_cached import attached, cached, module, train
from tests.data import formats

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Put tables that `datasets` converts into a folder of the test."""
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.mark.parametrize("objective", [NegCLIP, FGCLIP])
def test_training_is_the_same(objective, tmp_path):
    """All losses, the gradients of the heads and the loss of validation equal those without a cache."""
    expected, other = train(tmp_path / "plain", tiny.data(), objective())
    found, made = train(tmp_path / "cached", cached(tmp_path / "features"), objective())
    assert len(found.losses) == 12
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)
    for name, gradient in found.gradients.items():
        largest = expected.gradients[name].abs().max()
        assert (gradient - expected.gradients[name]).abs().max() < 1e-4 * largest, name
    metrics, before = made.trainer.callback_metrics, other.trainer.callback_metrics
    assert metrics["val/loss"] == pytest.approx(before["val/loss"].item(), rel=1e-5)


def test_objectives_share_the_features_of_images(tmp_path, caplog):
    """What an objective needs is added to the features that others have computed, and only texts are computed.

    A second run computes nothing, also in validation. The log compares texts with texts.
    """
    place = tmp_path / "features"

    def run(objective: Objective, *never: type) -> list[str]:
        """Make the loaders while some towers must not run. Returns what the log says about earlier features."""
        data = attached(cached(place), objective=objective)
        caplog.clear()
        with (
            caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"),
            pytest.MonkeyPatch.context() as patch,
        ):
            for tower in never:
                patch.setattr(tower, "forward", lambda *arguments: pytest.fail("a tower runs"))
            batches = [next(iter(loader())) for loader in (data.train_dataloader, data.val_dataloader)]
        assert all(batch.region_words is not None for batch in batches) == isinstance(objective, FGCLIP)
        return [r.getMessage() for r in caplog.records if "cannot be used" in r.getMessage()]

    assert run(CLIP()) == []
    images = {*place.rglob("*.safetensors")}
    assert run(NegCLIP(), TimmImage) == []
    changed = "cannot be used because these parts have changed: texts"
    assert run(FGCLIP(), TimmImage) == [f"the features in {place / 'texts'} {changed}"]
    texts = {*place.rglob("*.safetensors")} - images
    assert len(texts) == 3  # of training for both, and of validation for FGCLIP
    for objective in (CLIP(), NegCLIP(), FGCLIP()):
        assert run(objective, TimmImage, HFText) == []
    assert {*place.rglob("*.safetensors")} == images | texts


CAPTIONS = ["a red fish swims .", "the large green fish sleeps", "there is a blue fish next to a rock ."]


def write(folder: Path, broken: bool = False) -> dict[str, str]:
    """Write nine images with three captions, their phrases with boxes, and a hard negative.

    They are one row per image, and one row per caption, which has its own hard negative.
    """
    images, captions = [], []
    for n in range(9):
        (folder / f"{n}.jpg").write_bytes(b"broken" if broken and n == 4 else formats.jpeg(n, (80, 64)))
        texts = [f"picture {n} : {caption}" for caption in CAPTIONS]
        phrases = [
            {"caption": i, "start": text.index("fish"), "end": text.index("fish") + 4, "box": [4 * i, n, 40 + n, 60]}
            for i, text in enumerate(texts)
        ] + [{"caption": 2, "start": texts[2].index("rock"), "end": texts[2].index("rock") + 4}]
        images.append({"image": f"{n}.jpg", "caption": texts, "phrases": phrases, "wrong": f"a rock eats fish {n}"})
        for i, text in enumerate(texts):
            own = [{**phrase, "caption": 0} for phrase in phrases if phrase["caption"] == i]
            captions.append(
                {"image": f"{n}.jpg", "caption": text, "phrases": own, "wrong": [f"wrong {n} {i}"] * (i % 3)}
            )
    for name, rows in (("images", images), ("captions", captions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(folder / f"{name}.jsonl") for name in ("images", "captions")}


def loader(path: str, objective: Objective, folder: Path | None = None, **options: Any) -> Any:
    """The training loader, with features in `folder` if it is given."""
    framing = {"resize_mode": "crop", "image_size": 64, "phrases": "data", "negatives": "wrong", "batch_size": 2}
    cache = None if folder is None else CachedFeatures(str(folder), "float32")
    data = ImageText("json", path, **framing | options, features=cache)
    data.setup("fit")
    if folder is not None:
        attached(data, objective=objective).trainer.training = True
    return data.train_dataloader()


def content(batch: Batch) -> dict[str, Any]:
    """What a training batch has besides its images."""
    tensors = ("ids", "caption_image", "phrase_caption", "phrase_span", "phrase_box", "negative_caption")
    named = {name: getattr(batch, name).tolist() for name in tensors}
    return named | {"captions": batch.captions, "negatives": batch.negatives}


def epochs(made: Any, resume: bool = False) -> list[list[dict[str, Any]]]:
    """The contents of the batches of two epochs, or what is left of them after the second batch of the first epoch."""
    found = []
    if resume:
        made.load_state_dict(made.state_dict() | {"batches": 2})
    for epoch in range(2):
        made.sampler.set_epoch(epoch)
        found.append([content(batch) for batch in made])
    return found


CHOICES = [
    {"captions": "sample"},
    {"captions": "sample", "join": "prefixes"},
    {"captions": "all", "captions_per_image": 2, "join": "all"},
    {"captions": "all", "join": "all", "sentences": True},
]


@pytest.mark.filterwarnings("ignore:skipped a broken sample")
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("rows", ["images", "captions"])
def test_the_same_texts_as_without_a_cache(tmp_path, rows, broken):
    """All batches are equal: captions, phrases, boxes and hard negatives, in each epoch and after resuming."""
    path, objective = write(tmp_path, broken)[rows], FGCLIP()
    for choice in CHOICES:
        expected = epochs(loader(path, objective, **choice))
        assert expected[0] != expected[1]
        assert any(batch["negatives"] for batch in expected[0])
        assert any(any(map(any, batch["phrase_box"])) for batch in expected[0])
        assert epochs(loader(path, objective, tmp_path / "features", **choice)) == expected
        rest = epochs(loader(path, objective, tmp_path / "features", **choice), resume=True)
        assert rest == [expected[0][2:], expected[1]]


@pytest.mark.parametrize("choice", CHOICES)
def test_losses_on_a_table(tmp_path, choice):
    """The terms of the losses equal those without a cache, for each choice of texts."""
    path, torch_seed = write(tmp_path)["images"], 0
    for objective in (FGCLIP(), LongCLIP(components=1)):
        torch.manual_seed(torch_seed)
        made = module(objective=objective)
        options = {"batch_size": 3, **choice}
        pairs = zip(
            loader(path, objective, tmp_path / "features", **options), loader(path, objective, **options), strict=True
        )
        for kept, plain in pairs:
            assert not kept.images.numel()
            terms, expected = (
                {name: term.item() for name, term in made.losses(*made.supply(images, texts, tokens, batch)).items()}
                for batch in (kept, plain)
                for images, texts, tokens in [made(batch)]
            )
            assert terms == pytest.approx(expected, rel=1e-5)


def test_texts_are_encoded_once(tmp_path, monkeypatch):
    """A phrase that a batch has several times passes through the tower once, and captions are not encoded again.

    What the objective does not need is not encoded.
    """
    path, seen = write(tmp_path)["images"], []
    run = HFText.forward
    monkeypatch.setattr(HFText, "forward", lambda self, x: (seen.extend(x.captions), run(self, x))[1])

    def encoded(objective: Objective, **options: Any) -> list[str]:
        seen.clear()
        loader(path, objective, tmp_path / "features", batch_size=9, **options)
        return sorted(text for text in seen if text != "a")  # "a" is a text of `HFText` itself

    captions = sorted(f"picture {n} : {caption}" for n in range(9) for caption in CAPTIONS)
    negatives = sorted(f"a rock eats fish {n}" for n in range(9))
    assert encoded(CLIP()) == captions
    assert encoded(NegCLIP()) == negatives
    assert encoded(FGCLIP(negative_weight=0.0)) == ["fish"]
    assert encoded(FGCLIP()) == sorted([*negatives, "fish"])
    long = [" ".join(captions[3 * n : 3 * n + 3]) for n in range(9)]
    assert len(encoded(CLIP(), join="all")) == len(long) + len(captions)
