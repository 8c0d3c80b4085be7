"""Tests the bridge to CLIP_benchmark: its files, names and prompts, our metrics, and no download."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from clip_benchmark.datasets.builder import build_dataset

from patchword.errors import UserError
from patchword.objectives import CLIP
from patchword.suites import Classification, ClipBenchmark
from tests import tiny
from tests.suites.published_regions import gray, pets
from tests.suites.table_model import FRAMING, measure


def test_a_set_of_the_package_equals_the_same_images_in_folders(tmp_path: Path) -> None:
    """Names and prompts are the package's; accuracies are those of class folders with these names and prompts."""
    root = pets(tmp_path / "pets")
    peer = build_dataset("pets", root=str(root), split="test", download=False)
    suite = ClipBenchmark(str(root))
    data = suite.read(FRAMING)
    assert (len(data), suite.key) == (len(peer), "clip_benchmark_pets_test")  # type: ignore[arg-type]
    assert [name for (name,) in suite.names] == [*peer.classes]
    assert [template.replace("{}", "{c}") for template in suite.templates] == [*peer.templates]
    assert [int(data[i].labels) for i in range(len(peer))] == [label for _, label in peer]
    for number, (_, label) in enumerate(peer):
        gray(tmp_path / f"folders/{peer.classes[label].replace(' ', '_')}/{number}.jpg", (3, 0, 1, 2)[number])
    (tmp_path / "templates.txt").write_text("\n".join(suite.templates))
    folders = Classification(str(tmp_path / "folders"), prompts=str(tmp_path / "templates.txt"))
    module = tiny.module(CLIP()).eval()
    found, expected = measure(suite, module), measure(folders, module)
    assert found == pytest.approx(expected)
    assert (found["images"], found["classes"]) == (4, 3)
    assert suite.protocol()["dataset"] == "pets"
    assert "images" not in suite.protocol()


def test_other_prompts_can_be_chosen(tmp_path: Path) -> None:
    suite = ClipBenchmark(str(pets(tmp_path)), prompts="photo")
    suite.read(FRAMING)
    assert suite.templates == ["a photo of a {}."]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dataset": "dtd"}, ("dtd, test", "Dataset not found")),
        ({"split": "val"}, ("pets, val", "trainval")),
    ],
)
def test_what_the_package_cannot_read_is_one_line_and_is_not_downloaded(
    options: dict[str, str], words: tuple[str, ...], tmp_path: Path
) -> None:
    """The message has the package's reason; the folder is not touched."""
    root = pets(tmp_path)
    before = sorted(root.rglob("*"))
    with pytest.raises(UserError) as raised:
        ClipBenchmark(str(root), **options).read(FRAMING)  # type: ignore[arg-type]
    for word in words:
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)
    assert sorted(root.rglob("*")) == before
    with pytest.raises(UserError, match=r"there is no folder .*nowhere: set data\.root"):
        ClipBenchmark(str(tmp_path / "nowhere"), **options).read(FRAMING)  # type: ignore[arg-type]


def test_without_the_package_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "clip_benchmark.datasets.builder", None)
    with pytest.raises(UserError, match=r"pip install 'patchword\[clip-benchmark\]'"):
        ClipBenchmark(str(tmp_path)).read(FRAMING)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    root = pets(tmp_path)
    (root / "oxford-iiit-pet/images/Bengal_7.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="image 0 of OxfordIIITPet cannot be read"):
        ClipBenchmark(str(root)).read(FRAMING)[0]
