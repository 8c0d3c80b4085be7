"""Data sets on the hub: every layout, the cache, commits, and a clear one-line error if nothing can be read."""

from __future__ import annotations

import gc
import shutil
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread

import datasets
import huggingface_hub
import pytest

from patchword.data.tables.image_text import ImageText
from patchword.errors import UserError
from patchword.provenance.hub import find
from tests import hub as local
from tests.data import formats
from tests.data.formats import number

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

TARS = {"image": "jpg", "caption": "txt"}
STREAM = {"streaming": True, "steps_per_epoch": 4}
SOURCES = {
    "parquet": {"source": "me/pictures", "train": "train"},
    "parquet, a configuration": {"source": "me/two", "train": "train", "config": "large"},
    "parquet, a part": {"source": "me/pictures", "train": "train[:8]"},
    "webdataset": {"source": "me/tars", "train": "train", **TARS},
    "imagefolder": {"source": "me/folder", "train": "train"},
    "a branch of a script": {"source": "me/script@refs/convert/parquet", "train": "train"},
}


def dotted_tar(path: Path, keys: list[str]) -> None:
    """Write a tar of eight samples with these keys."""
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for n, key in enumerate(keys):
            for extension, content in {"jpg": formats.jpeg(n), "txt": f"caption {n}".encode()}.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))


def lay_out(folder: Path) -> None:
    """Write repositories in every layout; all training splits contain pictures 0 to 7."""
    formats.hub_folder(folder / "me/pictures")
    formats.webdataset(folder / "me/tars")
    for name, keys in {"late_dots": [*"abcdefg", "q.0"], "early_dots": ["q.0", *"abcdefg"]}.items():
        dotted_tar(folder / f"me/{name}/00000.tar", keys)
    formats.imagefolder(folder / "me/folder/train")
    for name, numbers in {"small": range(2), "large": range(8)}.items():
        formats.hub_parquet(folder / f"me/two/{name}/train-00000-of-00001.parquet", numbers)
    paths = "".join(f"- config_name: {n}\n  data_files: {n}/*.parquet\n" for n in ("small", "large"))
    (folder / "me/two/README.md").write_text(f"---\nconfigs:\n{paths}---\n")
    formats.hub_folder(folder / "me/gated")
    formats.hub_folder(folder / "me/closed")
    (folder / "me/script").mkdir()
    (folder / "me/script/script.py").write_text("raise SystemExit('run')")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Start a hub with all repositories."""
    folder = tmp_path_factory.mktemp("hub")
    lay_out(folder / "datasets")
    hub = local.Hub(folder)
    hub.refused = {"me/gated": (401, "GatedRepo"), "me/closed": (403, "GatedRepo")}
    formats.hub_folder(folder / "datasets/me/converted")
    hub.refs["me/script@refs/convert/parquet"] = hub.commit("datasets", "me/converted")
    yield hub
    hub.stop()
    gc.collect()  # `datasets` leaves files and connections open


@pytest.fixture
def home(hub, tmp_path, monkeypatch):
    """Use an empty cache, and do not wait after failed connections."""
    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    local.use(hub, tmp_path / "home", monkeypatch)
    hub.requests.clear()
    hub.sent.clear()
    yield tmp_path / "home"
    hub.cut.clear()


def data(stage="fit", **options) -> ImageText:
    """Make a data module for images of 16 pixels."""
    module = ImageText(**{"resize_mode": "crop", "image_size": 16, "batch_size": 2} | options)
    module.setup(stage)
    return module


@pytest.mark.parametrize("name", SOURCES)
def test_every_layout_by_its_name(hub, home, name):
    """A table and a stream show each picture with its caption; the stream leaves no copy, and commits are recorded."""
    options = SOURCES[name]
    stream = data(**options, **STREAM) if "[" not in options["train"] else None
    if stream is not None:
        shown = [
            sample for batch in stream.train_dataloader() for sample in zip(batch.images, batch.captions, strict=True)
        ]
        assert sorted(c for _, c in shown) == [f"caption {i}" for i in range(8)]
        assert all(round(float(image[0].float().mean()) / 10) == int(caption[8:]) for image, caption in shown)
        assert not list(home.rglob("*.arrow"))
    table = data(**options)
    samples = table.split("train")
    assert sorted(number(samples[i]) for i in range(8)) == [*range(8)]
    assert all(samples[i].captions == [f"caption {number(samples[i])}"] for i in range(8))
    plain, _, revision = options["source"].partition("@")
    commit = hub.refs[options["source"]] if revision else hub.commit("datasets", plain)
    assert table.commits == {f"datasets/{plain}": commit}
    assert stream is None or stream.commits == table.commits


@pytest.mark.parametrize("stream", [{}, STREAM])
def test_tars_with_dots_in_their_keys(hub, home, stream):
    """Such samples are listed with the reason, or refused with a remedy that works: their tars by addresses."""
    options = {"batch_size": 8, "train": "train", **TARS, **({**stream, "steps_per_epoch": 1} if stream else {})}
    (batch,) = data(**options, source="me/late_dots").train_dataloader()
    reasons = {"it has no txt (a key ends at the first dot of a name)"}
    assert {one.reason for one in batch.skipped} == reasons
    with pytest.raises(UserError, match=r"names have further dots, .* hf://datasets/OWNER/NAME/"):
        data(**options, source="me/early_dots")
    by_address = options | {"train": "hf://datasets/me/early_dots/{00000..00000}.tar", "source": "webdataset"}
    (batch,) = data(**by_address).train_dataloader()
    assert {one.reason for one in batch.skipped} == reasons
    assert {*batch.captions} <= {f"caption {n}" for n in range(1, 8)}


def test_a_second_run_reads_the_cache(hub, home):
    """It asks for the commit but downloads no file again; it works even without a connection."""
    first = data(**SOURCES["parquet"]).fingerprint("train")
    assert hub.sent["train-00000-of-00001.parquet"] > 0
    hub.sent.clear()
    assert data(**SOURCES["parquet"]).fingerprint("train") == first
    assert not hub.sent


def test_splits_are_of_one_commit_and_revisions_stay(hub, home):
    """A push creates a new commit with a new fingerprint; the old commit can still be named."""
    repository = hub.folder / "datasets/me/changing"
    formats.hub_folder(repository)
    old = hub.commit("datasets", "me/changing")
    options = {"source": "me/changing", "train": "train", "val": "validation"}
    before = data(**options, test="train")
    formats.hub_parquet(repository / "data/train-00000-of-00001.parquet", [5, 6])
    assert len(before.split("test")) == 8, "a split that is opened later is of the same commit"
    after, named = data(**options), data(**options | {"source": f"me/changing@{old}"})
    assert before.commits == named.commits == {"datasets/me/changing": old}
    assert after.commits == {"datasets/me/changing": hub.commit("datasets", "me/changing")} != before.commits
    assert [number(after.split("train")[i]) for i in range(2)] == [5, 6]
    assert before.fingerprint("train") == named.fingerprint("train") != after.fingerprint("train")


def test_a_stream_downloads_what_it_reads(hub, home):
    """Of thirty tars, two batches fetch only about ten, which are shuffled together, and nothing is kept."""
    formats.webdataset(hub.folder / "datasets/me/many", shards=30, size=3)
    module = data(source="me/many", train="train", streaming=True, steps_per_epoch=2, shuffle_buffer=2, **TARS)
    assert len([*module.train_dataloader()]) == 2
    assert len([name for name in hub.sent if name.endswith(".tar")]) < 16
    assert not list(home.rglob("*.tar"))


def test_without_a_connection_the_cache_does(hub, home, monkeypatch, waits):
    """Offline runs read the last commit by its name or its hash, but no other commit."""
    repository = hub.folder / "datasets/me/kept"
    formats.hub_folder(repository)
    old = hub.commit("datasets", "me/kept")
    options = {"source": "me/kept", "train": "train"}
    first = data(**options)
    local.offline(monkeypatch)
    again = data(**options)
    assert (again.commits, again.fingerprint("train")) == (first.commits, first.fingerprint("train"))
    local.offline(monkeypatch, False)
    hub.stop()
    try:
        assert data(**options).commits == first.commits
    finally:
        hub.start()
    hub.refused["me/kept"] = (503, "")
    assert data(**options).commits == first.commits
    del hub.refused["me/kept"]
    assert not waits
    formats.hub_parquet(repository / "data/train-00000-of-00001.parquet", [5, 6])
    assert data(**options).commits != first.commits
    new = data(**options, **STREAM).commits
    local.offline(monkeypatch)
    assert len(data(**options).split("train")) == 2
    assert data(**options).commits == new
    named = data(**options | {"source": f"me/kept@{old}"})
    assert (named.commits, named.fingerprint("train")) == (first.commits, first.fingerprint("train"))
    shutil.rmtree(next(home.rglob(f"0.0.0/{old}")))
    with pytest.raises(UserError, match=f"the hub does not answer, and .*me___kept has no copy of commit {old}: try"):
        data(**options | {"source": f"me/kept@{old}"})


def test_without_a_connection_the_configuration_counts(hub, home, monkeypatch):
    """The specified configuration is read, not the last one, and it must be specified if there are several."""
    large, small = SOURCES["parquet, a configuration"], SOURCES["parquet, a configuration"] | {"config": "small"}
    data(**large)
    local.offline(monkeypatch)
    with pytest.raises(UserError, match=r"me___two has no copy of commit .* of the configuration small: try again"):
        data(**small)
    local.offline(monkeypatch, False)
    data(**small)
    local.offline(monkeypatch)
    assert [len(data(**options).split("train")) for options in (large, small)] == [8, 2]
    with pytest.raises(UserError, match=r"set data\.config to one of \['large', 'small'\]"):
        data(source="me/two", train="train")


@pytest.fixture
def waits(monkeypatch):
    """Record the waiting times before retries instead of waiting."""
    found = []
    monkeypatch.setattr("time.sleep", found.append)
    return found


def test_a_silent_hub_and_one_that_redirects_without_end(hub, home, waits, monkeypatch):
    """The one-line error comes after fifteen seconds and five requests; a copy in the cache is used immediately."""
    patient = huggingface_hub.get_hf_file_metadata
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", partial(patient, timeout=0.05))
    path = "HEAD /datasets/me/pictures/resolve/main/README.md"
    for trouble, reason in ((hub.silent, "ReadTimeout"), (hub.redirected, "TooManyRedirects")):
        trouble.add("me/pictures")
        with pytest.raises(UserError, match=rf"does not answer \({reason}.*, and me/pictures is not in the cache"):
            find("me/pictures", "dataset")
        assert (waits, hub.requests[path]) == ([1, 2, 4, 8], 5)
        trouble.clear()
        waits.clear()
        hub.requests.clear()
    online = find("me/pictures", "dataset")
    for trouble in (hub.silent, hub.redirected):
        trouble.add("me/pictures")
        found = find("me/pictures", "dataset")
        assert (found.commit, found.online, waits) == (online.commit, False, [])
        trouble.clear()


MISTAKES = {
    "no such data set": (
        {"source": "me/nothing"},
        r"data\.source: there is no folder me/nothing, and the hub has no data set of that name .*: correct the name",
    ),
    "a name without owner": ({"source": "nothing"}, "there is no folder nothing, and the hub has no data set"),
    "no name": (
        {"source": "me/no/thing"},
        "me/no/thing is neither a folder nor a data set of the hub: write OWNER/NAME",
    ),
    "no such revision": ({"source": "me/pictures@v2"}, "the data set me/pictures has no revision v2: name a branch"),
    "gated, without a token": (
        {"source": "me/gated"},
        r"the data set me/gated is gated: ask for access on its page, http.*/datasets/me/gated, and log in with",
    ),
    "gated, without access": ({"source": "me/closed"}, "the data set me/closed is gated: ask for access"),
    "a script": (
        {"source": "me/script"},
        "is a script, and code from the hub is never run: .*NAME@refs/convert/parquet",
    ),
    "no such split": ({"train": "training"}, r"data\.train: training of me/pictures cannot be read .*Unknown split"),
    "a stream of no such split": (
        {"train": "training", **STREAM},
        r"training of me/pictures cannot be read .*Bad split",
    ),
    "no such configuration": ({"config": "big"}, r"'big' not found\. Available: \['default'\]"),
    "one of several": (
        {"source": "me/two"},
        r"me/two cannot be read \(set data\.config to one of \['small', 'large'\]",
    ),
    "no such column": (
        {"image": "picture"},
        r"\(train\) has no column 'picture', only image, caption: set data\.image",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_clear_message(home, mistake, waits):
    """The one-line message names the data set and what to do, without waiting."""
    options, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as caught:
        data(**{"source": "me/pictures", "train": "train"} | options)
    assert "\n" not in str(caught.value)
    assert not waits


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_that_cannot_be_reached(hub, home, monkeypatch, waits, streaming):
    """The error is one line; with HF_HUB_OFFLINE it comes immediately."""
    options = SOURCES["parquet"] | (STREAM if streaming else {})
    hub.refused["me/pictures"] = (503, "")
    with pytest.raises(UserError, match=r"does not answer \(.*503 Service Unavailable.* is not in the cache"):
        data(**options)
    del hub.refused["me/pictures"]
    waits.clear()
    hub.stop()
    try:
        with pytest.raises(
            UserError, match=r"the hub at http.* does not answer .*, and me/pictures is not in the cache"
        ):
            data(**options)
    finally:
        hub.start()
    assert 0 < sum(waits) < 60
    local.offline(monkeypatch)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set, and me/pictures is not in the cache .*: unset it to"):
        data(**options)


def test_a_connection_that_is_cut_while_downloading(hub, home, waits):
    """The rest is downloaded. If that fails, there is an error, and the incomplete file is not used later."""
    hub.cut["train-00000-of-00001.parquet"] = 10**6
    with pytest.raises(UserError, match=r"data\.train: train of me/pictures cannot be read"):
        data(**SOURCES["parquet"])
    assert not list(home.rglob("*.arrow"))
    hub.cut["train-00000-of-00001.parquet"] = 1
    samples = data(**SOURCES["parquet"]).split("train")
    assert [number(samples[i]) for i in range(8)] == [*range(8)]


CUT = {"parquet": "train-00000-of-00001.parquet", "webdataset": "00000.tar", "imagefolder": "3.jpg"}


@pytest.mark.parametrize("name", CUT)
def test_a_connection_that_is_cut_in_a_stream(hub, home, waits, name):
    """After one cut, no sample is lost or repeated. After a permanent cut, a one-line error says how to continue."""
    stream = data(**SOURCES[name], **STREAM).train_dataloader()
    hub.cut[CUT[name]] = 1
    assert sorted(c for batch in stream for c in batch.captions) == [f"caption {i}" for i in range(8)]
    assert not hub.cut[CUT[name]]
    hub.cut[CUT[name]] = 10**6
    with pytest.raises(UserError, match=r"^data\.train.* \(.*\): .*(resume|go on|again)") as caught:
        list(stream)
    assert "\n" not in str(caught.value)


def test_a_streamed_image_that_is_not_there(hub, home):
    """A missing image is a broken sample, and an address outside of the repository is refused."""
    formats.imagefolder(hub.folder / "datasets/me/holes/train")
    (hub.folder / "datasets/me/holes/train/3.jpg").unlink()
    module = data(source="me/holes", train="train", **STREAM)
    batches = [*module.train_dataloader()]
    assert [skip.reason for batch in batches for skip in batch.skipped] == ["there is no file train/3.jpg in me/holes"]
    repository = find("me/holes", "dataset")
    for address in (
        "hf://datasets/me/pictures@main/README.md",
        f"hf://datasets/me/holes@{repository.commit}/../README.md",
    ):
        with pytest.raises(UserError, match=f"row 1: {address} is no file of me/holes"):
            repository.read(address, "row 1")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Serve tars, a table and a parquet file from a plain file server."""
    folder = tmp_path_factory.mktemp("site")
    formats.webdataset(folder)
    formats.table(folder)
    formats.hub_parquet(folder / "a.parquet", range(8))
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(folder)))
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()
    gc.collect()


@pytest.mark.parametrize("streaming", [False, True])
def test_files_by_their_addresses(site, home, streaming):
    """A range of tars, a table whose images are local, and a parquet file can be read by their addresses."""
    address, folder = site
    for options in (
        {"source": "webdataset", "train": address + "/{00000..00001}.tar", **TARS},
        {"source": "csv", "train": address + "/list.csv", "root": str(folder)},
        {"source": "parquet", "train": [address + "/a.parquet"]},
    ):
        batches = data(**options, **(STREAM if streaming else {})).train_dataloader()
        assert sorted(c for batch in batches for c in batch.captions) == [f"caption {i}" for i in range(8)]


def test_addresses_of_nothing(site, home):
    """A missing tar and a folder that is not local raise errors."""
    address, _ = site
    with pytest.raises(UserError, match=r"data\.train: http.*/9\.tar cannot be read .*(Unable to find|404)"):
        data(source="webdataset", train=address + "/9.tar", **TARS)
    with pytest.raises(UserError, match=r"data\.train: there is no folder http.*: .*metadata"):
        data(source="imagefolder", train=address)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_of_the_hub_goes_on(hub, home, num_workers):
    """A checkpoint's state gives exactly the remaining batches, with and without worker processes."""
    options = {**SOURCES["webdataset"], "num_workers": num_workers, "shuffle_buffer": 3} | STREAM
    loader = data(**options).train_dataloader()
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    state = loader.state_dict()
    rest = [batch.captions for batch in batches]
    loader.close()
    again = data(**options).train_dataloader()
    again.load_state_dict(state)
    assert len(rest) == 2
    assert [batch.captions for batch in again] == rest
    again.close()
