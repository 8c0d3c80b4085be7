"""Every example on the pages about data trains two steps on small files in the layout of the page."""

import gc
import re
from pathlib import Path

import datasets
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from patchword.cli import main
from tests.data import formats

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path.read_text() for path in [ROOT / "docs/data.md", *(ROOT / "docs/data").glob("*.md")]}
FEW = [
    *("--trainer.max_steps", "2", "--trainer.limit_val_batches", "1", "--trainer.enable_progress_bar", "false"),
    *("--data.batch_size", "4", "--data.num_workers", "0", "--trainer.logger", "false"),
    *("--checkpoint.every_n_train_steps", "1000", "--maps.samples", "0", "--trainer.max_epochs", "2"),
]
EXAMPLES = {
    f"{page}: {name}": (page, name)
    for page, text in PAGES.items()
    for name in re.findall(r"^```bash\npatchword fit --config configs/clip.yaml --config (.*)\n```", text, re.MULTILINE)
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        datasets.disable_progress_bars()
        yield
    gc.collect()


def write_tokenizer() -> None:
    """Write a tokenizer that knows all letters to my_tokenizer."""
    letters = {letter: i for i, letter in enumerate(["[PAD]", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained("my_tokenizer")


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_train(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration of an example works on the files that the page describes."""
    page, name = EXAMPLES[example]
    monkeypatch.chdir(tmp_path)
    blocks = dict(re.findall(r"^```yaml\n# (\S+)\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL))
    Path(name).write_text(blocks[name])
    write_tokenizer()
    formats.PAGES[page]()
    main(["fit", "--config", "configs/clip.yaml", "--config", name, *FEW])


def test_every_page_is_linked_and_has_an_example() -> None:
    """docs/data.md links every page in docs/data, and every page has an example that trains."""
    pages = set(re.findall(r"\(data/(\w+)\.md\)", PAGES["data"]))
    assert pages == {*PAGES} - {"data"} == {page for page, _ in EXAMPLES.values()} - {"data"}
