"""timm and transformers load the exported towers, which give the features of the trained model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn.functional import gelu, linear

from patchword import AlignmentModule
from patchword.cli import main
from patchword.encoders import HFImage, HFText, PretrainedPair, TimmImage, TwoTowers
from patchword.encoders.base import Encoder, ImageTower
from patchword.encoders.lora import Lora
from patchword.errors import UserError
from patchword.export.card import card
from patchword.export.command import export
from patchword.files.results_file import write_results
from patchword.objectives import CLIP, SPARC, SigLIP
from tests import tiny
from tests.encoders.conftest import tokenizers  # noqa: F401 - a fixture
from tests.encoders.pretrained import TOWER, save_clip, save_siglip

VIT = {"depth": 2, "embed_dim": 16, "num_heads": 2}
T5 = {"model_type": "t5", "num_layers": 0, "d_model": 16}
CAPTIONS = ["a red apple next to a snail", "a dog"]
LORA = Lora(rank=2)


def saved(module, folder):
    """Save a module to a checkpoint, and return the loaded module and the checkpoint."""
    trainer = tiny.trainer(folder, max_steps=1, every_n_steps=1, limit_val_batches=0)
    size = module.encoder.image_size[0]
    trainer.fit(module, tiny.data(batch_size=4, train_size=4, image_size=size))
    return module.eval(), folder / "last.ckpt"


def require_same(folder, module):
    """Require that `from_pretrained` gives the features, scores and maps of the module that was exported."""
    again = AlignmentModule.from_pretrained(folder)
    pixels = torch.randint(0, 256, (2, 3, *module.encoder.image_size), dtype=torch.uint8)
    with torch.no_grad():
        (found, found_texts), (images, texts) = (
            (one.encode_images(pixels), one.encode_texts(CAPTIONS)[0]) for one in (again, module)
        )
        torch.testing.assert_close(found.patches, images.patches, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found_texts.tokens, texts.tokens, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found_texts.pooled, texts.pooled, rtol=1e-4, atol=1e-5)
        for name in ("forward", "score", "align"):
            results = (getattr(one.objective, name)(images, texts) for one in (again, module))
            torch.testing.assert_close(*results)
    assert again.trained == module.trained or module.trained is None
    assert not again.training
    assert not again.is_untrained


def two_towers(image, text, **options):
    torch.manual_seed(0)
    return AlignmentModule(TwoTowers(image, text, embed_dim=8, **options), SPARC())


def test_a_run_on_the_command_line(tmp_path, monkeypatch, capsys):
    """Embeddings computed by hand from the exported folder equal those of the model, including merged adapters."""
    monkeypatch.chdir(tmp_path)
    image = TimmImage("vit_tiny_patch16_224", image_size=64, model_args=VIT, lora=LORA)
    made = two_towers(image, HFText(config=T5, tokenizer="emoji-scenes"), image_pool="cls", extra_layer=True)
    module, _ = saved(made, tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "config.yaml").write_text("data: {class_path: Scenes, init_args: {seed: 3}}")
    main(["export", "--ckpt", "run", "--out", "out"])
    assert "written: out" in capsys.readouterr().out
    assert sorted(path.name for path in Path("out").iterdir()) == [
        *("README.md", "config.json", "heads.safetensors", "image", "objective.safetensors", "text")
    ]

    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    tower = timm.create_model("local-dir:out/image", pretrained=True).eval()
    assert not [name for name, _ in tower.named_parameters() if "lora" in name]
    mean, std = (torch.tensor(tower.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    heads = load_file("out/heads.safetensors")
    with torch.no_grad():
        ((patches, prefix),) = tower.forward_intermediates(
            (pixels / 255 - mean) / std, indices=1, norm=True, intermediates_only=True, return_prefix_tokens=True
        )

        def project(x, name):
            return linear(x, heads[f"{name}.weight"], heads[f"{name}.bias"])

        expected = module.encode_images(pixels)
        torch.testing.assert_close(
            project(patches.flatten(2).mT, "image_adapter"), expected.patches, rtol=1e-4, atol=1e-5
        )
        pooled = project(gelu(project(prefix[:, 0], "pooled_layer.0")), "image_adapter")
        torch.testing.assert_close(pooled, expected.pooled, rtol=1e-4, atol=1e-5)

        words = transformers.AutoTokenizer.from_pretrained("out/text")
        inputs = words(CAPTIONS, padding=True, return_tensors="pt", return_token_type_ids=False)
        features = transformers.T5EncoderModel.from_pretrained("out/text").eval()(**inputs).last_hidden_state
        texts, tokens = module.encode_texts(CAPTIONS)
        assert torch.equal(inputs["input_ids"], tokens.ids)
        found = project(features, "text_adapter")
        torch.testing.assert_close(found[tokens.mask], texts.tokens[tokens.mask], rtol=1e-4, atol=1e-5)

    require_same("out", AlignmentModule.load_from_checkpoint("run").eval())
    objective = load_file("out/objective.safetensors")
    assert {*objective} == {*module.objective.state_dict()}
    about = json.loads(Path("out/config.json").read_text())
    assert about["data"] == {"class_path": "Scenes", "init_args": {"seed": 3}}
    assert about["trained"]["steps"] == 1
    assert about["objective"]["class_path"].endswith("SPARC")
    page = Path("out/README.md").read_text()
    for word in ('"seed": 3', "SPARC", "local-dir:FOLDER/image", "pooled_layer.0", "Steps: 1"):
        assert word in page

    # The training record of a checkpoint is shown as text, because it may come from anyone.
    evil = "</p><script>alert(1)</script> [x](javascript:alert(2))\n# heading \x1b[2J"
    about["trained"] = {"steps": evil, "batch": 0, "seed": [evil], "hardware": {evil: evil}, "commit": evil}
    page = card(about)
    assert "<script>" not in page
    assert not re.search(r"(?<!\\)\]\(", page)
    assert "\x1b" not in page
    assert "\n# heading" not in page
    assert "pairs per step: 0;" in page
    assert "Steps: not recorded" in card(about | {"trained": [evil]})

    # patchword can load the folders as towers, too.
    again = TwoTowers(TimmImage("local-dir:out/image"), HFText("out/text"), embed_dim=8, image_pool="cls")
    assert again.image_size == (64, 64)

    with pytest.raises(SystemExit):
        main(["export", "--ckpt", "run", "--out", "out"])
    assert "--out out exists" in capsys.readouterr().err
    write_results(tmp_path, {"test/retrieval/image_to_text/r@1": 0.5}, {"trained": {"steps": 9}}, {})
    with pytest.raises(SystemExit):
        main(["export", "--ckpt", "run", "--out", "new", "--results", "results.json"])
    assert "these are not results of this checkpoint" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", "--ckpt", "nowhere", "--out", "new"])
    assert "--ckpt nowhere: " in capsys.readouterr().err

    def full(module, checkpoint, folder, results):
        folder.mkdir()
        (folder / "half").touch()
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("patchword.export.command.export", full)
    with pytest.raises(SystemExit):
        main(["export", "--ckpt", "run", "--out", "new"])
    assert "--out new: the model cannot be written (I/O error: No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_pair(kind, tokenizers, tmp_path):  # noqa: F811
    """CLIP and SigLIP give the same features of a photo and captions, and the logits of the objective."""
    folder = tmp_path / "pretrained"
    folder = save_clip(folder) if kind == "clip" else save_siglip(folder, tokenizers["unigram"])
    objective = CLIP(0.03) if kind == "clip" else SigLIP(0.03, -3.0)
    module, checkpoint = saved(AlignmentModule(PretrainedPair(str(folder), lora=LORA), objective), tmp_path / "run")
    export(module, checkpoint, tmp_path / "out")
    model = transformers.AutoModel.from_pretrained(tmp_path / "out" / "model").eval()
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out" / "model")
    image = Image.fromarray(torch.randint(0, 256, (224, 224, 3), dtype=torch.uint8).numpy())
    pixels = module.encoder.preprocessing.view(224, 224, 224).image(image)[None]
    seen = processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(seen, module.encoder.normalize(pixels), rtol=1e-4, atol=1e-4)
    padding = {"padding": True} if kind == "clip" else {"padding": "max_length", "max_length": 64}
    inputs = dict(words(CAPTIONS, return_tensors="pt", **padding))
    inputs = inputs if kind == "clip" else {"input_ids": inputs["input_ids"]}
    view = {"clip": "1 of the shorter side", "siglip": "The complete image is stretched"}[kind]
    assert view in (tmp_path / "out" / "README.md").read_text()
    with torch.no_grad():
        images, (texts, _) = module.encode_images(pixels), module.encode_texts(CAPTIONS)
        torch.testing.assert_close(model.get_image_features(seen).pooler_output, images.pooled, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(model.get_text_features(**inputs).pooler_output, texts.pooled, rtol=1e-3, atol=1e-4)
        require_same(tmp_path / "out", module)
        logits = model(pixel_values=seen, **inputs).logits_per_image
        expected = module.objective.score(images, texts) * module.objective.scale()
        expected = expected if kind == "clip" else expected + module.objective.bias
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TimmImage("convnext_atto", image_size=64, model_args={"depths": (1,) * 4, "dims": (8,) * 4}),
        lambda: TimmImage("test_resnet", image_size=64),
        lambda: TimmImage("test_vit2", image_size=64),
        lambda: TimmImage("vit_base_patch16_siglip_224", image_size=64, model_args=VIT),
        lambda: HFImage(config={"model_type": "dinov2", "image_size": 64, "patch_size": 16, **TOWER}, lora=LORA),
        lambda: HFImage(config={"model_type": "clip_vision_model", "image_size": 64, "patch_size": 16, **TOWER}),
        lambda: HFImage(config={"model_type": "beit", "image_size": 64, "patch_size": 16, **TOWER}),
    ],
    ids=["convnext", "resnet", "pooled norm", "timm siglip", "dinov2", "clip vision", "beit"],
)
@pytest.mark.filterwarnings("ignore:.*Overwriting")
def test_image_towers(make, tokenizers, tmp_path):  # noqa: F811
    """Each kind of tower can be exported; `export` itself loads the tower and compares features."""
    text = HFText(config={"model_type": "bert", **TOWER}, tokenizer=tokenizers["wordpiece"], lora=LORA)
    module, checkpoint = saved(two_towers(make(), text), tmp_path / "run")
    export(module, checkpoint, tmp_path / "out")
    assert list((tmp_path / "out" / "image").glob("*.safetensors"))
    with torch.no_grad():
        loaded = transformers.AutoModel.from_pretrained(tmp_path / "out" / "text", add_pooling_layer=False).eval()
        tokens = module.encoder.tokenize(CAPTIONS)
        found = loaded(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
        torch.testing.assert_close(found, module.encoder.text(tokens), rtol=1e-4, atol=1e-5)
    require_same(tmp_path / "out", module)


def test_a_pruned_tower_is_a_whole_model_of_timm(tmp_path):
    """timm can load a tower that ends at a middle level, and the card names the layers that are random."""
    module, checkpoint = saved(tiny.module(SPARC()), tmp_path / "run")
    export(module, checkpoint, tmp_path / "out")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out' / 'image'}", pretrained=True).eval()
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    tower = module.encoder.image
    with torch.no_grad():
        (found,) = loaded.forward_intermediates(
            tower.normalize(pixels), indices=[2], norm=False, intermediates_only=True, output_fmt="NCHW"
        )
        torch.testing.assert_close(found.flatten(2).mT, tower(pixels)[0], rtol=1e-4, atol=1e-5)
    require_same(tmp_path / "out", module)
    assert "random and must not be used (blocks.2, blocks.3, blocks.4" in (tmp_path / "out" / "README.md").read_text()


def test_folders_that_cannot_be_loaded(tmp_path):
    """A folder that is missing, incomplete or damaged gets one clear message, as does a class that is not trusted."""
    module, checkpoint = saved(tiny.module(SPARC()), tmp_path / "run")
    export(module, checkpoint, tmp_path / "out")

    def refused(message, change):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(tmp_path / "out", tmp_path / "copy")
        change(tmp_path / "copy")
        with pytest.raises(UserError, match=message):
            AlignmentModule.from_pretrained(tmp_path / "copy")

    def written(folder, **changes):
        found = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(found | changes))

    refused("it has no config.json", lambda folder: (folder / "config.json").unlink())
    refused("was not written by this version", lambda folder: (folder / "config.json").write_text("{}"))
    refused("was not written by this version", lambda folder: (folder / "config.json").write_text("[1"))
    refused("it has no objective.safetensors", lambda folder: (folder / "objective.safetensors").unlink())
    refused("it has no heads.safetensors", lambda folder: (folder / "heads.safetensors").unlink())
    refused("does not have image_adapter", lambda folder: save_file({}, folder / "heads.safetensors"))
    refused("heads.safetensors is damaged", lambda folder: (folder / "heads.safetensors").write_bytes(b"broken"))
    refused("the weights do not fit", lambda folder: save_file({"a": torch.ones(1)}, folder / "objective.safetensors"))
    refused("heads.safetensors has a,", lambda folder: save_file({"a": torch.ones(1)}, folder / "heads.safetensors"))
    evil = {"class_path": "antigravity.Objective", "init_args": {}}
    refused("antigravity", lambda folder: written(folder, objective=evil))
    with pytest.raises(UserError, match="nowhere is not in the cache"):
        AlignmentModule.from_pretrained("nowhere")


def test_refused(tmp_path):
    """Towers that no library can load raise an error, and the command leaves no incomplete folder."""
    text = HFText(config=T5, tokenizer="emoji-scenes")
    module, checkpoint = saved(two_towers(TimmImage("test_resnet", image_size=64), text), tmp_path / "run")

    class OwnTower(ImageTower):
        pass

    OwnTower.__abstractmethods__ = frozenset()
    module.encoder.image = OwnTower()
    with pytest.raises(UserError, match="OwnTower is not a timm or transformers tower"):
        export(module, checkpoint, tmp_path / "a")

    class OwnEncoder(Encoder):
        pass

    OwnEncoder.__abstractmethods__ = frozenset()
    module.encoder = OwnEncoder()
    with pytest.raises(UserError, match="OwnEncoder is neither TwoTowers nor PretrainedPair"):
        export(module, checkpoint, tmp_path / "b")
