"""An epoch of tars has every sample once, with any ranks, workers and interruptions; broken samples are counted."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from patchword.data.tables.image_text import ImageText
from patchword.data.tars import tar_index
from patchword.data.tars.handles import Handles
from tests.data.test_loader import Recorder

SIZES = (5, 1, 12, 3)  # samples of the shards


def picture(number: int, kind: str = "PNG") -> bytes:
    """Encode an image whose red value is its number."""
    file = io.BytesIO()
    Image.new("RGB", (24, 20), (number, 90, 200)).save(file, kind)
    return file.getvalue()


def pack(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    """Write a tar with these names and contents."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def sample(number: int) -> list[tuple[str, bytes]]:
    """Return the members of a sample in img2dataset's layout."""
    key = f"{number:09}"
    fields = {"caption": f"field {number}", "url": "none", "width": 24}
    return [
        (f"{key}.png", picture(number)),
        (f"{key}.txt", f"caption {number}\n".encode()),
        (f"{key}.json", json.dumps(fields).encode()),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write four shards, `00000.tar` to `00003.tar`, with 21 samples."""
    numbers = iter(range(sum(SIZES)))
    for shard, size in enumerate(SIZES):
        pack(tmp_path / f"{shard:05}.tar", [member for _ in range(size) for member in sample(next(numbers))])
    return tmp_path


def data(folder: Path, **arguments):
    """Make a data module of the shards in `folder` and set it up for training."""
    arguments = {"train": str(folder / "{00000..00003}.tar"), "batch_size": 2, "mix": 2} | arguments
    module = ImageText(
        **{"source": "webdataset", "caption": "txt", "resize_mode": "crop", "image_size": 16} | arguments
    )
    module.setup("fit")
    return module


def loaders(module, world_size=1):
    """Return the training loaders of all ranks."""
    found = []
    for rank in range(world_size):
        module.trainer = type("Trainer", (), {"world_size": world_size, "global_rank": rank})
        found.append(module.train_dataloader())
    return found


def epoch(loader, number=0):
    loader.sampler.set_epoch(number)
    return [batch.ids.tolist() for batch in loader]


def test_sample(folder):
    """Every id has its own image and caption, for any names of shards, also in another process."""
    shards = [str(folder / "00003.tar"), str(folder / "0000[02].tar"), str(folder / "{1..1}.tar")]
    (folder / "00001.tar").rename(folder / "1.tar")  # behind 00003.tar now
    module = data(folder, train=shards)
    dataset = pickle.loads(pickle.dumps(module.train_dataloader().dataset))
    numbers = [*range(5), *range(6, 21), 5]
    assert len(dataset) == 21
    for i, number in enumerate(numbers):
        one = dataset[i]
        assert (one.id, one.captions, one.phrases, one.negatives) == (i, [f"caption {number}"], [[]], [])
        assert one.image.shape == (3, 16, 16)
        assert (one.image[0] == number).all()
    assert dataset[-1].id == 20
    with pytest.raises(IndexError):
        dataset[21]


def test_caption_from_json(folder):
    batch = next(iter(loaders(data(folder, caption="json.caption"))[0]))
    assert batch.captions == [f"field {i}" for i in batch.ids.tolist()]


def test_layouts(tmp_path):
    """Names with folders, upper case, other members, long names and non-consecutive members are read."""
    long = "x" * 150
    members = [
        *(("a/1.JPG", picture(1, "JPEG")), ("__notes", b"?"), (".hidden.txt", b"?"), ("a/1.seg.png", b"?")),
        *((f"b.c/{long}.webp", picture(2, "WEBP")), ("a/1.txt", "été".encode("utf-8-sig"))),
        *((f"b.c/{long}.txt", b"two"), ("3.cls", b"0"), ("3.jpeg", picture(3, "JPEG")), ("3.txt", b"three")),
    ]
    module = data(tmp_path, train=str(pack(tmp_path / "a.tar", members)))
    found = module.train_dataloader().dataset
    assert [found[i].captions for i in range(len(found))] == [["été"], ["two"], ["three"]]


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (2, 0), (2, 1), (3, 0), (3, 2)])
def test_ranks_and_workers_share_an_epoch(folder, world_size, num_workers):
    """No sample comes twice, only the remainder is dropped, and ranks have equally many batches."""
    shares = [epoch(loader) for loader in loaders(data(folder, num_workers=num_workers), world_size)]
    assert [len(share) for share in shares] == [21 // (2 * world_size)] * world_size
    shown = [i for share in shares for batch in share for i in batch]
    assert len(set(shown)) == len(shown) == 21 // (2 * world_size) * 2 * world_size
    one = epoch(loaders(data(folder, batch_size=2 * world_size))[0])
    steps = [sorted(i for batch in step for i in batch) for step in zip(*shares, strict=True)]
    assert steps == [sorted(batch) for batch in one]


def test_epochs_and_seeds_differ(folder):
    """They differ in the order and in the dropped sample; the same seed and epoch give the same order."""
    loader = loaders(data(folder))[0]
    passes = [epoch(loader, number) for number in range(4)]
    assert len({str(one) for one in passes}) == 4
    left = [({*range(21)} - {i for batch in one for i in batch}).pop() for one in passes]
    assert len(set(left)) > 1
    assert epoch(loaders(data(folder))[0], 3) == passes[3]
    assert epoch(loaders(data(folder, seed=7))[0], 0) not in passes


@pytest.mark.parametrize("mix", [1, 2, 3, 9])
def test_reading_is_local(folder, mix):
    """Samples of `mix` shards are shuffled together before the next shards, so a process reads few files at a time."""
    dataset = data(folder, mix=mix).train_dataloader().dataset
    shard_of = np.repeat(range(4), SIZES)
    first, mixed = set(), False
    for seed in range(20):
        order = dataset.order(torch.Generator().manual_seed(seed), 2).tolist()
        assert sorted(order) == list(range(21))
        shards = shard_of[order].tolist()
        pools = []
        while shards:
            pool = set()
            while shards and (shards[0] in pool or len(pool) < mix):
                pool.add(shards.pop(0))
            pools.append(pool)
        assert sorted(shard for pool in pools for shard in pool) == [0, 1, 2, 3], "a shard is in one pool"
        assert len(pools) == -(-4 // mix)
        first.add(int(shard_of[order[0]]))
        mixed |= sum(a != b for a, b in pairwise(shard_of[order])) > 3
    assert first == {0, 1, 2, 3}, "shards come in any order"
    assert mixed == (mix > 1), "samples of a pool are mixed"


class Death(Callback):
    """Ends the process before a step; without such a step, writes the batches that the process has seen."""

    def __init__(self, step, folder):
        self.step = step
        self.folder = folder

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise InterruptedError

    def on_train_end(self, trainer, module):
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(module.seen))


def fit(module, folder, ckpt_path=None, dies_at=None, epochs=2, every=1, **arguments):
    """Train and return (epoch, batch index, ids) of all batches until the end or until the step `dies_at`.

    A checkpoint is written at `every` step; at the end of every epoch if that is None.
    """
    model = Recorder()
    keep = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=every)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[keep, Death(dies_at, folder)],
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on numbers of workers and on folders in use
        try:
            trainer.fit(model, datamodule=module, ckpt_path=ckpt_path)
        except InterruptedError:
            assert dies_at is not None
    return model.seen


@pytest.mark.parametrize(("workers", "step"), [((0, 2), 2), ((2, 1), 7), ((1, 0), 5)])
def test_killed_and_resumed_with_other_workers(folder, workers, step):
    """A killed and resumed run shows the same batches in the same order as an uninterrupted run.

    A checkpoint of the middle of the first epoch, of the second, and of the first one's last batch.
    """
    before, after = (data(folder, batch_size=4, num_workers=number) for number in workers)
    seen = fit(before, folder / "killed", dies_at=step)
    assert len(seen) == step
    seen += fit(after, folder / "resumed", folder / "killed" / f"step={step}.ckpt")
    assert seen == fit(data(folder, batch_size=4), folder / "whole")
    for number in (0, 1):
        shown = [i for of_epoch, _, ids in seen for i in ids if of_epoch == number]
        assert len(set(shown)) == len(shown) == 20


@pytest.mark.slow
@pytest.mark.thorough
def test_two_processes_go_on_as_one(folder):
    """Each step shows the same samples, with fewer devices and more workers."""
    spawned = {"devices": 2, "strategy": "ddp_spawn"}
    fit(data(folder), folder / "two", max_steps=2, **spawned)
    shares = [json.loads((folder / "two" / f"{rank}.json").read_text()) for rank in (0, 1)]
    seen = [(*step[0][:2], step[0][2] + step[1][2]) for step in zip(*shares, strict=True)]
    seen += fit(data(folder, batch_size=4, num_workers=1), folder / "one", folder / "two" / "step=2.ckpt")
    whole = fit(data(folder, batch_size=4), folder / "whole")
    assert [(*step, sorted(ids)) for *step, ids in seen] == [(*step, sorted(ids)) for *step, ids in whole]


def test_resuming_with_other_shards_is_refused(folder):
    """Other shards are refused in the middle of an epoch and accepted at its end."""
    fit(data(folder, batch_size=4), folder / "middle", dies_at=2)
    fit(data(folder, batch_size=4), folder / "end", epochs=1, every=None)
    for options, message in (
        ({"mix": 1}, "in another order: .*seed"),
        ({"seed": 1}, "in another order"),
        ({"train": str(folder / "*[012].tar")}, "21 samples, but now there are 18"),
        (
            {"batch_size": 2},
            r"4 pairs per batch over all devices, but now there are 2 on each of 1 .*: set data.batch_size to 4",
        ),
    ):
        module = data(folder, **{"batch_size": 4} | options)
        with pytest.raises(ValueError, match=message):
            fit(module, folder / "refused", folder / "middle" / "step=2.ckpt")
        seen = fit(module, folder / "allowed", folder / "end" / "step=5.ckpt")
        assert seen == [(1, number, ids) for number, ids in enumerate(epoch(module.train_dataloader(), 1))]


def test_index_is_kept(folder, monkeypatch):
    """The index is reused for unchanged shards and rebuilt only for changed ones."""
    read = []

    def counted(path, columns):
        read.append(path.name)
        return find_samples(path, columns)

    find_samples = tar_index.find_samples
    monkeypatch.setattr(tar_index, "find_samples", counted)
    whole = epoch(loaders(data(folder))[0])
    assert read == [f"0000{i}.tar" for i in range(4)]
    read.clear()
    assert epoch(loaders(data(folder))[0]) == whole
    assert read == []
    pack(folder / "00001.tar", [*sample(5), *sample(6)])
    assert len(data(folder).train_dataloader().dataset) == 22
    assert read == ["00001.tar"]
    read.clear()
    os.utime(folder / "00002.tar", ns=(0, 0))
    data(folder)
    assert read == ["00002.tar"]
    read.clear()
    data(folder, train=str(folder / "00003.tar"))  # another selection leaves the rest in the index
    data(folder, caption="json.caption")
    assert read == [f"0000{i}.tar" for i in range(4)]
    read.clear()
    data(folder)
    assert read == []


@pytest.mark.parametrize("obstacle", ["folder", "garbage"])
def test_index_that_cannot_be_kept_or_read(folder, obstacle, capsys):
    """The shards are indexed anyway, and no temporary file remains."""
    kept = folder / ".patchword.image+txt.npz"
    kept.mkdir() if obstacle == "folder" else kept.write_bytes(b"PK garbage")
    assert len(data(folder).train_dataloader().dataset) == 21
    assert sorted(path.name for path in folder.iterdir()) == [kept.name, *(f"0000{i}.tar" for i in range(4))]
    if obstacle == "garbage":
        assert np.load(kept)["counts"].tolist() == list(SIZES)


@pytest.mark.parametrize(
    "changed",
    [
        {"places": np.full((21, 5), 2**31, np.uint32)},
        {"places": np.zeros((20, 5), np.uint32)},
        {"places": np.zeros((21, 3), np.uint32)},
        {"places": np.zeros((21, 5))},
        {"counts": np.array([-1, 2])},
        {"counts": np.array([5])},
        {"stamps": np.zeros((4, 3), np.int64)},
        {"names": np.zeros(4)},
        {"names": np.array({})},
    ],
)
def test_index_that_somebody_has_changed(folder, changed):
    """An index with wrong types, shapes or positions outside of a tar is not used; the tars are indexed again."""
    data(folder)
    kept = folder / ".patchword.image+txt.npz"
    before = dict(np.load(kept))
    np.savez(kept, **(before | changed))
    data(folder)
    after = np.load(kept)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


def test_few_files_are_open(folder):
    """There can be more shards than files that a process can open."""
    handles = Handles(limit=2)
    before = len(os.listdir("/dev/fd"))
    for _ in range(2):
        for i in range(4):
            assert handles.read(folder / f"0000{i}.tar", 257, 5) == b"ustar"
    assert len(os.listdir("/dev/fd")) == before + 2
    del handles
    assert len(os.listdir("/dev/fd")) == before


def bad(folder: Path, name: str) -> str:
    """Write the wrong tar of this name and return its path."""
    path, good = folder / "bad.tar", sample(1)
    if name == "compressed":
        return str(pack(path, good, "w:gz"))
    if name == "no tar":
        path.write_bytes(b"hello" * 1000)
    elif name == "no samples":
        pack(path, [("readme", b"hello")])
    else:
        whole = pack(path, [*good, *sample(2)]).read_bytes()
        path.write_bytes(whole[: {"cut in a member": 600, "cut in a header": 3300, "cut between members": 3072}[name]])
    return str(path)


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "compressed": r"bad\.tar is compressed \(gzip\).* decompress it",
        "no tar": r"bad\.tar is not a complete tar",
        "cut in a member": r"bad\.tar is not a complete tar \(unexpected end of data\): copy or pack it again",
        "cut in a header": r"bad\.tar is not a complete tar \(it is cut off\)",
        "cut between members": r"bad\.tar is not a complete tar \(it is cut off\)",
        "no samples": r"data\.train .*bad\.tar\) has no rows",
    }.items(),
)
def test_wrong_tar(folder, name, message):
    """The error comes before training and names the tar."""
    with pytest.raises(ValueError, match=message):
        data(folder, train=bad(folder, name))


GOOD = sample(1)
BROKEN = {
    "no image": ([GOOD[1]], "it has no image"),
    "no caption": ([GOOD[0], GOOD[2]], "it has no txt"),
    "a caption twice": ([*GOOD, GOOD[1]], "it has more than one txt"),
    "two images": ([*GOOD, ("000000001.jpg", picture(1, "JPEG"))], "it has more than one image"),
    "empty file": ([(GOOD[0][0], b""), GOOD[1]], "it has no image"),
    "empty caption": ([GOOD[0], (GOOD[1][0], b" \n")], "its caption is empty"),
    "truncated image": ([(GOOD[0][0], GOOD[0][1][:60]), GOOD[1]], "the image cannot be read"),
    "no image in it": ([(GOOD[0][0], b"hello"), GOOD[1]], "none of the supported formats"),
    "further dots": ([("000000001.0.png", GOOD[0][1]), ("000000001.0.txt", b"a")], "key ends at the first dot"),
}


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("streaming", [False, True])
def test_broken_samples_are_skipped_and_named(tmp_path, streaming, where):
    """This holds for all kinds of errors, also in the first sample; more than `max_broken` raise an error."""
    whole = [member for number in range(50, 54) for member in sample(number)]
    named = [
        (key, [(name.replace("000000001", key), content) for name, content in members], reason)
        for key, (members, reason) in ((f"{i:09}", one) for i, one in enumerate(BROKEN.values(), start=1))
    ]
    members = [member for _, of, _ in named for member in of]
    path = pack(tmp_path / "a.tar", members + whole if where == "first" else whole + members)
    options = {"train": str(path), "streaming": streaming, "steps_per_epoch": 7 if streaming else None, "seed": 3}
    batches = [*data(tmp_path, **options).train_dataloader()]
    assert {c for batch in batches for c in batch.captions} <= {f"caption {number}" for number in range(50, 54)}
    skipped = {one.key: one.reason for batch in batches for one in batch.skipped}
    for key, _, reason in named:
        (found,) = [why for name, why in skipped.items() if f"a.tar: {key}.*" in name]
        assert reason in found, (key, found)
    options |= {"batch_size": 13, "steps_per_epoch": 1 if streaming else None, "max_broken": 3}
    with pytest.raises(ValueError, match=r"data\.max_broken = 3 samples are broken; the first: .*a\.tar: 00000000\d"):
        next(iter(data(tmp_path, **options).train_dataloader()))


def test_json_that_is_none(folder):
    """A sample with invalid JSON is broken; a field that no sample has is an error in the options."""
    path = pack(folder / "bad.tar", [*sample(2), GOOD[0], (GOOD[2][0], b"{"), *sample(3)])
    dataset = data(folder, train=str(path), caption="json.caption").train_dataloader().dataset
    assert "its json is not JSON" in dataset[1].skipped[0].reason
    with pytest.raises(ValueError, match=r"has no column 'json\.title', only __url__, __key__, png, image, txt, json"):
        data(folder, caption="json.title")


def test_members_of_several_formats(tmp_path):
    """Samples can differ in the image format and in the type of a record's field."""
    jpg = [("1.jpg", picture(1, "JPEG")), ("1.txt", b"one"), ("1.json", b'{"score": null, "caption": "uno"}')]
    png = [("2.png", picture(2)), ("2.txt", b"two"), ("2.json", b'{"score": 2.5, "caption": "due"}')]
    path = str(pack(tmp_path / "a.tar", jpg + png))
    for caption, expected in (("txt", ["one", "two"]), ("json.caption", ["uno", "due"])):
        dataset = data(tmp_path, train=path, caption=caption).train_dataloader().dataset
        assert [dataset[i].captions[0] for i in range(2)] == expected
        stream = data(tmp_path, train=path, caption=caption, streaming=True, steps_per_epoch=1).train_dataloader()
        assert sorted(next(iter(stream)).captions) == sorted(expected)


def test_phrases_and_negatives_of_a_record(tmp_path):
    """Records in tars can contain phrases and negatives, as tables can."""
    phrases = [{"start": 0, "end": 3, "boxes": [[0, 0, 8, 8], [16, 0, 24, 8]], "type": "animals"}]
    record = {"phrases": phrases, "wrong": ["a dog", "a cow"]}
    path = str(
        pack(tmp_path / "a.tar", [("1.jpg", picture(1)), ("1.txt", b"a cat"), ("1.json", json.dumps(record).encode())])
    )
    options = {"phrases": "data:json.phrases", "negatives": "json.wrong"}
    module = data(tmp_path, train=path, val=path, **options)
    found = module.split("val")[0]
    assert found.negatives == ["a dog", "a cow"]
    assert (found.phrases[0][0].type, len(found.phrases[0][0].boxes)) == ("animals", 2)


def test_tar_that_changed_under_way(folder):
    """Reading a changed tar raises an error."""
    dataset = data(folder).train_dataloader().dataset
    pack(folder / "00002.tar", sample(6))
    with pytest.raises(ValueError, match=r"00002\.tar has changed since it was indexed"):
        dataset[17]
    (folder / "00003.tar").unlink()
    with pytest.raises(ValueError, match=r"00003\.tar cannot be read \(No such file or directory\)"):
        dataset[20]


def test_mix_must_be_positive(folder):
    with pytest.raises(ValueError, match="mix must be 1"):
        data(folder, mix=0)


def test_a_shard_named_twice(folder):
    """The samples of such a shard would come twice in an epoch."""
    with pytest.raises(ValueError, match=r"data\.train names .*00001\.tar twice"):
        data(folder, train=[str(folder / "*.tar"), str(folder / "00001.tar")])


def test_splits(folder):
    """Evaluation shows all samples in order; a missing split raises an error that names it."""
    module = data(folder, val=str(folder / "00002.tar"), batch_size=5)
    assert [batch.ids.tolist() for batch in module.val_dataloader()] == [[*range(5)], [*range(5, 10)], [10, 11]]
    with pytest.raises(ValueError, match=r"data\.test is null"):
        module.setup("test")
    assert data(folder).val_dataloader is None


def test_one_process_indexes(folder):
    """One process stores the index before the others are set up, so that they find it."""
    module = ImageText("webdataset", str(folder / "*.tar"), caption="txt")
    module.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    module.trainer.state.fn = TrainerFn.FITTING
    module.prepare_data()
    assert (folder / ".patchword.image+txt.npz").is_file()
