"""Images of any shape, from the files to the metrics: padding is never pointed at, and drawings do not show it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from patchword import AlignmentModule, Objective
from patchword.cached import CachedFeatures
from patchword.callbacks.insertion_deletion import InsertionDeletion
from patchword.callbacks.maps import AlignmentMaps
from patchword.callbacks.predictions import PredictionWriter
from patchword.cli import main
from patchword.data.batch import collate
from patchword.data.pixels import NativePreprocessing
from patchword.data.tables.image_text import ImageText
from patchword.encoders import HFImage, HFText, TwoTowers
from patchword.errors import UserError
from patchword.maps.alignment import Alignment
from patchword.maps.phrases import Area, area_of, areas, center_map
from patchword.metrics.evaluation import Evaluation
from patchword.objectives import CLIP, FILIP, SPARC
from patchword.suites.zero_shot import ZeroShot
from tests import tiny
from tests.encoders.conftest import tokenizers  # noqa: F401 - a fixture
from tests.encoders.pretrained import save_naflex

ROOT = Path(__file__).parents[1]
SHAPES = [(96, 64), (64, 96), (80, 80), (160, 48), (50, 90)]  # of the images, width and height
VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
T5 = {"model_type": "t5", "num_layers": 1, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "dropout_rate": 0.0}


def module(objective: Objective, freeze: bool = False) -> AlignmentModule:
    """A small SigLIP 2 NaFlex tower with at most 20 patches of 16 x 16 pixels, on a square of 6 x 6."""
    torch.manual_seed(0)
    config = {"model_type": "siglip2_vision_model", "patch_size": 16, "num_patches": 16} | VISION
    image = HFImage(config=config, max_num_patches=20, freeze=freeze)
    text = HFText(config=T5, tokenizer="emoji-scenes", freeze=freeze)
    return AlignmentModule(TwoTowers(image, text, embed_dim=8), objective, token_selection="content")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of five shapes: black, with a white rectangle in the left or right half, which a phrase names."""
    place = tmp_path_factory.mktemp("native")
    rows = []
    for n in range(10):
        width, height = SHAPES[n % 5]
        left = (n // 5) * width // 2
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[: height // 2, left : left + width // 2] = 255
        Image.fromarray(pixels).save(place / f"{n}.png")
        words = ("a red apple", "a blue book")
        phrases = [{"start": 0, "end": 11, "box": [left, 0, left + width // 2, height // 2]}]
        phrases += [{"start": 19, "end": 30, "box": [0, height // 2, width, height]}]
        rows.append({"image": f"{n}.png", "caption": " next to ".join(words), "phrases": phrases})
    (place / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return place


def data(folder: Path, **options: Any) -> ImageText:
    file = str(folder / "rows.jsonl")
    options = {"phrases": "data", "batch_size": 5} | options
    return ImageText("json", file, val=file, test=file, root=str(folder), **options)


def test_batches_carry_the_shape_of_each_image(folder: Path) -> None:
    """Boxes and masks are in pixels of the padded square, inside the image's own area."""
    tiny.trainer(folder / "a", max_epochs=1).validate(module(CLIP()), made := data(folder), verbose=False)
    samples = made.split("val")
    preprocessing = NativePreprocessing(interpolation="bilinear", patch_size=16, max_num_patches=20)
    for n in range(10):
        width, height = SHAPES[n % 5]
        rows, columns = (side // 16 for side in preprocessing.view(width, height, 96).shape)
        pixels = samples[n].image
        assert pixels.shape == (4, 96, 96)
        assert (pixels[3] > 0).sum() == rows * columns * 256
        first, second = samples[n].phrases[0]
        assert first.box == pytest.approx([(n // 5) * columns * 8, 0, (n // 5 + 1) * columns * 8, rows * 8], abs=0.01)
        assert second.box == pytest.approx([0, rows * 8, columns * 16, rows * 16], abs=0.01)
        inside = pixels[3] > 0
        for phrase in (first, second):
            assert phrase.mask.any()
            assert not (phrase.mask & ~inside).any()
        assert (pixels[:3, first.mask].float().mean() > 200).all()


def test_metrics_are_those_of_each_image_alone(folder: Path) -> None:
    """The metrics of a batch of several shapes equal those of the images one by one, without padding."""
    made, loader = module(CLIP()), data(folder, phrases="data")
    tiny.trainer(folder / "b", max_epochs=1).validate(made, loader, verbose=False)
    samples = [loader.split("val")[n] for n in range(10)]

    def evaluated(batches: list[Any], mask: bool) -> dict[str, float]:
        evaluation = Evaluation(made.encoder, made.objective, "content", "content")
        for batch in batches:
            with torch.no_grad():
                images, texts, tokens = made(batch)
                if not mask:  # one image: cut the padding off
                    area = area_of(images.shapes[0], images.grid)
                    kept = images.mask[0]
                    images = replace(images, patches=images.patches[:, kept], grid=area.grid, mask=None)
                    height, width = area.pixels((96, 96))
                    batch.phrase_mask = batch.phrase_mask[:, :height, :width]
                evaluation.update(batch, images, texts, tokens)
        return evaluation.compute()

    together = evaluated([collate(samples[:5]), collate(samples[5:])], mask=True)
    alone = evaluated([collate([sample]) for sample in samples], mask=False)
    chance = {name for name in together if "chance" in name}  # noise depends on the number of patches
    assert len(together) > 80
    for name in set(together) - chance:
        assert together[name] == pytest.approx(alone[name], abs=1e-5), name


def test_center_and_areas() -> None:
    """Every image has its own center, and its own part of a map."""
    shapes = torch.tensor([[2, 3], [4, 2], [2, 3]])
    centers = center_map((4, 5), shapes)
    for area in areas(shapes, (4, 5)):
        assert_close(area.crop(centers), center_map(area.grid).expand(len(area.index), -1))
        assert area.pixels((40, 50)) == (area.grid[0] * 10, area.grid[1] * 10)
    boxes, owner = Area(torch.tensor([0, 2]), (2, 3), (4, 5)).boxes(
        torch.arange(16.0).view(4, 4), torch.tensor([0, 1, 2, 2]), 3
    )
    assert owner.tolist() == [0, 1, 1]
    assert boxes[:, 0].tolist() == [0, 8, 12]


@pytest.mark.parametrize("objective", [FILIP(), SPARC()])
def test_training_and_drawings(folder: Path, tmp_path: Path, objective: Objective) -> None:
    """A run trains, measures and draws. Stored maps and pictures have the shapes of the images."""
    trainer = tiny.trainer(tmp_path, AlignmentMaps(samples=5), max_epochs=1)
    made, loader = module(objective), data(folder)
    trainer.fit(made, loader)
    trainer.test(made, loader, verbose=False)
    found = [Alignment.load(path) for path in sorted(Path(trainer.log_dir).rglob("*.npz"))]
    assert len(found) == 5
    for one, shape in zip(found, SHAPES, strict=True):
        rows, columns = (side // 16 for side in NativePreprocessing(max_num_patches=20).view(*shape, 96).shape)
        assert one.grid == (rows, columns)
        assert one.pixels.shape == (3, rows * 16, columns * 16)
        assert one.masks.shape[1:] == one.pixels.shape[1:]
        assert all(maps.shape == (2, rows * columns) for maps in one.maps.values())


def test_inspect_and_predictions(folder: Path, tmp_path: Path) -> None:
    """The viewer and `predict` see no padding either."""
    made = module(SPARC()).eval()
    photo = Image.open(folder / "3.png")
    found = made.inspect(photo, "a red apple")
    rows, columns = (side // 16 for side in NativePreprocessing(max_num_patches=20).view(160, 48, 96).shape)
    assert (found.grid, found.photo.seen) == ((rows, columns), (0.0, 0.0, 1.0, 1.0))
    assert found.pixels.shape == (3, rows * 16, columns * 16)
    assert_close(found.maps["align"].sum(-1)[1:], torch.ones(2))
    for loader in (data(folder), ZeroShot(str(folder), ["red apple", "blue book"])):
        place = tmp_path / type(loader).__name__
        trainer = tiny.trainer(place, PredictionWriter(maps=True, overlays=isinstance(loader, ZeroShot)))
        trainer.predict(made, loader, return_predictions=False)
        files = sorted(Path(trainer.log_dir).rglob("*.npz"))
        assert len(files) == 10
        for path in files:
            with np.load(path) as file:
                saved = dict(file)
            name = "map" if "map" in saved else "map_0"
            assert saved[name].shape[1] == saved["grid"].prod() <= 20


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_cached_features_hold_the_mask(folder: Path, tmp_path: Path) -> None:
    """With cached features, the losses and metrics are those without them; padding is not stored."""
    losses = []
    for number, cache in enumerate((None, CachedFeatures(str(tmp_path / "cache"), dtype="float32"))):
        made, loader = module(SPARC(), freeze=True), data(folder, features=cache)
        trainer = tiny.trainer(tmp_path / str(number), max_epochs=2)
        trainer.fit(made, loader)
        losses.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    stored = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*.safetensors"))
    assert stored < 10 * 36 * 16 * 4


def test_options_that_make_squares_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"data\.augmentation is crop"):
        tiny.trainer(folder / "c", max_epochs=1).fit(module(CLIP()), data(folder, augmentation="crop"))
    with pytest.raises(UserError, match="resize_mode is native, but the image tower takes images of one shape"):
        tiny.trainer(folder / "d", max_epochs=1).fit(tiny.module(CLIP()), data(folder, resize_mode="native"))


@pytest.mark.filterwarnings("ignore:.*longer than the text tower")
def test_the_configuration_trains_any_objective(
    folder: Path,
    tokenizers: dict[str, str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The overlay replaces both towers of a configuration. A small model of the same kind trains one step."""
    monkeypatch.chdir(tmp_path)
    config = (ROOT / "configs/towers/siglip2_naflex.yaml").read_text()
    model = save_naflex(tmp_path / "model", tokenizers["unigram"])
    (tmp_path / "towers.yaml").write_text(config.replace("google/siglip2-base-patch16-naflex", str(model)))
    file = str(folder / "rows.jsonl")
    options = {"source": "json", "train": file, "val": file, "root": str(folder), "phrases": "data", "batch_size": 5}
    (tmp_path / "data.yaml").write_text(json.dumps({"data": {"class_path": "ImageText", "init_args": options}}))
    configs = (str(ROOT / "configs/sparc.yaml"), "towers.yaml", "data.yaml")
    files = [word for config in configs for word in ("--config", config)]
    main(["fit", *files, "--trainer.fast_dev_run", "true", "--trainer.precision", "32", "--trainer.accelerator", "cpu"])


def test_maps_that_run_the_towers_are_refused(folder: Path) -> None:
    """The attention of padded images is not read, and patches are not removed from them."""
    made = module(CLIP())
    refusal = r"no maps of value for images of several shapes.*set data.resize_mode.* or use align, cosine, dot$"
    with pytest.raises(UserError, match=refusal):
        made.eval().inspect(Image.open(folder / "3.png"), "a red apple", sources=["value"])
    trainer = tiny.trainer(folder / "e", InsertionDeletion(samples=2))
    with pytest.raises(UserError, match="InsertionDeletion does not measure images of several shapes"):
        trainer.test(made, data(folder), verbose=False)
