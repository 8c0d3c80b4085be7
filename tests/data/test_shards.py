"""Shards: every sample of an epoch once, whatever ranks, workers and interruptions; one clear message for a mistake."""

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

from patchword.cli import main
from patchword.data import tar_index
from patchword.data.handles import Handles
from patchword.data.shards import CaptionShards
from tests.data.test_loader import Recorder

ROOT = Path(__file__).parents[2]
SIZES = (5, 1, 12, 3)  # samples of the shards


def picture(number: int, kind: str = "PNG") -> bytes:
    """An image whose red is its number."""
    file = io.BytesIO()
    Image.new("RGB", (24, 20), (number, 90, 200)).save(file, kind)
    return file.getvalue()


def pack(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    """A tar of these names and contents."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def sample(number: int) -> list[tuple[str, bytes]]:
    """The members of a sample as img2dataset writes them."""
    key = f"{number:09}"
    fields = {"caption": f"field {number}", "url": "none", "width": 24}
    return [
        (f"{key}.png", picture(number)),
        (f"{key}.txt", f"caption {number}\n".encode()),
        (f"{key}.json", json.dumps(fields).encode()),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four shards, `00000.tar` to `00003.tar`, 21 samples."""
    numbers = iter(range(sum(SIZES)))
    for shard, size in enumerate(SIZES):
        pack(tmp_path / f"{shard:05}.tar", [member for _ in range(size) for member in sample(next(numbers))])
    return tmp_path


def data(folder: Path, **arguments):
    """The shards of `folder`, set up to train."""
    arguments = {"train": str(folder / "{00000..00003}.tar"), "image_size": 16, "batch_size": 2, "mix": 2} | arguments
    module = CaptionShards(**arguments)
    module.setup("fit")
    return module


def loaders(module, world_size=1):
    """The training loaders of all ranks."""
    found = []
    for rank in range(world_size):
        module.trainer = type("Trainer", (), {"world_size": world_size, "global_rank": rank})
        found.append(module.train_dataloader())
    return found


def epoch(loader, number=0):
    loader.sampler.set_epoch(number)
    return [batch.ids.tolist() for batch in loader]


def test_sample(folder):
    """Every id leads to its own image and caption, however the shards are named, and in another process, too."""
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
    batch = next(iter(loaders(data(folder, caption="json:caption"))[0]))
    assert batch.captions == [f"field {i}" for i in batch.ids.tolist()]


def test_layouts(tmp_path):
    """Folders in names, upper case, other members, long names, members apart from one another."""
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
    """No sample twice, none lost but the remainder, equally many batches on all ranks, the same for any workers."""
    shares = [epoch(loader) for loader in loaders(data(folder, num_workers=num_workers), world_size)]
    assert [len(share) for share in shares] == [21 // (2 * world_size)] * world_size
    shown = [i for share in shares for batch in share for i in batch]
    assert len(set(shown)) == len(shown) == 21 // (2 * world_size) * 2 * world_size
    one = epoch(loaders(data(folder, batch_size=2 * world_size))[0])
    steps = [sorted(i for batch in step for i in batch) for step in zip(*shares, strict=True)]
    assert steps == [sorted(batch) for batch in one]


def test_epochs_and_seeds_differ(folder):
    """In order and in the sample that is left out; the same seed and epoch give the same order."""
    loader = loaders(data(folder))[0]
    passes = [epoch(loader, number) for number in range(4)]
    assert len({str(one) for one in passes}) == 4
    left = [({*range(21)} - {i for batch in one for i in batch}).pop() for one in passes]
    assert len(set(left)) > 1
    assert epoch(loaders(data(folder))[0], 3) == passes[3]
    assert epoch(loaders(data(folder, seed=7))[0], 0) not in passes


@pytest.mark.parametrize("mix", [1, 2, 3, 9])
def test_reading_is_local(folder, mix):
    """The samples of `mix` shards come, mixed, before those of the next: a process reads from few files at once."""
    dataset = data(folder, mix=mix).train_dataloader().dataset
    shard_of = np.repeat(range(4), SIZES)
    first, mixed = set(), False
    for seed in range(20):
        order = dataset.order(torch.Generator().manual_seed(seed)).tolist()
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
    """Ends the process's training before a step; without one, writes what the process has seen."""

    def __init__(self, step, folder):
        self.step = step
        self.folder = folder

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise InterruptedError

    def on_train_end(self, trainer, module):
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(module.seen))


def fit(module, folder, ckpt_path=None, dies_at=None, epochs=2, every=1, **arguments):
    """(epoch, batch's number, ids) for all training batches until the end, or until the step at which it dies.

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
    """Through a Trainer: every sample of each epoch exactly once, in the order of a run that nobody interrupts.

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
def test_two_processes_go_on_as_one(folder):
    """Each step shows what it would have shown, although the devices are fewer and the workers more."""
    spawned = {"devices": 2, "strategy": "ddp_spawn"}
    fit(data(folder), folder / "two", max_steps=2, **spawned)
    shares = [json.loads((folder / "two" / f"{rank}.json").read_text()) for rank in (0, 1)]
    seen = [(*step[0][:2], step[0][2] + step[1][2]) for step in zip(*shares, strict=True)]
    seen += fit(data(folder, batch_size=4, num_workers=1), folder / "one", folder / "two" / "step=2.ckpt")
    whole = fit(data(folder, batch_size=4), folder / "whole")
    assert [(*step, sorted(ids)) for *step, ids in seen] == [(*step, sorted(ids)) for *step, ids in whole]


def test_resuming_with_other_shards_is_refused(folder):
    """In the middle of an epoch; at its end they may change."""
    fit(data(folder, batch_size=4), folder / "middle", dies_at=2)
    fit(data(folder, batch_size=4), folder / "end", epochs=1, every=None)
    for options, message in (
        ({"mix": 1}, "in another order: give the same seed and the same options"),
        ({"seed": 1}, "in another order"),
        ({"train": str(folder / "*[012].tar")}, "21 samples, and now there are 18: give the same data"),
        (
            {"batch_size": 2},
            r"4 pairs in a batch of all devices, and now there are 2 on each of 1 .*: set data.batch_size to 4",
        ),
    ):
        module = data(folder, **{"batch_size": 4} | options)
        with pytest.raises(ValueError, match=message):
            fit(module, folder / "refused", folder / "middle" / "step=2.ckpt")
        seen = fit(module, folder / "allowed", folder / "end" / "step=5.ckpt")
        assert seen == [(1, number, ids) for number, ids in enumerate(epoch(module.train_dataloader(), 1))]


def test_index_is_kept(folder, monkeypatch):
    """It is read again while the shards are as they were, and made again of those alone that changed."""
    read = []

    def counted(path, caption):
        read.append(path.name)
        return find_samples(path, caption)

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
    data(folder, caption="json:caption")
    assert read == [f"0000{i}.tar" for i in range(4)]
    read.clear()
    data(folder)
    assert read == []


@pytest.mark.parametrize("obstacle", ["folder", "garbage"])
def test_index_that_cannot_be_kept_or_read(folder, obstacle, capsys):
    """Then the shards are indexed all the same, and nothing is left lying about."""
    kept = folder / ".patchword.txt.npz"
    kept.mkdir() if obstacle == "folder" else kept.write_bytes(b"PK garbage")
    assert len(data(folder).train_dataloader().dataset) == 21
    assert sorted(path.name for path in folder.iterdir()) == [kept.name, *(f"0000{i}.tar" for i in range(4))]
    if obstacle == "garbage":
        assert np.load(kept)["counts"].tolist() == list(SIZES)


def test_few_files_are_open(folder):
    """A process may open some thousand files; shards may be more."""
    handles = Handles(limit=2)
    before = len(os.listdir("/dev/fd"))
    for _ in range(2):
        for i in range(4):
            assert handles.read(folder / f"0000{i}.tar", 257, 5) == b"ustar"
    assert len(os.listdir("/dev/fd")) == before + 2
    del handles
    assert len(os.listdir("/dev/fd")) == before


def bad(folder: Path, name: str) -> str:
    """The shard of a mistake, as the option that names it."""
    path, good = folder / "bad.tar", sample(1)
    if name == "no such file":
        return str(path)
    if name == "nothing matches":
        return str(folder / "*.tarr")
    if name == "a file of a range is missing":
        return str(folder / "{00002..00004}.tar")
    if name == "an empty range":
        return str(folder / "{3..2}.tar")
    if name == "a folder":
        return str(folder)
    if name == "compressed":
        return str(pack(path, good, "w:gz"))
    if name == "no tar":
        path.write_bytes(b"hello" * 1000)
    elif name.startswith("cut"):
        whole = pack(path, [*good, *sample(2)]).read_bytes()
        path.write_bytes(whole[: {"cut in a member": 600, "cut in a header": 3300, "cut between members": 3072}[name]])
    else:
        members = {
            "no image": [good[1]],
            "no caption": [good[0], good[2]],
            "a name twice": [*good, good[1]],
            "no bytes": [good[0], (good[1][0], b"")],
            "two images": [*good, ("000000001.jpg", picture(1, "JPEG"))],
            "no samples": [("readme", b"hello")],
            "truncated image": [(good[0][0], good[0][1][:60]), good[1]],
            "in a worker": [(good[0][0], b"hello"), good[1]],
            "no image in it": [(good[0][0], b"hello"), good[1]],
            "empty caption": [good[0], (good[1][0], b" \n")],
            "not UTF-8": [good[0], (good[1][0], b"\xff\xfe")],
        }
        pack(path, members[name])
    return str(path)


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "no such file": r"data\.train: there is no file .*bad\.tar: correct",
        "nothing matches": r"data\.train: there is no file .*\*\.tarr: correct",
        "a file of a range is missing": r"there is no file .*00004\.tar, of .*\{00002\.\.00004\}\.tar",
        "an empty range": r"the range \{3\.\.2\} of .* is empty",
        "a folder": r"is a folder: name the files in it, as .*/\*\.tar",
        "compressed": r"bad\.tar is compressed \(gzip\).* decompress it",
        "no tar": r"bad\.tar is no whole tar",
        "cut in a member": r"bad\.tar is no whole tar \(unexpected end of data\): copy or pack it again",
        "cut in a header": r"bad\.tar is cut off or damaged behind byte 3072",
        "cut between members": r"bad\.tar is cut off or damaged behind byte 3072",
        "no image": r"bad\.tar: sample 000000001 has no image \(jpg, jpeg, png, webp\)",
        "no caption": r"bad\.tar: sample 000000001 has no member 000000001\.txt: .*data\.caption",
        "a name twice": r"bad\.tar: sample 000000001 has a second caption, 000000001\.txt: remove one",
        "two images": r"bad\.tar: sample 000000001 has a second image, 000000001\.jpg: remove one",
        "no bytes": r"bad\.tar: sample 000000001 has an empty caption, 000000001\.txt: fill it",
        "no samples": r"data\.train: the shards of .*bad\.tar hold no samples",
    }.items(),
)
def test_wrong_shard(folder, name, message):
    """Found before training, named."""
    with pytest.raises(ValueError, match=message):
        data(folder, train=bad(folder, name))


@pytest.mark.parametrize(
    ("name", "caption", "message"),
    [
        ("in a worker", "txt", "the image cannot be read"),
        ("truncated image", "txt", "the image cannot be read .*repair or remove the sample"),
        ("no image in it", "txt", r"the image cannot be read \(it is in no format that Pillow knows\)"),
        ("empty caption", "txt", "the caption is empty"),
        ("not UTF-8", "txt", "the caption is not UTF-8 text"),
        ("two images", "json:title", "has no text 'title', but caption, url, width: set data.caption"),
        ("two images", "json:width", "has no text 'width'"),
    ],
)
def test_wrong_sample(folder, name, caption, message):
    """Found when it is read, in a worker, too; named with its shard."""
    num_workers = int(name == "in a worker")
    train = bad(folder, name) if caption == "txt" else str(folder / "00000.tar")
    loader = data(folder, train=train, caption=caption, batch_size=1, num_workers=num_workers).train_dataloader()
    with pytest.raises(ValueError, match=rf"\.tar: sample 00000000\d: .*{message}"):
        list(loader)


def test_shard_that_changed_under_way(folder):
    """It is not read as if it were whole."""
    dataset = data(folder).train_dataloader().dataset
    pack(folder / "00002.tar", sample(6))
    with pytest.raises(ValueError, match=r"00002\.tar: sample .* the shard is shorter than it was when it was indexed"):
        dataset[17]
    (folder / "00002.tar").write_bytes(b"hello" * 1000)
    with pytest.raises(ValueError, match=r"00002\.tar is no whole tar"):
        dataset[16]
    (folder / "00003.tar").unlink()
    with pytest.raises(ValueError, match=r"00003\.tar cannot be read \(No such file or directory\)"):
        dataset[20]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": []}, "data.train is an empty list"),
        ({"mix": 0}, "mix must be 1"),
        ({"image_size": 0}, "image_size must be a positive"),
        ({"caption": "json"}, "caption must be a member such as txt, or json:FIELD, not 'json'"),
        ({"caption": "txt:title"}, "caption must be a member"),
        ({"batch_size": 22}, "21 training samples do not fill a batch of 22"),
    ],
)
def test_wrong_option(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        data(folder, **arguments).train_dataloader()


def test_a_shard_named_twice(folder):
    """Its samples would come twice in an epoch."""
    with pytest.raises(ValueError, match=r"data\.train names .*00001\.tar twice"):
        data(folder, train=[str(folder / "*.tar"), str(folder / "00001.tar")])


def test_splits(folder):
    """Evaluation shows all samples in their order; what a command needs and does not have is named."""
    module = data(folder, val=str(folder / "00002.tar"), batch_size=5)
    assert [batch.ids.tolist() for batch in module.val_dataloader()] == [[*range(5)], [*range(5, 10)], [10, 11]]
    with pytest.raises(ValueError, match=r"data\.test is null: say which shards it is"):
        module.setup("test")
    assert data(folder).val_dataloader is None
    with pytest.raises(ValueError, match=r"data\.val is null"):
        data(folder).setup("validate")


def test_one_process_indexes(folder):
    """Before the others are set up, so that they find the index that it keeps."""
    module = CaptionShards(str(folder / "*.tar"))
    module.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    module.trainer.state.fn = TrainerFn.FITTING
    module.prepare_data()
    assert (folder / ".patchword.txt.npz").is_file()


@pytest.mark.filterwarnings("ignore:the tokenizer does not know")
def test_command_line(folder, monkeypatch, capsys):
    """Trains, stops in the middle of an epoch, resumes with workers, tests; a mistake is one line."""
    monkeypatch.chdir(folder)
    common = [
        *("--config", str(ROOT / "configs/clip.yaml"), "--data", "CaptionShards", "--data.train", "{00000..00003}.tar"),
        *("--data.val", "00002.tar", "--data.test", "['0000[01].tar', 00003.tar]", "--data.image_size", "64"),
        *("--model.encoder.init_args.image.init_args.name", "mobilenetv4_conv_small_050"),
        *("--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1", "--trainer.max_epochs", "1"),
        *("--trainer.accelerator", "cpu", "--checkpoint.every_n_train_steps", "3", "--maps.samples", "0"),
    ]
    main(["fit", *common, "--data.batch_size", "4", "--data.num_workers", "0", "--trainer.max_steps", "3"])
    path = "runs/clip/version_0/checkpoints/last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 3
    with pytest.raises(SystemExit):
        main(["fit", *common, "--data.batch_size", "5", "--data.num_workers", "0", "--ckpt_path", path])
    assert "set data.batch_size to 4" in capsys.readouterr().err
    main(["fit", *common, "--data.batch_size", "4", "--data.num_workers", "1", "--ckpt_path", path])
    path = "runs/clip/version_2/checkpoints/last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 5
    main(["test", *common, "--data.batch_size", "4", "--ckpt_path", path])
    (results,) = Path("runs").rglob("results.json")
    assert json.loads(results.read_text())["metrics"]["test/retrieval/images"] == 9
