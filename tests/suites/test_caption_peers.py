"""Tests recalls and matching scores against published evaluation code, which runs here without changes."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from patchword.features import Images, Texts
from patchword.metrics.compositional import caption_found, image_found
from patchword.metrics.retrieval import Retrieval
from patchword.ops import cosine

KS = (1, 5, 10)


def pooled_score(images: Images, texts: Texts) -> Tensor:
    return cosine(images.pooled, texts.pooled)


def embedded(images: int, owner: Tensor, signal: float, width: int = 16) -> tuple[Images, Texts]:
    """Random embeddings of images, and similar embeddings of their captions."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(images, width, generator=generator)
    text = signal * image[owner] + torch.randn(len(owner), width, generator=generator)
    nothing = torch.zeros(len(owner), 0, dtype=torch.bool)
    return Images(image, torch.zeros(images, 0, width), (1, 0)), Texts(text, torch.zeros(len(owner), 0, width), nothing)


def measured(images: Images, texts: Texts, owner: Tensor, folds: int = 1) -> dict[str, float]:
    metric = Retrieval(pooled_score, folds=folds)
    metric.update(images, texts, owner, torch.arange(len(images)))
    return metric.compute()


def test_coco_5k_and_1k_equal_eccv_caption_on_karpathy_s_ids() -> None:
    """Recalls equal those of `eccv_caption` on 5,000 images and 25,000 captions with the ids in its wheel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends ujson
        from eccv_caption import Metrics
    peer = Metrics()
    captions = peer.coco_ids.tolist()
    image_of = [peer.coco_gts["t2i"][caption][0] for caption in captions]
    ids = list(dict.fromkeys(image_of))  # in Karpathy's order
    number = {image: i for i, image in enumerate(ids)}
    owner = torch.tensor([number[image] for image in image_of])
    assert (len(ids), len(captions)) == (5000, 25000)
    assert owner.tolist() == sorted(owner.tolist())
    images, texts = embedded(len(ids), owner, 0.7)

    scores = pooled_score(images, texts)
    ranked = {
        "i2t": _ranked(scores, ids, captions),
        "t2i": _ranked(scores.T, captions, ids),
    }
    whole, folds = measured(images, texts, owner), measured(images, texts, owner, folds=5)
    for k in KS:
        for found, expected in (
            (whole, peer.coco_5k_recalls(ranked, "all", K=k)),
            (folds, peer.coco_1k_recalls(ranked, "all", K=k)),
        ):
            assert found[f"image_to_text/r@{k}"] == pytest.approx(expected["i2t"], abs=1e-9)
            assert found[f"text_to_image/r@{k}"] == pytest.approx(expected["t2i"], abs=1e-9)
    assert 0.1 < whole["image_to_text/r@1"] < folds["image_to_text/r@1"] < 0.9
    assert (folds["images"], folds["captions"]) == (1000, 5000)


def _ranked(scores: Tensor, queries: list[int], items: list[int], top: int = 200) -> dict[int, list[int]]:
    """For each query, the ids of the 200 items with the highest scores, which include more than ten of each fold."""
    best = torch.cat([part.topk(top).indices for part in scores.split(1000)])
    return {query: [items[i] for i in row] for query, row in zip(queries, best.tolist(), strict=True)}


@pytest.mark.parametrize("captions", [5, None])
def test_recalls_equal_fico_itr(captions: int | None) -> None:
    """R@K and median ranks equal `fico_itr.instance_retrieval`, also for different numbers of captions."""
    from fico_itr import instance_retrieval

    counts = torch.full((60,), captions) if captions else torch.arange(60) % 4 + 1
    owner = torch.arange(60).repeat_interleave(counts)
    images, texts = embedded(60, owner, 0.5)
    found = measured(images, texts, owner)
    of = captions or dict(enumerate(owner.tolist()))
    peer = instance_retrieval(pooled_score(images, texts).numpy(), captions_per_image=of)
    for way, expected in zip(("image_to_text", "text_to_image"), peer, strict=True):
        for k in KS:
            assert 100 * found[f"{way}/r@{k}"] == pytest.approx(expected[f"R@{k}"])
        # fico_itr rounds a median between two ranks down.
        assert int(found[f"{way}/median_rank"]) == expected["MedianR"]


def test_recalls_equal_clip_benchmark() -> None:
    """Recalls equal clip_benchmark's `recall_at_k`; any right caption makes an image right, as in its `evaluate`."""
    from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k

    owner = torch.arange(40).repeat_interleave(5)
    images, texts = embedded(40, owner, 0.5)
    found = measured(images, texts, owner)
    scores = pooled_score(images, texts).T
    right = owner[:, None] == torch.arange(40)
    for k in KS:
        by_text = (recall_at_k(scores, right, k) > 0).float().mean()
        by_image = (recall_at_k(scores.T, right.T, k) > 0).float().mean()
        assert found[f"text_to_image/r@{k}"] == pytest.approx(float(by_text))
        assert found[f"image_to_text/r@{k}"] == pytest.approx(float(by_image))


@pytest.mark.parametrize("images", [1, 2])
def test_matching_equals_clip_benchmark(images: int) -> None:
    """Scores equal its evaluation of Winoground (two images) and SugarCrepe (one image) on the same embeddings."""
    from clip_benchmark.metrics.image_caption_selection import evaluate

    generator = torch.Generator().manual_seed(images)
    pictures = torch.randn(50, images, 6, generator=generator)
    captions = torch.randn(50, 2, 6, generator=generator) + 0.5 * pictures.expand(-1, 2, -1)
    model: Any = SimpleNamespace(encode_image=lambda x: x.flatten(1), encode_text=lambda x: x)
    batches = [(pictures[i : i + 10, :, :, None, None], captions[i : i + 10]) for i in range(0, 50, 10)]
    peer = evaluate(model, batches, torch.stack, "cpu", amp=False)

    scores = [normalize(p, dim=-1) @ normalize(c, dim=-1).T for p, c in zip(pictures, captions, strict=True)]
    found = torch.tensor([[caption_found(s).all(), image_found(s).all()] for s in scores]).double()
    assert found[:, 0].mean() == pytest.approx(peer["text_acc"])
    assert found[:, 1].mean() == pytest.approx(peer["image_acc"])
    assert (found[:, 0] * found[:, 1]).mean() == pytest.approx(peer["acc"])
    assert 0 < peer["text_acc"] < 1
