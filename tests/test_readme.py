"""All commands and code in the README and in the guide run in their order, on less data."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of its first import
import pytest
from datasets import Dataset as Rows
from datasets import Features, Value
from datasets import Image as DecodedImage
from PIL import Image
from transformers import BertConfig, BertModel

from patchword.cli import main
from patchword.data.scenes import EmojiScenes
from patchword.data.scenes.tokenizer import scene_tokenizer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs/guide.md").read_text()
FEWER = {
    "--trainer.max_epochs": "1",
    "--trainer.enable_progress_bar": "false",
    "--trainer.log_every_n_steps": "1",
    "--maps.samples": "1",
}
SCENES = {"--data.batch_size": "16", "--data.train_size": "64", "--data.val_size": "16", "--data.test_size": "16"}


def blocks(language: str, page: str = GUIDE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def less(command: list[str], scenes: bool = True) -> list[str]:
    """Return options that shorten a command, unless it sets them itself."""
    options = FEWER | (SCENES if scenes else {})
    return [word for key, value in options.items() if key not in command for word in (key, value)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a folder with the configurations, the Makefile and the environment, and run `make demo` in it."""
    before, place = dict(os.environ), tmp_path_factory.mktemp("clone")
    shutil.copy(ROOT / "Makefile", place)
    shutil.copytree(ROOT / "configs", place / "configs")
    (place / ".venv").symlink_to(sys.prefix)
    os.environ["OMP_NUM_THREADS"] = "1"
    arguments = shlex.join(less([]))
    run = subprocess.run(
        ["make", "-o", ".venv/.core", "demo", f"ARGS={arguments}"],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (place / "demo.txt").write_text(run.stdout)
    yield place
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_make_demo_says_what_the_guide_says(folder: Path) -> None:
    """The demo prints the tables of the guide, and every file that it names exists."""
    printed = (folder / "demo.txt").read_text()
    shown = blocks("text")[0]
    for heading in ("Retrieval (", "Grounding (", "Hard negatives ("):
        assert heading in shown
        assert heading in printed
    for named in re.findall(r"^  (runs/\S+)", printed, re.MULTILINE):
        assert list(folder.glob(named)), named
    assert len(list(folder.glob("runs/demo/test/maps/*.png"))) == 3
    assert json.loads((folder / "runs/demo/test/results.json").read_text())["measured"]["trained"]["seed"] == 0


def test_notebook_code(folder: Path) -> None:
    """The Python code for notebooks runs and writes its page."""
    (code,) = blocks("python", README)
    exec(compile(code, "README.md", "exec"), {})
    assert '<div class="patchword-viewer">' in (folder / "maps.html").read_text()


def test_commands_of_the_guide(folder: Path) -> None:
    """The commands of "Use it" run in their order."""
    for line in blocks("bash")[0].splitlines():
        program, *command = shlex.split(line)
        if command[0] == "bench":
            main([*command, "--patches", "16", "--tokens", "4", "--dim", "8", "--repeats", "1"])
        elif command[0] == "verify":
            main(command)
        elif program == "lightning":
            subprocess.run([Path(sys.executable).parent / "lightning", *command, *less(command)], check=True)
        else:
            main([*command, *less(command)])
    assert (folder / "runs/sparc/version_0/checkpoints/last.ckpt").exists()
    assert (folder / "runs/mixing/version_0/checkpoints/last.ckpt").exists()


def test_commands(folder: Path) -> None:
    """The commands of the README run in their order."""
    for line in blocks("bash", README)[0].splitlines():
        command = shlex.split(line)[1:]
        main([*command, *(less(command) if command[0] in ("fit", "test", "compare") else [])])
    assert (folder / "runs/sparc_threshold/report.html").is_file()
    assert (folder / "inspect.html").is_file()


def test_the_schema_for_editors(folder: Path) -> None:
    """The command of "Completion, and keys in your editor" writes a schema that describes every section."""
    (line,) = blocks("bash")[1].splitlines()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(line, shell=True, check=True, env=environment)
    schema = json.loads((folder / "patchword.schema.json").read_text())
    assert {"model", "data", "trainer", "checkpoint", "maps", "loggers"} <= schema["properties"].keys()


def test_many_processes_and_large_batches(folder: Path) -> None:
    """The commands of "Many GPUs, large batches" run on the CPU."""
    for line in blocks("bash")[2].splitlines():
        command = [*shlex.split(line)[1:], "--trainer.accelerator", "cpu", "--trainer.logger.name", "many"]
        subprocess.run([Path(sys.executable).parent / "patchword", *command, *less(command)], check=True, timeout=300)
    assert len(list(folder.glob("runs/many/version_*/checkpoints/last.ckpt"))) == 2


def test_commands_of_the_scaling_page(folder: Path) -> None:
    """The command line accepts every `fit` command of the page."""
    page = (ROOT / "docs/scaling.md").read_text()
    lines = [line for block in blocks("bash", page) for line in block.splitlines() if " fit " in line]
    assert len(lines) > 5
    for line in lines:
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(line)[1:], "--print_config"])
        assert ended.value.code == 0, line


def test_your_own_images(folder: Path) -> None:
    """The configuration in the guide trains on parquet files, and a broken image is reported."""
    scenes = EmojiScenes("train", 80, image_size=96)
    (folder / "my_data").mkdir()
    for split, number in (("train", 80), ("val", 20), ("test", 20)):
        rows = []
        for i in range(number):
            file = BytesIO()
            Image.fromarray(scenes[i].image.permute(1, 2, 0).numpy()).save(file, "PNG")
            content = b"broken" if (split, i) == ("train", 3) else file.getvalue()
            rows.append({"image": {"bytes": content, "path": f"{i}.png"}, "caption": scenes[i].captions[0]})
        features = Features({"image": DecodedImage(), "caption": Value("string")})
        Rows.from_list(rows, features=features).to_parquet(str(folder / "my_data" / f"{split}.parquet"))
    scene_tokenizer().save_pretrained(folder / "my_tokenizer")
    (folder / "mine.yaml").write_text(blocks("yaml")[0])
    (line,) = [line for block in blocks("bash") for line in block.splitlines() if "mine.yaml" in line]
    command = shlex.split(line)[1:]
    with pytest.warns(UserWarning, match="skipped a broken sample: data.train, row 3"):
        main([*command, *less(command, scenes=False)])


def test_your_own_objective(folder: Path) -> None:
    """The objective in the guide keeps the contract and trains, and is found in the current folder."""
    (code,) = [block for block in blocks("python") if block.startswith("# best_patch.py")]
    (folder / "best_patch.py").write_text(code)
    check, fit = [line for block in blocks("bash") for line in block.splitlines() if "best_patch" in line]
    main([*shlex.split(check)[1:], "--without", "ranks"])
    command = shlex.split(fit)[1:]
    main([*command, *less(command)])


def test_backbones(folder: Path) -> None:
    """The configuration in the guide trains with a tiny BERT and a tiny ViT instead of downloads."""
    (line,) = [line for block in blocks("bash") for line in block.splitlines() if "clip_vit.yaml" in line]
    text, hub_name = blocks("yaml")[1], "sentence-transformers/all-MiniLM-L6-v2"
    assert hub_name in text
    (folder / "clip_vit.yaml").write_text(text.replace(hub_name, "tiny_bert"))
    tokenizer = scene_tokenizer()
    tokenizer.save_pretrained(folder / "tiny_bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "tiny_bert")
    command = shlex.split(line)[1:]
    tower = "--model.encoder.image"
    stand_in = [f"{tower}.name", "test_vit", f"{tower}.pretrained", "false", f"{tower}.image_size", "160"]
    main([*command, *stand_in, *less(command), "--trainer.limit_train_batches", "1"])
