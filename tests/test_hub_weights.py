"""Weights and tokenizers by their hub names in all classes, and the commits that runs record."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import transformers
from timm.models._hub import save_for_hf

from patchword import AlignmentModule
from patchword.encoders import HFImage, HFText, PretrainedPair, TimmImage, TwoTowers
from patchword.errors import UserError
from patchword.export.command import export
from patchword.objectives import SPARC
from patchword.provenance.hub import commits
from tests import hub as local
from tests import tiny
from tests.data import formats
from tests.encoders.conftest import clip, unigram, wordpiece
from tests.encoders.pretrained import TOWER, save_siglip

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

T5 = {"model_type": "t5", "num_layers": 1, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2}
TINY = "test_vit.r160_in1k"  # timm's model for tests


def save_clip(folder: Path, tokenizer: str) -> None:
    """A CLIP with a small vocabulary."""
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    ends = {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"vocab_size": len(words), "max_position_embeddings": 16, **TOWER, **ends}
    vision = TOWER | {"image_size": 32, "patch_size": 16}
    transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    words.save_pretrained(folder)


def save_bert(folder: Path, tokenizer: str) -> None:
    """A text model with its tokenizer."""
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **TOWER)).save_pretrained(folder)
    words.save_pretrained(folder)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with models in the published layout, and a data set."""
    folder = tmp_path_factory.mktemp("hub")
    models = folder / "models"
    torch.manual_seed(0)
    for style in (clip, unigram, wordpiece):
        style(folder / style.__name__)
    save_clip(models / "me/clip", str(folder / "clip"))
    save_siglip(models / "me/siglip", str(folder / "unigram"))
    save_bert(models / "me/bert", str(folder / "wordpiece"))
    unigram(models / "me/words")
    save_for_hf(timm.create_model(TINY), models / "me/vit", safe_serialization=True)
    shutil.copytree(models / "me/vit", models / "timm" / TINY)
    shutil.copytree(models / "me/vit", models / "me/gated")
    formats.hub_folder(folder / "datasets/me/pictures")
    hub = local.Hub(folder)
    hub.refused["me/gated"] = (403, "GatedRepo")
    yield hub
    hub.stop()


@pytest.fixture
def home(hub, tmp_path, monkeypatch):
    """An empty cache."""
    huggingface_hub.utils.disable_progress_bars()
    local.use(hub, tmp_path / "home", monkeypatch)
    hub.sent.clear()
    return tmp_path / "home"


def weights(hub: local.Hub, name: str) -> dict[str, torch.Tensor]:
    """The weights in the file of a model."""
    from safetensors.torch import load_file

    return load_file(hub.folder / "models" / name / "model.safetensors")


CLASSES = {
    "a CLIP": (lambda: PretrainedPair("me/clip"), "me/clip", "model.", ""),
    "a SigLIP": (lambda: PretrainedPair("me/siglip"), "me/siglip", "model.", ""),
    "the image half of a CLIP": (lambda: HFImage("me/clip"), "me/clip", "backbone.", "vision_model."),
    "a text model": (lambda: HFText("me/bert"), "me/bert", "backbone.", ""),
    "a timm model": (lambda: TimmImage("hf_hub:me/vit", pretrained=True), "me/vit", "backbone.", ""),
    "an architecture of timm": (lambda: TimmImage(TINY, pretrained=True), f"timm/{TINY}", "backbone.", ""),
}


@pytest.mark.parametrize("name", CLASSES)
def test_weights_by_their_name(hub, home, name):
    """The weights are those of the repository, its commit is recorded, and a second model reads them from the cache."""
    make, repository, ours, theirs = CLASSES[name]
    encoder = make()
    assert commits(encoder) == {repository: hub.commit("models", repository)}
    own, saved = encoder.state_dict(), weights(hub, repository)
    both = {key: saved[theirs + key.removeprefix(ours)] for key in own if theirs + key.removeprefix(ours) in saved}
    assert len(both) > 20
    assert all(torch.equal(own[key], value) for key, value in both.items())
    assert hub.sent["model.safetensors"] > 0
    hub.sent.clear()
    make()
    assert not hub.sent


def test_an_exported_model_by_its_name(hub, home, tmp_path, monkeypatch):
    """`from_pretrained` downloads an exported model once, at one commit; without a connection it reads the cache."""
    trainer = tiny.trainer(tmp_path, max_steps=1, every_n_steps=1, limit_val_batches=0)
    module = tiny.module(SPARC())
    trainer.fit(module, tiny.data(batch_size=4, train_size=4))
    module = AlignmentModule.load_from_checkpoint(tmp_path / "last.ckpt").eval()
    export(module, tmp_path / "last.ckpt", hub.folder / "models/me/exported")
    loaded = AlignmentModule.from_pretrained("me/exported")
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert AlignmentModule.from_pretrained(f"me/exported@{hub.commit('models', 'me/exported')}").trained["steps"] == 1
    hub.sent.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert AlignmentModule.from_pretrained("me/exported").trained["steps"] == 1
    assert not hub.sent


def test_parts_of_several_repositories(hub, home):
    """The commits of separate tokenizers and of towers are included."""
    encoder = TwoTowers(TimmImage("hf_hub:me/vit"), HFText(config=T5, tokenizer="me/words"), embed_dim=8)
    assert commits(encoder) == {name: hub.commit("models", name) for name in ("me/vit", "me/words")}


def test_revisions(hub, home):
    """A commit does not change when another is pushed, and a branch refers to the latest commit."""
    old = hub.commit("models", "me/bert")
    config = hub.folder / "models/me/bert/config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"hidden_act": "relu"}))
    hub.refs["me/bert@old"] = old
    try:
        assert HFText("me/bert").backbone.config.hidden_act == "relu"
        for name in (f"me/bert@{old}", "me/bert@old"):
            tower = HFText(name)
            assert tower.backbone.config.hidden_act == "gelu"
            assert tower.commits == {"me/bert": old}
    finally:
        config.write_text(before)


def test_revisions_of_timm(hub, home):
    """The weights are those of the named commit, and not of the latest commit."""
    old, path = hub.commit("models", "me/vit"), hub.folder / "models/me/vit/model.safetensors"
    before = path.read_bytes()
    save_for_hf(timm.create_model(TINY), path.parent, safe_serialization=True)
    try:
        tower = TimmImage(f"hf_hub:me/vit@{old}", pretrained=True)
        assert tower.commits == {"me/vit": old}
        latest = TimmImage("hf_hub:me/vit", pretrained=True)
        assert torch.equal(latest.backbone.patch_embed.proj.weight, weights(hub, "me/vit")["patch_embed.proj.weight"])
    finally:
        path.write_bytes(before)
    assert torch.equal(tower.backbone.patch_embed.proj.weight, weights(hub, "me/vit")["patch_embed.proj.weight"])
    assert not torch.equal(tower.backbone.patch_embed.proj.weight, latest.backbone.patch_embed.proj.weight)


@pytest.mark.parametrize("name", CLASSES)
def test_without_a_connection_the_cache_is_used(hub, home, name, monkeypatch):
    """The cache is used immediately if the hub is unreachable or offline. Otherwise, the error is one line."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    make, repository, *_ = CLASSES[name]
    found = commits(make())
    hub.stop()
    try:
        assert commits(make()) == found
        shown = sum(waits)
        shutil.rmtree(home)
        with pytest.raises(
            UserError, match=rf"the hub at http.* does not answer .*, and {repository} is not in the cache"
        ):
            make()
    finally:
        hub.start()
    assert shown == 0
    assert sum(waits) < 60
    make()
    local.offline(monkeypatch)
    assert commits(make()) == found
    shutil.rmtree(home)
    with pytest.raises(UserError, match=f"HF_HUB_OFFLINE is set, and {repository} is not in the cache") as caught:
        make()
    assert "\n" not in str(caught.value)


MISSING = "there is no folder me/none, and the hub has no model of that name"
MISTAKES = {
    "no pair": (lambda: PretrainedPair("me/none"), MISSING),
    "no image model": (lambda: HFImage("me/none"), MISSING),
    "no text model": (lambda: HFText("me/none"), MISSING),
    "no tokenizer": (lambda: HFText(config=T5, tokenizer="me/none"), MISSING),
    "no timm model": (lambda: TimmImage("hf_hub:me/none"), MISSING),
    "no weights of an architecture": (
        lambda: TimmImage("test_vit2.r160_in1k", pretrained=True),
        "the hub has no model of that name",
    ),
    "no such revision": (lambda: HFText("me/bert@v2"), "the model me/bert has no revision v2: name a branch, a tag or"),
    "no such revision of timm": (lambda: TimmImage("hf_hub:me/vit@v2"), "the model me/vit has no revision v2"),
    "gated": (lambda: TimmImage("hf_hub:me/gated"), "the model me/gated is gated: ask for access on its page, http"),
    "a tokenizer alone": (lambda: HFText("me/words"), "the model me/words cannot be read .*model_type"),
    "a timm model for transformers": (lambda: HFImage("me/vit"), "timm_wrapper .* use TimmImage"),
    "no prefix": (lambda: TimmImage("me/vit"), "write hf_hub:me/vit or local-dir:me/vit"),
    "no name": (lambda: HFText("me@@"), "the model me has no revision @"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_clear_message(home, mistake):
    """The message names the model and the solution on one line."""
    make, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


RUN = """
model:
  objective: CLIP
  encoder:
    class_path: TwoTowers
    init_args:
      embed_dim: 8
      image: {class_path: TimmImage, init_args: {name: "hf_hub:me/vit", pretrained: true}}
      text: {class_path: HFText, init_args: {model: me/bert}}
data:
  class_path: ImageText
  init_args: {source: me/pictures, train: train, test: validation, batch_size: 4}
trainer: {max_steps: 2, enable_progress_bar: false, accelerator: cpu, log_every_n_steps: 1}
checkpoint: {dirpath: .}
maps: {samples: 0}
loggers: null
"""
COMMANDS = "import sys\nfrom patchword.cli import main\nfor line in sys.argv[1:]:\n    main(line.split())"


def command_line(folder: Path, environment: dict[str, str], *lines: str) -> subprocess.CompletedProcess[str]:
    """Run commands one after the other in a separate process."""
    return subprocess.run(
        [sys.executable, "-c", COMMANDS, *lines],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_a_run_records_commits(hub, tmp_path):
    """Results and checkpoints contain the commits. Offline, the cache gives the same results."""
    (tmp_path / "run.yaml").write_text(RUN)
    environment = hub.environment(tmp_path / "home")
    test = "test --config run.yaml --ckpt_path last.ckpt"
    done = command_line(tmp_path, environment, "fit --config run.yaml", test)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = {name: hub.commit("models", name) for name in ("me/bert", "me/vit")}
    expected = {"datasets/me/pictures": hub.commit("datasets", "me/pictures"), **expected}
    (results,) = tmp_path.rglob("results.json")
    measured = json.loads(results.read_text())["measured"]
    assert measured["hub"] == measured["trained"]["hub"] == expected
    metrics = json.loads(results.read_text())["metrics"]
    offline = environment | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = command_line(tmp_path, offline, test, "fit --config run.yaml --data.source me/nothing")
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("patchword: error: ")]
    assert "data.source: HF_HUB_OFFLINE is set, and me/nothing is not in the cache" in line
    latest = max(tmp_path.rglob("results.json"), key=lambda path: path.stat().st_mtime_ns)
    assert json.loads(latest.read_text())["metrics"] == metrics
