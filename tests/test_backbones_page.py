"""The commands and configurations in docs/backbones.md and docs/zero_shot.md run with small models."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of its first import
import pytest
from transformers import BertConfig, BertModel

from patchword import AlignmentModule
from patchword.cli import main
from patchword.data.scenes.tokenizer import scene_tokenizer
from patchword.files.results_file import write_results
from patchword.objectives import SPARC
from patchword.report.reading import read_runs
from tests import tiny
from tests.encoders.conftest import tokenizers  # noqa: F401 - a fixture
from tests.encoders.pretrained import TOWER, photo, save_clip, save_naflex, save_siglip

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("backbones", "zero_shot")}
FEWER = ["--data.batch_size", "4", "--data.train_size", "8", "--data.val_size", "4", "--data.test_size", "2"]
SHORT = [
    "--trainer.max_epochs",
    "1",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.log_every_n_steps",
    "1",
    "--maps.samples",
    "1",
]
SMALL = {
    "vit_small_patch16_224.augreg_in21k, pretrained: true": (
        "vit_tiny_patch16_224, model_args: {depth: 1, embed_dim: 16, num_heads: 2}"
    ),
    "sentence-transformers/all-MiniLM-L6-v2": "minilm",
}


pytestmark = pytest.mark.filterwarnings("ignore:a caption is longer")  # of a tokenizer with few words


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizers: dict[str, str]) -> Iterator[Path]:  # noqa: F811
    """Write what the pages assume: models, photos, texts, a run, and the configurations on the pages."""
    place = tmp_path_factory.mktemp("pages")
    before, here = dict(os.environ), Path.cwd()
    os.chdir(place)
    shutil.copytree(ROOT / "configs", "configs")
    saves = {
        "clip": save_clip,
        "siglip2": lambda path: save_siglip(path, tokenizers["unigram"]),
        "siglip2_naflex": lambda path: save_naflex(path, tokenizers["unigram"]),
    }
    for name, save in saves.items():
        config = Path(f"configs/pretrained/{name}.yaml")
        config.write_text(re.sub(r"(?<=model: )[\w-]+/[\w-]+", str(save(place / name)), config.read_text()))
    words = scene_tokenizer()
    BertModel(BertConfig(vocab_size=len(words), **TOWER)).save_pretrained("minilm")
    words.save_pretrained("minilm")
    Path("photos").mkdir()
    photo(300, 100).save("photos/a.png")
    Path("labels.txt").write_text("a red apple\na snail\n")
    run = tiny.trainer(Path("runs/demo/fit/checkpoints"), max_steps=1, every_n_steps=1, limit_val_batches=0)
    run.fit(tiny.module(SPARC()), tiny.data())
    trained = AlignmentModule.load_from_checkpoint("runs/demo").trained
    write_results(Path("runs/demo/test"), {"test/retrieval/image_to_text/r@1": 0.25}, {"trained": trained}, {})
    for block in blocks("backbones", "yaml"):
        for name, small in SMALL.items():
            block = block.replace(name, small)
        Path(re.findall(r"^# (\S+\.yaml)$", block, re.MULTILINE)[0]).write_text(block)
    yield place
    os.chdir(here)
    os.environ.clear()
    os.environ.update(before)


def less(command: list[str]) -> list[str]:
    """Return options that shorten a command."""
    if command[0] in ("export", "compare"):
        return ["--dry-run"] if command[0] == "compare" else []
    if command[0] == "predict":
        return SHORT
    return SHORT + FEWER


@pytest.mark.parametrize(
    ("page", "command"),
    [(page, line) for page in PAGES for block in blocks(page, "console") for line in block.splitlines()],
)
@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_commands_run(page: str, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Each command succeeds and writes the files on the page. For `compare`, its dry run is checked."""
    program, *arguments = shlex.split(command)
    if program == "python":
        monkeypatch.setattr("sys.argv", arguments)
        runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
        return
    assert program == "patchword"
    main([*arguments, *less(arguments)])
    if arguments[0] == "compare":
        assert capsys.readouterr().out.count("configs/pretrained/packages.yaml --seed_everything 0") == 10
    if arguments[0] == "predict":
        newest = max(Path().rglob("images.csv"), key=lambda file: file.stat().st_mtime_ns)
        assert newest.read_text().startswith("image,a red apple,a snail\na.png,")
    if arguments[0] == "test":
        newest = max(Path().rglob("results.json"), key=lambda file: file.stat().st_mtime_ns)
        measured = json.loads(newest.read_text())["measured"]
        assert measured["checkpoint"] is None
        assert measured["trained"] is None
        assert f"configs/pretrained/{read_runs(newest).variants[0]}.yaml" in arguments, "named after the model"
    if "cached.yaml" in arguments:
        assert list(Path("features").rglob("*.safetensors"))
    if arguments[0] == "export":
        assert "| test | retrieval/image\\_to\\_text/r@1 | 0.250 |" in (Path("exported") / "README.md").read_text()
        (code,) = blocks(page, "python")
        exec(compile(code, page, "exec"), {})


def test_what_the_pages_promise_exists() -> None:
    """All configuration files and options on the pages exist."""
    for page in PAGES.values():
        for name in re.findall(r"configs/[\w/]+\.yaml", page):
            assert (ROOT / name).is_file(), name
