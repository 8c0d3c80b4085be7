"""All notebooks run, and their committed outputs can be read on a page."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of its first import
import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from PIL import Image

from patchword.cli import main
from patchword.encoders import PretrainedPair
from tests.encoders import conftest as styles
from tests.encoders.pretrained import TOWER

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 400_000  # bytes
SHORT = {
    "own_objective": "STEPS = 4",
    "shapley": "SAMPLES, REPEATS = (10, 30, 100, 300), 20",
}
LITTLE = [
    *("--data.batch_size", "16", "--data.train_size", "32", "--data.val_size", "16", "--data.test_size", "16"),
    *("--data.num_workers", "0", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"),
    *("--maps.samples", "1", "--loggers", "null", "--trainer.log_every_n_steps", "1"),
    *("--trainer.limit_val_batches", "0"),
    *("--trainer.logger.save_dir", "runs/compare"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder like a clone of the repository, with runs of a short comparison of two objectives."""
    before, here, folder = dict(os.environ), Path.cwd(), tmp_path_factory.mktemp("clone")
    os.chdir(folder)
    (folder / "notebooks").mkdir()
    for name in ("tests", "docs"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("CLIP", "SPARC"):
        config = ["--config", f"configs/{name.lower()}.yaml", *LITTLE]
        config += ["--trainer.logger.name", f"{name}/seed_0", "--trainer.logger.version"]
        main(["fit", *config, "fit"])
        main(["test", *config, "test", "--ckpt_path", f"runs/compare/{name}/seed_0/fit/checkpoints/last.ckpt"])
    os.chdir(here)
    yield folder
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path: Path, place: Path) -> None:
    """Each notebook runs on short runs. A cell after the first one reduces its settings."""
    written = outputs_of(path, place, SHORT.get(path.stem, ""))
    assert written
    assert not [output["text"] for output in written if output.get("name") == "stderr"]


@pytest.mark.slow
def test_a_photo_and_a_pretrained_pair(place: Path) -> None:
    """The notebook of the user's own files takes the folder of a pair and a picture instead of a checkpoint."""
    styles.clip(place / "pair")
    text = TOWER | {"max_position_embeddings": 24, "projection_size": 16}
    config = {"model_type": "clip", "text_config": text, "vision_config": TOWER | {"image_size": 32, "patch_size": 8}}
    made = PretrainedPair(config=config, tokenizer=str(place / "pair"))
    made.model.save_pretrained(place / "pair")
    made.captions.tokenizer.save_pretrained(place / "pair")
    Image.effect_noise((90, 60), 90).save(place / "photo.jpg")
    mine = 'MODEL, PHOTO, CAPTION, FILL = "../pair", "../photo.jpg", "two dogs play", "blur"'
    written = outputs_of(ROOT / "notebooks/your_photo.ipynb", place, mine)
    said = "".join(output.get("text", "") for output in written)
    assert "sources: align, cosine, dot, value, grad_eclip, chefer, legrad, banzhaf" in said
    assert len(re.findall(r"^\w+ +-?\d+\.\d{3} +-?\d+\.\d{3}$", said, re.MULTILINE)) == 10


def outputs_of(path: Path, place: Path, settings: str) -> list[NotebookNode]:
    """Run a notebook in the folder of a clone. A cell after the first one changes its settings."""
    notebook = nbformat.read(path, 4)
    first = next(place for place, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(settings))
    folder = {"metadata": {"path": str(place / "notebooks")}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=folder).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_is_small_and_whole(path: Path) -> None:
    """All cells were run in order without errors or warnings, and outputs contain no local paths."""
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any(mime.startswith("image/") for output in outputs for mime in output.get("data", {}))
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert all(output.get("name") != "stderr" for output in outputs)
    texts = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs]
    assert not [text for text in texts if re.search(r"(^|[\s'\"(])(/\w+|[A-Z]:\\)[/\\\w.]+", text)]
    assert "execution" not in {key for cell in code for key in cell.metadata}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_becomes_a_page(path: Path) -> None:
    """The exported HTML page contains all pictures."""
    notebook = nbformat.read(path, 4)
    page, _ = HTMLExporter().from_notebook_node(notebook)
    pictures = [m for c in notebook.cells for o in c.get("outputs", []) for m in o.get("data", {}) if "image/" in m]
    assert len(re.findall(r'<img[^>]*src="data:image/', page)) == len(pictures)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_links_lead_somewhere(path: Path) -> None:
    """All relative links in the text exist."""
    prose = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)\s#]+)", prose):
        assert "://" in link or (path.parent / link).exists(), link


def test_the_readme_lists_them() -> None:
    """The README links every notebook."""
    named = re.findall(r"\(notebooks/(\w+)\.ipynb\)", (ROOT / "README.md").read_text())
    assert sorted(named) == [path.stem for path in NOTEBOOKS]
