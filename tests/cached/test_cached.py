"""Cached features change nothing but the time: the same batches, losses, gradients and weights."""

from __future__ import annotations

import functools
import json
import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from torch import nn

from patchword import AlignmentModule
from patchword.cached import CachedFeatures
from patchword.cached.store import FeatureStore
from patchword.callbacks.maps import AlignmentMaps
from patchword.callbacks.results import Results
from patchword.encoders import HFText, TimmImage, TwoTowers
from patchword.errors import InputError
from patchword.objectives import SPARC
from patchword.schedule import Schedule
from tests import tiny
from tests.ranks import as_device, on_ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
T5 = {"model_type": "t5", "num_layers": 1, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2}
VIT = {"depth": 1, "embed_dim": 16, "num_heads": 2}


def module(freeze: bool = True, seed: int = 0, **arguments: Any) -> AlignmentModule:
    """Frozen transformers with heads of every kind."""
    torch.manual_seed(seed)
    image = TimmImage("vit_tiny_patch16_224", image_size=64, model_args=VIT, freeze=freeze)
    text = HFText(config=T5, tokenizer="emoji-scenes", freeze=freeze)
    arguments = {"image_pool": "cls", "text_pool": "eos", "extra_layer": True, "image_adapter": "residual"} | arguments
    encoder = TwoTowers(image, text, embed_dim=16, **arguments)
    optimizer = functools.partial(torch.optim.AdamW, lr=3e-3)
    return AlignmentModule(encoder, SPARC(), tokens="content", optimizer=optimizer, schedule=Schedule(final=1.0))


class Losses(Callback):
    """The loss of every step, and the gradients of the first."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: dict[str, torch.Tensor] = {}

    def on_after_backward(self, trainer, pl_module):
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


def train(folder, data, **arguments):
    """Two epochs; the callback, and the weights at the end."""
    found, made = Losses(), module()
    tiny.trainer(folder, found, **arguments).fit(made, data)
    return found, made


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Without a cache."""
    return train(tmp_path_factory.mktemp("plain"), tiny.data())


def cached(folder, dtype="float32", **arguments):
    return CachedFeatures(tiny.data(**arguments), str(folder), dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-3)])
def test_training_is_the_same(dtype, tolerance, plain, tmp_path):
    """Losses of all steps, gradients of the heads, and the validation's metrics, with towers that run once."""
    expected, other = plain
    found, made = train(tmp_path, cached(tmp_path / "features", dtype))
    assert len(found.losses) == 12
    assert found.losses == pytest.approx(expected.losses, rel=tolerance)
    assert {*found.gradients} == {*expected.gradients}
    assert not any(name.startswith(("encoder.image.", "encoder.text.")) for name in found.gradients)
    for name, gradient in found.gradients.items():
        largest = expected.gradients[name].abs().max()
        assert (gradient - expected.gradients[name]).abs().max() < tolerance * 10 * largest, name
    metrics, before = made.trainer.callback_metrics, other.trainer.callback_metrics
    assert {*metrics} == {*before}
    assert metrics["val/loss"] == pytest.approx(before["val/loss"].item(), rel=tolerance)


def test_features_are_computed_once_and_towers_do_not_run_again(tmp_path, monkeypatch):
    """A second run reads what the first has written; neither towers nor training images are touched."""
    place = tmp_path / "features"
    train(tmp_path / "first", cached(place), max_epochs=1)
    before = {file: file.stat().st_mtime_ns for file in place.rglob("*.safetensors")}
    assert before

    def never(self, *arguments):
        raise AssertionError("a tower runs, or an image is drawn")

    made = module()
    monkeypatch.setattr("patchword.data.scenes.EmojiScenes.__getitem__", never)
    monkeypatch.setattr(TimmImage, "forward", never)
    monkeypatch.setattr("patchword.module.freeze_unused", lambda module: [])
    tiny.trainer(tmp_path / "second", max_epochs=1, limit_val_batches=0).fit(made, cached(place))
    assert {file: file.stat().st_mtime_ns for file in place.rglob("*.safetensors")} == before


def test_what_changed_is_said_and_computed_anew(tmp_path, caplog, monkeypatch):
    """Other weights, other samples, another precision: nothing stale is read, and the log names the part."""
    place = tmp_path / "features"

    def messages(data, seed=0, **arguments):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
            made = module(seed=seed)
            tiny.trainer(tmp_path / "run", max_steps=1, limit_val_batches=0, **arguments).fit(made, data)
        return [r.getMessage() for r in caplog.records if "computing" in r.getMessage()]

    (first,) = messages(cached(place))
    assert re.search(r"features of 96 samples: 0\.\d MB in .*, where .* GB are free", first)
    assert "(image tower, text tower)" in messages(cached(place), seed=1)[0]
    assert messages(cached(place)) == [], "the first ones are still there"
    assert "(data)" in messages(cached(place, seed=5))[0]
    assert "dtype" in messages(cached(place, "float16"))[0]
    assert "precision" in messages(cached(place), precision="bf16-mixed")[0]


def test_an_interrupted_writer_leaves_nothing_that_is_taken_for_whole(tmp_path, monkeypatch):
    """Killed at the second file: the first stays, the rest is computed, and the result is that of one go."""
    monkeypatch.setattr("patchword.cached.store.SAMPLES", 32)
    place = tmp_path / "features"
    write = FeatureStore.write

    def interrupted(self, part, samples):
        if part == 1:
            (self.folder / "000001.half").write_bytes(b"cut off")
            raise KeyboardInterrupt
        write(self, part, samples)

    monkeypatch.setattr(FeatureStore, "write", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        tiny.trainer(tmp_path / "killed", max_steps=1, limit_val_batches=0).fit(module(), cached(place))
    assert [file.name for file in place.rglob("*.safetensors")] == ["000000.safetensors"]
    parts = []
    monkeypatch.setattr(
        FeatureStore, "write", lambda self, part, samples: (parts.append(part), write(self, part, samples))
    )
    found, _ = train(tmp_path / "again", cached(place), limit_val_batches=0)
    assert parts == [1, 2]
    whole, _ = train(tmp_path / "whole", cached(tmp_path / "other"), limit_val_batches=0)
    assert found.losses == whole.losses


def test_two_devices_share_the_work(tmp_path):
    """Each computes files of its own, none twice, and both read all of them."""
    place = tmp_path / "features"
    shares = on_ranks(_compute_share, str(place))
    assert [share[0] for share in shares] == [[0, 2], [1]]
    assert shares[0][1] == shares[1][1]


def attached(data: CachedFeatures, rank: int = 0, world_size: int = 1) -> CachedFeatures:
    """`data` as a trainer of the untrained model would have it."""
    context = SimpleNamespace(forward_context=functools.partial(torch.autocast, "cpu", enabled=False))
    barrier = dist.barrier if world_size > 1 else lambda: None
    data.trainer = data.data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=module(),
        precision="32-true",
        precision_plugin=context,
        strategy=SimpleNamespace(barrier=lambda name: barrier(), root_device=torch.device("cpu")),
        global_rank=rank,
        world_size=world_size,
    )
    return data


def _compute_share(rank, place):
    """What this rank has written, and the checksum of everything that it reads then."""
    import patchword.cached.store as store_module

    store_module.SAMPLES = 32
    written: list[int] = []
    write = FeatureStore.write
    FeatureStore.write = lambda self, part, samples: (written.append(part), write(self, part, samples))  # type: ignore
    try:
        store = attached(cached(place), rank, 2).train_dataloader().dataset
        total = sum(store[i].patches.double().sum().item() for i in range(len(store)))
    finally:
        FeatureStore.write = write  # type: ignore
        store_module.SAMPLES = 256
    return written, total


def test_a_run_resumes_with_and_without_a_cache(tmp_path):
    """In the middle of an epoch, too: the place in the epoch is that of the same samples."""
    place = tmp_path / "features"
    whole, _ = train(tmp_path / "whole", cached(place), limit_val_batches=0)
    tiny.trainer(tmp_path / "part", max_steps=4, limit_val_batches=0).fit(module(), tiny.data())
    found = Losses()
    (tmp_path / "rest").mkdir()
    shutil.copy(tmp_path / "part" / "last.ckpt", tmp_path / "rest" / "last.ckpt")
    rest = tiny.trainer(tmp_path / "rest", found, limit_val_batches=0)
    rest.fit(module(), cached(place), ckpt_path=tmp_path / "rest" / "last.ckpt", weights_only=True)
    assert found.losses == pytest.approx(whole.losses[4:], rel=1e-4)


def refusal(tmp_path, made, data) -> str:
    with pytest.raises(InputError) as caught:
        tiny.trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(made, data)
    return str(caught.value)


def test_refused(tmp_path, monkeypatch):
    """Towers that train, encoders without heads, random samples, overflow and a full disk: one message each."""
    place = tmp_path / "features"
    assert "model.encoder.image.freeze" in refusal(tmp_path, module(freeze=False), cached(place))

    class Whole(nn.Module):
        pass

    made = module()
    data = cached(place)
    monkeypatch.setattr("patchword.cached.datamodule.TwoTowers", Whole)
    assert "has no heads apart from its towers" in refusal(tmp_path, made, data)
    monkeypatch.undo()

    def random(self, split):
        raise InputError("the training samples differ from epoch to epoch")

    monkeypatch.setattr("patchword.data.datamodule.Scenes.fingerprint", random)
    assert "differ from epoch to epoch" in refusal(tmp_path, module(), cached(place))
    monkeypatch.undo()
    large = module()
    nn.init.constant_(large.encoder.image.backbone.norm.weight, 1e6)
    assert "not finite in float16: set dtype to float32" in refusal(tmp_path, large, cached(place, "float16"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore
    assert "name a folder on another disk" in refusal(tmp_path, module(seed=7), cached(place))
    with pytest.raises(InputError, match="num_workers"):
        CachedFeatures(tiny.data(), num_workers=-1)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric Grounding was called before")
def test_images_and_captions_of_ones_own(tmp_path):
    """A table with several captions: the losses of a run without a cache; random samples are refused.

    One row is broken. What takes its place differs from epoch to epoch without a cache, and stays with one.
    """
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from patchword.data.image_text import ImageText

    def encoded(sample):
        file = io.BytesIO()
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(file, "png")
        return file.getvalue()

    scenes = [tiny.data().train[i] for i in range(12)]
    images = [encoded(scene) for scene in scenes[:-1]] + [b"broken"]
    captions = [[*scene.captions, "a dog"] for scene in scenes]
    pq.write_table(pa.table({"image": images, "caption": captions}), tmp_path / "train.parquet")

    def data(**options):
        return ImageText("parquet", str(tmp_path / "train.parquet"), batch_size=4, phrases="words", **options)

    options = {"max_epochs": 2, "limit_val_batches": 0}
    with pytest.warns(UserWarning, match="passed over a broken sample"):
        expected, _ = train(tmp_path / "plain", data(), **options)
    with pytest.warns(UserWarning, match="passed over a broken sample"):
        found, _ = train(tmp_path / "cached", CachedFeatures(data(), str(tmp_path / "f"), "float32"), **options)
    assert len(found.losses) == 6
    assert found.losses[:3] == pytest.approx(expected.losses[:3], rel=1e-5)
    assert len((tmp_path / "cached" / "logs" / "version_0" / "skipped.jsonl").read_text().splitlines()) == 1
    random = CachedFeatures(data(captions="sample"), str(tmp_path / "f"))
    assert "differ from epoch to epoch" in refusal(tmp_path, module(), random)
    losses = []
    for seed in (0, 2):  # what takes the broken row's place is the same in every run's validation
        trainer = tiny.trainer(tmp_path / "val")
        split = data(val=str(tmp_path / "train.parquet"), seed=seed)
        with pytest.warns(UserWarning, match="passed over a broken sample"):
            measured = trainer.validate(module(), CachedFeatures(split, str(tmp_path / "f")), verbose=False)[0]
        assert measured["val/retrieval/images"] == 11
        losses.append(measured["val/loss"])
    assert losses[0] == losses[1]


def measured(
    folder: Path, made: AlignmentModule, data: Any, *callbacks: Callback, **options: Any
) -> list[dict[str, Any]]:
    """What a test and a validation write down: the metrics, and what was measured."""
    trainer = tiny.trainer(folder, Results(), *callbacks, **options)
    found = []
    for measure in (trainer.test, trainer.validate):
        measure(made, data, verbose=False)
        trainer.strategy.barrier()
        found.append(json.loads((Path(trainer.log_dir) / "results.json").read_text()))
        trainer.strategy.barrier()
    return found


def assert_same_numbers(found: list[dict[str, Any]], expected: list[dict[str, Any]], *left_out: str) -> None:
    """Every metric of every split, but for those whose names end with `left_out`, and the samples' checksums."""
    for one, other, splits in zip(found, expected, (["test", "unseen_concepts"], ["val"]), strict=True):
        assert one["measured"]["definition"] == other["measured"]["definition"]
        numbers, others = (
            {name: x for name, x in run["metrics"].items() if not name.endswith(left_out)} for run in (one, other)
        )
        kinds = [f"{split}/{kind}/" for split in splits for kind in ("retrieval", "grounding", "hard_negatives")]
        assert all(any(name.startswith(kind) for name in numbers) for kind in kinds)
        assert numbers == pytest.approx(others, rel=1e-5, abs=1e-5)


def test_what_is_measured_does_not_depend_on_the_cache(tmp_path, monkeypatch):
    """Every metric of every split, the samples' checksums and the maps that are drawn; towers run once for all runs.

    Although training's features are kept in half precision.
    """
    monkeypatch.setattr("patchword.callbacks.maps.save", lambda figure, path: path.parent.mkdir(exist_ok=True))
    monkeypatch.setattr("patchword.callbacks.maps.draw", lambda alignment: None)
    made, place = module(), tmp_path / "features"
    expected = measured(tmp_path / "plain", made, tiny.data(), AlignmentMaps(samples=1))
    first = measured(tmp_path / "first", made, cached(place, "float16"))

    def never(self, *arguments):
        raise AssertionError("a tower runs")

    monkeypatch.setattr(TimmImage, "forward", never)
    monkeypatch.setattr(HFText, "forward", never)
    again = measured(tmp_path / "again", made, cached(place, "float16"), AlignmentMaps(samples=1))
    assert_same_numbers(first, expected)
    assert_same_numbers(again, expected)
    files = sorted((tmp_path / "plain").rglob("maps/*.npz"))
    assert len(files) == 3
    for file in files:
        kept, other = np.load(tmp_path / "again" / file.relative_to(tmp_path / "plain")), np.load(file)
        assert {"map_align", "masks", "pixels"} < {*other.files}
        for name in {*other.files} - {"words"}:
            np.testing.assert_allclose(kept[name], other[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_batches_of_evaluation_lose_nothing(tmp_path):
    """Pixels, boxes, masks, hard negatives, broken samples: all that a batch has without a cache.

    Features of other samples than those that `data` gives are not used.
    """
    data = attached(cached(tmp_path / "features"))
    loaders = data.test_dataloader()
    plain = tiny.data().test_dataloader()
    assert [*loaders] == [*plain]
    for batch, other in zip(loaders["test"], plain["test"], strict=True):
        assert batch.patches.shape[:2] == (len(other), 16)
        for name, value in vars(other).items():
            same = torch.equal(getattr(batch, name), value) if torch.is_tensor(value) else getattr(batch, name) == value
            assert same, name
    samples = loaders["test"].dataset
    samples.samples = tiny.data().val
    with pytest.raises(InputError, match="are not those of sample 0: remove them"):
        samples[0]
    other = attached(cached(tmp_path / "features"))
    loader = torch.utils.data.DataLoader(tiny.data().val, collate_fn=list)
    other.data.val_dataloader = lambda: loader
    assert other.val_dataloader() is loader, "batches of another kind are left as they are"


def test_two_devices_share_out_an_evaluation(tmp_path):
    """Lightning gives each its samples; the numbers, and the samples that were measured, are those of one device."""
    expected = measured(tmp_path / "one", module(), tiny.data(val_size=17, test_size=9))
    losses = ("/loss", "/global", "/local")  # depend on the batch
    assert_same_numbers(on_ranks(_measured_by, tmp_path)[0], expected, *losses)


def _measured_by(rank, folder):
    with as_device(rank) as options:
        data = cached(folder / "features", val_size=17, test_size=9)
        return measured(folder / "two", module(), data, **options)
