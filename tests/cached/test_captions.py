"""Several captions of an image: all are computed once, and training draws the same ones as without a cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from patchword.cached import CachedFeatures
from patchword.data.batch import Batch
from patchword.data.tables.image_text import ImageText
from patchword.encoders import HFText, TimmImage
from patchword.objectives import FLAIR, SPARC, SigLIP
from tests.cached.test_cached import attached, module
from tests.data import formats

COLORS = "red green blue"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Put tables that `datasets` converts into a folder of the test."""
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def write(folder: Path, broken: bool = False) -> dict[str, str]:
    """Write nine images with three captions each: one row per image, and one row per caption."""
    rows = []
    for n in range(9):
        (folder / f"{n}.jpg").write_bytes(b"broken" if broken and n == 4 else formats.jpeg(n, (64, 64)))
        captions = [f"picture {n} shows {'a large ' * i}{color} fish" for i, color in enumerate(COLORS.split())]
        rows.append({"image": f"{n}.jpg", "caption": ["", ""] if broken and n == 7 else captions})
    captioned = [{"image": row["image"], "caption": one} for row in rows for one in row["caption"]]
    for name, of in (("images", rows), ("captions", captioned)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of))
    return {name: str(folder / f"{name}.jsonl") for name in ("images", "captions")}


def loader(path: str, folder: Path | None = None, **options: Any) -> Any:
    """The training loader, with features in `folder` if it is given."""
    framing = {"resize_mode": "crop", "image_size": 64, "phrases": "words", "batch_size": 2}
    cache = None if folder is None else CachedFeatures(str(folder), "float32", options.get("num_workers", 0))
    data = ImageText("json", path, **framing | options, features=cache)
    data.setup("fit")
    if folder is not None:
        attached(data).trainer.training = True
    return data.train_dataloader()


def content(batch: Batch) -> dict[str, Any]:
    """The ids, captions and phrases of a batch."""
    names = ("ids", "captions", "caption_image", "phrase_caption", "phrase_span")
    return {name: value if name == "captions" else value.tolist() for name in names for value in [getattr(batch, name)]}


def epochs(made: Any, resume: bool = False) -> list[list[dict[str, Any]]]:
    """The contents of the batches of two epochs, or what is left of them after the second batch of the first epoch."""
    found = []
    if resume:
        made.load_state_dict(made.state_dict() | {"batches": 2})
    for epoch in range(2):
        made.sampler.set_epoch(epoch)
        found.append([content(batch) for batch in made])
    return found


CHOICES = [{"captions": "first"}, {"captions": "sample"}, {"captions": "all", "captions_per_image": 2}]


@pytest.mark.filterwarnings("ignore:skipped a broken sample")
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("rows", ["images", "captions"])
def test_the_same_captions_as_without_a_cache(tmp_path, rows, broken, monkeypatch):
    """All batches are equal, for each choice of captions, seed and epoch, after resuming, and with broken samples.

    Each image and each caption passes through the towers once, and all runs share the features.
    """
    path = write(tmp_path, broken)[rows]
    seen: dict[str, list[int]] = {"images": [], "captions": []}
    run_image, run_text = TimmImage.forward, HFText.forward
    monkeypatch.setattr(TimmImage, "forward", lambda self, x: (seen["images"].append(len(x)), run_image(self, x))[1])
    monkeypatch.setattr(HFText, "forward", lambda self, x: (seen["captions"].extend(x.captions), run_text(self, x))[1])
    for choice in CHOICES:
        for seed in (0, 1):
            options = choice | {"seed": seed}
            expected = epochs(loader(path, **options))
            assert expected[0] != expected[1]
            assert epochs(loader(path, tmp_path / "features", **options)) == expected
            rest = epochs(loader(path, tmp_path / "features", **options), resume=True)
            assert rest == [expected[0][2:], expected[1]]
    assert sum(seen["images"]) == 9
    captions = [
        caption for caption in seen["captions"] if caption.startswith("picture")
    ]  # not those of `HFText` itself
    assert broken or len(captions) == len({*captions}) == 27


def test_the_same_captions_with_worker_processes(tmp_path):
    """Two processes draw the same captions as none, also after resuming."""
    path = write(tmp_path)["images"]
    expected = epochs(loader(path, captions="sample"))
    options = {"captions": "sample", "num_workers": 2}
    assert epochs(loader(path, tmp_path / "features", **options)) == expected
    assert epochs(loader(path, tmp_path / "features", **options), resume=True) == [expected[0][2:], expected[1]]


@pytest.mark.parametrize("objective", [SigLIP, FLAIR, SPARC])
def test_all_captions_as_positives(tmp_path, objective):
    """With all captions of each image, the terms of the loss equal those without a cache."""
    path = write(tmp_path)["images"]
    torch.manual_seed(0)
    made = module()
    made.objective = objective()
    made.objective.build(made.encoder.embed_dim)
    options = {"captions": "all", "batch_size": 4}
    for cached, plain in zip(loader(path, tmp_path / "features", **options), loader(path, **options), strict=True):
        assert len(cached.captions) == 12
        assert not cached.images.numel()
        terms, expected = ({k: x.item() for k, x in made.losses(*made(b)[:2]).items()} for b in (cached, plain))
        assert terms == pytest.approx(expected, rel=1e-5)
