"""Cached features do not change batches, losses, gradients and weights."""

from __future__ import annotations

import functools
import json
import logging
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from torch import nn

from patchword import AlignmentModule, Objective
from patchword.cached import CachedFeatures
from patchword.cached.batch import CachedSample
from patchword.cached.store import FeatureStore
from patchword.callbacks.maps import AlignmentMaps
from patchword.callbacks.results import Results
from patchword.data.splits import Splits
from patchword.encoders import HFText, TimmImage, TwoTowers
from patchword.errors import UserError
from patchword.objectives import SPARC
from patchword.training.lr_schedule import Schedule
from tests import tiny
from tests.ranks import as_device, on_ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
T5 = {"model_type": "t5", "num_layers": 1, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2}
VIT = {"depth": 1, "embed_dim": 16, "num_heads": 2}


def module(freeze: bool = True, seed: int = 0, objective: Objective | None = None, **arguments: Any) -> AlignmentModule:
    """Frozen transformers with all kinds of heads."""
    torch.manual_seed(seed)
    image = TimmImage("vit_tiny_patch16_224", image_size=64, model_args=VIT, freeze=freeze)
    text = HFText(config=T5, tokenizer="emoji-scenes", freeze=freeze)
    arguments = {"image_pool": "cls", "text_pool": "eos", "extra_layer": True, "image_adapter": "residual"} | arguments
    encoder = TwoTowers(image, text, embed_dim=16, **arguments)
    optimizer = functools.partial(torch.optim.AdamW, lr=3e-3)
    return AlignmentModule(
        encoder,
        SPARC() if objective is None else objective,
        token_selection="content",
        optimizer=optimizer,
        schedule=Schedule(final=1.0),
    )


class Losses(Callback):
    """Records the loss of every step, and the gradients of the first step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: dict[str, torch.Tensor] = {}

    def on_after_backward(self, trainer, pl_module):
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


def train(folder, data, objective=None, **arguments):
    """Train for two epochs. Returns the callback and the trained module."""
    found, made = Losses(), module(objective=objective)
    tiny.trainer(folder, found, **arguments).fit(made, data)
    return found, made


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Training without a cache."""
    return train(tmp_path_factory.mktemp("plain"), tiny.data())


def cached(folder, dtype="float32", **arguments):
    return tiny.data(**arguments, features=CachedFeatures(str(folder), dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-3)])
def test_training_is_the_same(dtype, tolerance, plain, tmp_path):
    """All losses, the gradients of the heads and the validation metrics are equal."""
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
    """A second run reads the files of the first run. It does not run towers, and does not read training images."""
    place = tmp_path / "features"
    train(tmp_path / "first", cached(place), max_epochs=1)
    before = {file: file.stat().st_mtime_ns for file in place.rglob("*.safetensors")}
    assert before

    def never(self, *arguments):
        raise AssertionError("a tower runs, or an image is rendered")

    made = module()
    monkeypatch.setattr("patchword.data.scenes.scenes.EmojiScenes.__getitem__", never)
    monkeypatch.setattr(TimmImage, "forward", never)
    monkeypatch.setattr("patchword.module.freeze_unused", lambda module: [])
    tiny.trainer(tmp_path / "second", max_epochs=1, limit_val_batches=0).fit(made, cached(place))
    assert {file: file.stat().st_mtime_ns for file in place.rglob("*.safetensors")} == before


def test_changes_are_named_and_features_computed_again(tmp_path, caplog, monkeypatch):
    """With other weights, samples or precision, old features are not read, and the log names the changed part."""
    place = tmp_path / "features"

    def messages(data, seed=0, **arguments):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
            made = module(seed=seed)
            tiny.trainer(tmp_path / "run", max_steps=1, limit_val_batches=0, **arguments).fit(made, data)
        return [r.getMessage() for r in caplog.records if "features" in r.getMessage()]

    first, rate = messages(cached(place))
    assert re.search(r"features of 96 images in \d+ s \(\d+\.\d images/s\)", rate)
    assert re.search(r"features of 96 samples: 0\.\d MB in .* GB are free", first)
    assert "image tower, text tower" in messages(cached(place), seed=1)[0]
    assert messages(cached(place)) == [], "the first ones are still there"
    assert "changed: data" in messages(cached(place, seed=5))[0]
    assert "dtype" in messages(cached(place, "float16"))[0]
    assert "precision" in messages(cached(place), precision="bf16-mixed")[0]


def test_a_progress_bar_counts_images(tmp_path, capsys):
    """The bar appears if the trainer has one, and only while features are computed."""
    data = attached(cached(tmp_path / "features"))
    data.trainer.progress_bar_callback = object()
    data.train_dataloader()
    assert re.search(r"Features: 100%.* 96/96 .* images/s", capsys.readouterr().err)
    data.train_dataloader()
    attached(cached(tmp_path / "others")).train_dataloader()
    assert "Features" not in capsys.readouterr().err


def test_an_interrupted_writer_leaves_no_incomplete_file(tmp_path, monkeypatch):
    """A run is killed at the second file. The next run computes the missing files, and its result is the same."""
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


def test_flipped_bits_and_truncation_are_found(tmp_path):
    """A change of any byte, and truncation at any length, is found, and the file is removed."""
    store = FeatureStore(tmp_path, 1)
    sample = CachedSample(3, torch.ones(2, 2), None, ["a fish"], [torch.ones(1, 2)], [torch.zeros(1, 2).long()])
    store.write(0, [sample])
    path = tmp_path / "000000.safetensors"
    whole = path.read_bytes()
    assert store.remove_broken(store.parts) == []
    changed = [whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :] for place in range(len(whole))]
    for content in [*changed, b"", whole[:-1], whole[:100], whole + b"x"]:
        path.write_bytes(content)
        assert store.remove_broken(store.parts) == [path]
        assert store.missing() == [0]


def test_a_broken_file_is_named_and_computed_again(tmp_path):
    """The run continues with the same features. A damaged key.json of another store has no effect."""
    place = tmp_path / "features"

    def run():
        tiny.trainer(tmp_path / "run", max_steps=1, limit_val_batches=0).fit(module(), cached(place))

    run()
    (path,) = place.rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    (place / "other").mkdir()
    (place / "other" / "key.json").write_text("[]")
    with pytest.warns(UserWarning, match=f"{path} is truncated or damaged"):
        run()
    assert path.read_bytes() == whole


def test_runs_that_start_together_compute_features_once(tmp_path, caplog, monkeypatch):
    """The second run waits for the first one and finds its files."""
    place = tmp_path / "features"
    written = []
    write = FeatureStore.write

    def slow(self, part, samples):
        written.append(part)
        for _ in range(1000):
            if "waiting for it" in caplog.text:
                break
            time.sleep(0.01)
        write(self, part, samples)

    monkeypatch.setattr(FeatureStore, "write", slow)
    runs = [attached(cached(place)) for _ in range(2)]
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"), ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda run: run.train_dataloader(), runs, timeout=120):
            pass
    assert written == [0]
    assert f"another run computes the features in {place}" in caplog.text


def test_two_devices_share_the_work(tmp_path):
    """Each device computes different files, and both devices read all files."""
    place = tmp_path / "features"
    shares = on_ranks(_compute_share, str(place))
    assert [share[0] for share in shares] == [[0, 2], [1]]
    assert shares[0][1] == shares[1][1]


def attached(data: Splits, rank: int = 0, world_size: int = 1, objective: Objective | None = None) -> Splits:
    """`data` attached to a trainer of the untrained model."""
    context = SimpleNamespace(forward_context=functools.partial(torch.autocast, "cpu", enabled=False))
    barrier = dist.barrier if world_size > 1 else lambda: None
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=module(objective=objective),
        precision="32-true",
        precision_plugin=context,
        strategy=SimpleNamespace(barrier=lambda name: barrier(), broadcast=_broadcast, root_device=torch.device("cpu")),
        global_rank=rank,
        world_size=world_size,
        progress_bar_callback=None,
    )
    return data


def _broadcast(value):
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def _compute_share(rank, place):
    """The files that this rank has written, and the sum of all features that it reads."""
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
    """The position in the middle of an epoch refers to the same samples."""
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
    with pytest.raises(UserError) as caught:
        tiny.trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(made, data)
    return str(caught.value)


def test_refused(tmp_path, monkeypatch):
    """Trained towers, encoders without heads, random samples, overflow and a full disk cause errors."""
    place = tmp_path / "features"
    assert "model.encoder.image.freeze" in refusal(tmp_path, module(freeze=False), cached(place))

    class Whole(nn.Module):
        pass

    made = module()
    data = cached(place)
    monkeypatch.setattr("patchword.cached.stores.TwoTowers", Whole)
    assert "has no heads" in refusal(tmp_path, made, data)
    monkeypatch.undo()

    def random(self, split):
        raise UserError("the training samples differ from epoch to epoch")

    monkeypatch.setattr("patchword.data.scenes.datamodule.Scenes.fingerprint", random)
    assert "differ from epoch to epoch" in refusal(tmp_path, module(), cached(place))
    monkeypatch.undo()
    large = module()
    nn.init.constant_(large.encoder.image.backbone.norm.weight, 1e6)
    assert "not finite in float16: set dtype to float32" in refusal(tmp_path, large, cached(place, "float16"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore
    assert "another disk" in refusal(tmp_path, module(seed=7), cached(place))
    with pytest.raises(UserError, match="num_workers"):
        CachedFeatures(num_workers=-1)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric Grounding was called before")
def test_a_table_of_images_and_captions(tmp_path):
    """Losses equal those without a cache, with several captions per image and a broken row.

    The replacement of the broken row in training differs between epochs, and that in validation is always the same.
    """
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from patchword.data.tables.image_text import ImageText

    def encoded(sample):
        file = io.BytesIO()
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(file, "png")
        return file.getvalue()

    scenes = [tiny.data().split("train")[i] for i in range(12)]
    images = [encoded(scene) for scene in scenes[:-1]] + [b"broken"]
    captions = [[*scene.captions, "a dog"] for scene in scenes]
    pq.write_table(pa.table({"image": images, "caption": captions}), tmp_path / "train.parquet")

    def data(**options):
        return ImageText("parquet", str(tmp_path / "train.parquet"), batch_size=4, phrases="words", **options)

    options = {"max_epochs": 2, "limit_val_batches": 0}
    with pytest.warns(UserWarning, match="skipped a broken sample"):
        expected, _ = train(tmp_path / "plain", data(), **options)
    cache = CachedFeatures(str(tmp_path / "f"), "float32")
    with pytest.warns(UserWarning, match="skipped a broken sample"):
        found, _ = train(tmp_path / "cached", data(features=cache), **options)
    assert len(found.losses) == 6
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)
    assert len((tmp_path / "cached" / "logs" / "version_0" / "skipped.jsonl").read_text().splitlines()) == 1
    losses = []
    for seed in (0, 2):
        trainer = tiny.trainer(tmp_path / "val")
        cache = CachedFeatures(str(tmp_path / "f"))
        split = data(val=str(tmp_path / "train.parquet"), seed=seed, features=cache)
        with pytest.warns(UserWarning, match="skipped a broken sample"):
            measured = trainer.validate(module(), split, verbose=False)[0]
        assert measured["val/retrieval/images"] == 11
        losses.append(measured["val/loss"])
    assert losses[0] == losses[1]


def measured(
    folder: Path, made: AlignmentModule, data: Any, *callbacks: Callback, **options: Any
) -> list[dict[str, Any]]:
    """The results of a test and a validation: the metrics, and the description of what was measured."""
    trainer = tiny.trainer(folder, Results(), *callbacks, **options)
    found = []
    for measure in (trainer.test, trainer.validate):
        measure(made, data, verbose=False)
        trainer.strategy.barrier()
        found.append(json.loads((Path(trainer.log_dir) / "results.json").read_text()))
        trainer.strategy.barrier()
    return found


def assert_same_numbers(found: list[dict[str, Any]], expected: list[dict[str, Any]], *left_out: str) -> None:
    """Compare the sample checksums and all metrics of all splits, except for names that end with `left_out`."""
    for one, other, splits in zip(found, expected, (["test", "unseen_concepts"], ["val"]), strict=True):
        assert one["measured"]["definition"] == other["measured"]["definition"]
        numbers, others = (
            {name: x for name, x in run["metrics"].items() if not name.endswith(left_out)} for run in (one, other)
        )
        kinds = [f"{split}/{kind}/" for split in splits for kind in ("retrieval", "grounding", "hard_negatives")]
        assert all(any(name.startswith(kind) for name in numbers) for kind in kinds)
        assert numbers == pytest.approx(others, rel=1e-5, abs=1e-5)


def test_what_is_measured_does_not_depend_on_the_cache(tmp_path, monkeypatch):
    """All metrics, sample checksums and maps are equal, and towers run only in the first run.

    The features of training are stored in half precision.
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
    """Batches have the same pixels, boxes, masks, hard negatives and broken samples as without a cache.

    Features of other samples are not used.
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
    samples.samples = tiny.data().split("val")
    with pytest.raises(UserError, match="do not belong to sample 0"):
        samples[0]


def test_two_devices_share_out_an_evaluation(tmp_path):
    """Lightning distributes the samples. Metrics and measured samples equal those of one device."""
    expected = measured(tmp_path / "one", module(), tiny.data(val_size=17, test_size=9))
    losses = ("/loss", "/global", "/local")  # these depend on the batch
    assert_same_numbers(on_ranks(_measured_by, tmp_path)[0], expected, *losses)


def _measured_by(rank, folder):
    with as_device(rank) as options:
        data = cached(folder / "features", val_size=17, test_size=9)
        return measured(folder / "two", module(), data, **options)
