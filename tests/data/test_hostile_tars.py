"""A tar with false headers gives one error that names the file, in bounded time and memory."""

from __future__ import annotations

import struct
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from patchword.data.tables.image_text import ImageText
from patchword.data.tars import members
from tests.data.test_tars import pack, picture, sample

END = bytes(1024)
TERABYTE = 2**40


def header(name: bytes, size: int, kind: bytes = b"0", sparse: int = 0) -> bytes:
    """Return a header with a valid checksum and any values; `sparse` is the size of a sparse file in old GNU format."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:136] = b"0000644\0" + 2 * b"0000000\0" + b"\x80" + size.to_bytes(11, "big", signed=False)
    block[136:157] = b"%011o\0" % 0 + b" " * 8 + kind
    block[257:265] = b"ustar  \0"
    if sparse:
        block[386:434] = 4 * b"00000000000\0"
        block[483:495] = struct.pack(">B3xQ", 0x80, sparse)
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def fields(**values: str) -> bytes:
    """Return a pax header with extra fields for the next member."""
    lines = b"".join(f"{len(f'000 {k}={v}') + 1:03} {k}={v}\n".encode() for k, v in values.items())
    return header(b"fields", len(lines), b"x") + lines.ljust(-(-len(lines) // 512) * 512, b"\0")


NAME = header(b"././@LongLink", 8, b"L") + b"9.png".ljust(512, b"\0")
SPARSE = {"GNU.sparse.map": "0,512", "GNU.sparse.size": str(TERABYTE)}
SPARSE_1 = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "9.png"}
HOSTILE = {
    "sparse": header(b"9.png", 512, b"S", TERABYTE) + bytes(512),
    "sparse by fields": fields(**SPARSE) + header(b"9.png", 512) + bytes(512),
    "sparse by its content": fields(**SPARSE_1)
    + header(b"9.png", 1024)
    + b"9999999999\n".ljust(512, b"1")
    + bytes(512),
    "fields that are no numbers": fields(**SPARSE | {"GNU.sparse.map": "0,x"}) + header(b"9.png", 512) + bytes(512),
    "huge": header(b"9.png", 10**26),
    "huge by fields": fields(size=str(10**26)) + header(b"9.png", 512) + bytes(512),
    "negative": fields(size="-5000") + header(b"9.png", 512) + bytes(512),
    "long names": NAME * 3000 + header(b"9.png", 0),
    "many fields": fields(path="9.png") * 3000 + header(b"9.png", 0),
    "a huge name": header(b"././@LongLink", TERABYTE, b"L") + bytes(512),
    "huge fields": header(b"fields", TERABYTE, b"x") + bytes(512),
    "huge fields of all": header(b"fields", TERABYTE, b"g") + bytes(512),
    "unknown kind": header(b"9.png", TERABYTE, b"Z") + bytes(512),
    "no header": b"hello".ljust(512, b"!"),
}


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """Check that a test needs at most 32 MiB, which is more than the size of any of these tars."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25


def data(path: Path, streaming: bool) -> ImageText:
    """Return a data module for one tar."""
    module = ImageText(
        "webdataset",
        str(path),
        caption="txt",
        resize_mode="crop",
        image_size=16,
        batch_size=2,
        streaming=streaming,
        steps_per_epoch=4 if streaming else None,
        shuffle_buffer=1,
    )
    module.setup("fit")
    return module


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tar(tmp_path: Path, name: str, streaming: bool) -> None:
    """A false header after complete samples is found, both with random access and in a stream."""
    whole = pack(tmp_path / "whole.tar", sample(1) + sample(2)).read_bytes()
    end = next(i for i in range(0, len(whole), 512) if whole[i : i + 1024] == END)
    (tmp_path / "bad.tar").write_bytes(whole[:end] + HOSTILE[name] + END)
    with pytest.raises(ValueError, match=r"bad\.tar is not a complete tar \(.{5,100}\): copy or pack it again$"):
        list(data(tmp_path / "bad.tar", streaming).train_dataloader())


@pytest.mark.parametrize("streaming", [False, True])
def test_harmless_members(tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links are not followed, a sample with a too large member is skipped, and members of no sample are ignored."""
    monkeypatch.setattr(members, "LARGEST", 10_000)
    path = pack(
        tmp_path / "a.tar", [("film", bytes(20_000)), *sample(1), ("2.png", picture(2)), ("2.txt", b"a" * 20_000)]
    )
    with tarfile.open(path, "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("000000001.jpg")
            link.type, link.linkname = kind, "/etc/hostname"
            tar.addfile(link)
    batch = next(iter(data(path, streaming).train_dataloader()))
    assert set(batch.captions) == {"caption 1"}
    (reason,) = {one.reason for one in batch.skipped}
    assert "too large" in reason or "20000 bytes" in reason
