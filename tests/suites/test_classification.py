"""Tests zero-shot classification: published prompts, names, ensembles and accuracies, and ties."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from timm.data import ImageNetInfo
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_recall

from patchword import AlignmentModule
from patchword.callbacks.suite_table import write_classes
from patchword.data.pixels import Preprocessing
from patchword.errors import UserError
from patchword.metrics.classification import class_ranks, classification
from patchword.objectives import CLIP, FILIP
from patchword.suites import Classification
from patchword.suites import classification as classification_module
from patchword.suites import prompts as prompts_module
from patchword.suites.classification import _names
from patchword.suites.files import Framing
from patchword.suites.prompts import embed_classes, read_templates
from tests import tiny
from tests.suites.published_regions import class_folders
from tests.suites.table_model import measure

PROMPTS = ["a red {}.", "the {} on grass", "{}"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images of three classes."""
    folders = {"green_apple": [0, 1, 2], "book": [3, 4], "red_cup": [5, 6]}
    return class_folders(tmp_path_factory.mktemp("classes"), folders)


@pytest.fixture(scope="module")
def clip() -> AlignmentModule:
    return tiny.module(CLIP()).eval()


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "templates.txt"
    path.write_text("# three\n" + "\n".join(PROMPTS))
    return str(path)


def test_shipped_lists_are_those_of_clip() -> None:
    """The 80 templates and 1,000 names equal those of open_clip in order; the folders of ImageNetV2 are numbers."""
    assert [template.replace("{}", "X") for template in read_templates("clip")] == [
        template("X") for template in OPENAI_IMAGENET_TEMPLATES
    ]
    assert read_templates("label") == ["{}"]
    info = ImageNetInfo()
    expected = {info.index_to_label_name(i): [name] for i, name in enumerate(IMAGENET_CLASSNAMES)}
    numbered = {str(i): [name] for i, name in enumerate(IMAGENET_CLASSNAMES)}
    assert _names("imagenet") == expected | numbered


def test_accuracies_equal_their_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics equal CLIP_benchmark's accuracy, and torchmetrics' accuracy and recall."""
    from clip_benchmark.metrics import zeroshot_classification as peer

    # CLIP_benchmark calls float() on an array with one element, which NumPy no longer allows.
    monkeypatch.setattr(peer, "float", lambda array: array.item(), raising=False)

    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 11, generator=generator)
    label = torch.randint(9, (200,), generator=generator)  # two classes have no image
    found = classification(label, class_ranks(scores, label), 11)
    at1, at5 = peer.accuracy(scores, label, topk=(1, 5))
    assert (found["accuracy@1"], found["accuracy@5"]) == pytest.approx((at1, at5))
    assert found["accuracy@5"] == pytest.approx(float(multiclass_accuracy(scores, label, 11, "micro", top_k=5)))
    recall = multiclass_recall(scores, label, 11, average=None)[:9].mean()
    assert found["mean_class_recall"] == pytest.approx(float(recall))
    assert found["chance_accuracy@1"] == pytest.approx(1 / 11)
    assert found["chance_accuracy@5"] == pytest.approx(5 / 11)
    assert (found["images"], found["classes"]) == (200, 11)


def test_ties_and_nan_count_against_the_model() -> None:
    """Constant scores, scores that differ by rounding only, and NaN have accuracy 0."""
    label = torch.tensor([0, 1])
    constant = torch.full((2, 4), 0.3)
    constant[0, 0] += 1e-7
    assert class_ranks(constant, label).tolist() == [4, 4]
    assert class_ranks(torch.tensor([[torch.nan, 1.0], [2.0, torch.nan]]), label).tolist() == [2, 2]
    assert class_ranks(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1])).tolist() == [2]


def test_embeddings_are_those_of_clip_benchmark(clip: AlignmentModule) -> None:
    """The normalized mean of normalized embeddings equals CLIP_benchmark's `zero_shot_classifier` with our encoder."""
    from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier

    class Model:
        @staticmethod
        def encode_text(ids: Tensor) -> Tensor:
            return clip.encode_texts([prompts[int(i)] for i in ids])[0].pooled

    names = ["green apple", "book", "red cup"]
    prompts: list[str] = []

    def tokenize(texts: list[str]) -> Tensor:
        prompts.extend(texts)
        return torch.arange(len(prompts) - len(texts), len(prompts))

    with torch.no_grad():
        own = embed_classes(clip, [[name] for name in names], PROMPTS, keep_tokens=False)
        theirs = zero_shot_classifier(Model, tokenize, names, [p.replace("{}", "{c}") for p in PROMPTS], "cpu", False)
    torch.testing.assert_close(own.embeddings(), theirs.T)
    assert own.texts.tokens.shape[1] == 0


@pytest.mark.parametrize("objective", [CLIP, FILIP])
@pytest.mark.parametrize("block", [2, 1024])
def test_ensembles(objective: type, block: int, root: Path, templates: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`score` is the mean of the scores of single prompts, also for local scores, which do not support `embedding`."""
    monkeypatch.setattr(prompts_module, "_BLOCK", block)
    monkeypatch.setattr(classification_module, "_BLOCK", block)
    module = tiny.module(objective()).eval()
    suite = Classification(str(root), prompts=templates, ensemble="score")
    measure(suite, module)
    pixels = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        found = suite.evaluation(module).scores(pixels)
        names = ["book", "green apple", "red cup"]
        images = module.encode_images(pixels)
        single = [
            module.objective.score(images, module.encode_texts([prompt.replace("{}", name) for name in names])[0])
            for prompt in PROMPTS
        ]
    torch.testing.assert_close(found, sum(single) / 3)
    if objective is FILIP:
        suite.ensemble = "embedding"
        with pytest.raises(UserError, match="ensemble to score"):
            suite.evaluation(module)


def test_numbers_of_a_folder(root: Path, clip: AlignmentModule, templates: str, tmp_path: Path) -> None:
    """Metrics equal numpy for any batch size and for repeated images."""
    suite = Classification(str(root), "Toys", prompts=templates, ensemble="embedding")
    found = measure(suite, clip, batch=7)
    assert suite.key == "toys"
    assert measure(suite, clip, batch=2) == pytest.approx(found)
    assert measure(suite, clip, batch=3, order=[*range(7), 0, 0, 3]) == pytest.approx(found)
    data = suite.read(suite_framing())
    with torch.no_grad():
        pooled = clip.encode_images(torch.cat([data[i].images for i in range(7)])).pooled
        classes = [
            normalize(
                normalize(clip.encode_texts([p.replace("{}", name) for p in PROMPTS])[0].pooled, dim=-1).mean(0), dim=0
            )
            for name in ("book", "green apple", "red cup")
        ]
    predicted = (normalize(pooled, dim=-1) @ torch.stack(classes).T).argmax(-1).numpy()
    label = np.array([0, 0, 1, 1, 1, 2, 2])
    assert found["accuracy@1"] == pytest.approx((predicted == label).mean())
    recall = np.mean([(predicted[label == c] == c).mean() for c in range(3)])
    assert found["mean_class_recall"] == pytest.approx(recall)
    assert (found["images"], found["classes"], found["cut_prompts"]) == (7, 3, 0)
    assert [row["class"] for row in suite.per_class] == ["book", "green apple", "red cup"]
    assert [row["images"] for row in suite.per_class] == [2, 3, 2]
    assert [row["accuracy@1"] for row in suite.per_class] == [(predicted[label == c] == c).mean() for c in range(3)]
    assert [row["accuracy@5"] for row in suite.per_class] == [1, 1, 1]
    suite.per_class[0]["class"] = "=1+1"
    with write_classes(suite, tmp_path).open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["'=1+1", "green apple", "red cup"]
    assert (tmp_path / "toys_classes.csv").is_file()


def suite_framing() -> Framing:
    """The framing that `measure` uses."""
    return Framing(Preprocessing("stretch"), 64)


def test_names_of_classes(root: Path, tmp_path: Path) -> None:
    """Names come from folders, from JSON with several names per class, or from lines as in ImageNet's `words.txt`."""
    assert names(root, None) == [["book"], ["green apple"], ["red cup"]]
    (tmp_path / "names.json").write_text(
        json.dumps({"book": "novel", "green_apple": ["apple", "pippin"], "red_cup": "mug"})
    )
    assert names(root, tmp_path / "names.json") == [["novel"], ["apple", "pippin"], ["mug"]]
    (tmp_path / "words.txt").write_text("book\tnovel, paperback\ngreen_apple apple\nred_cup coffee mug\nother x\n")
    assert names(root, tmp_path / "words.txt") == [["novel", "paperback"], ["apple"], ["coffee mug"]]


def names(root: Path, source: Path | None) -> list[list[str]]:
    suite = Classification(str(root), class_names=None if source is None else str(source))
    suite.read(suite_framing())
    return suite.names


def test_images_in_folders_of_a_class(root: Path, tmp_path: Path) -> None:
    """Images in subfolders belong to the class; hidden files that macOS creates are ignored."""
    nested = tmp_path / "classes"
    shutil.copytree(root, nested)
    image = next((nested / "book").iterdir())
    (nested / "book/more/deep").mkdir(parents=True)
    image.rename(nested / "book/more/deep" / image.name)
    for file in [*nested.rglob("*.JPEG")]:
        (file.parent / f"._{file.name}").write_bytes(b"Mac OS X")
    suite = Classification(str(nested))
    data = suite.read(suite_framing())
    assert [int(data[i].labels) for i in range(len(data))] == [0, 0, 1, 1, 1, 2, 2]
