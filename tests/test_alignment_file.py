"""Alignment files from untrusted sources: invalid content is refused with one line and little memory."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchword.errors import UserError
from patchword.files.npz import read_npz
from patchword.maps.alignment import Alignment, Photo, Region

TEXT = "<img src=x onerror=alert(1)>"


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, Any], dict[str, np.ndarray]]:
    """Return the content of a valid file as words and arrays."""
    Alignment(
        pixels=torch.zeros(3, 6, 8, dtype=torch.uint8),
        caption="a red fish",
        spans=[(2, 5), (6, 10)],
        maps={"align": torch.rand(2, 12), "dot": torch.rand(2, 12)},
        grid=(3, 4),
        masks=torch.ones(2, 6, 8, dtype=torch.bool),
        photo=Photo(torch.ones(3, 9, 8, dtype=torch.uint8), (80, 90), (0.0, 0.1, 1.0, 0.9)),
        tokens=[1, 2],
        content=[True, False],
        score=0.5,
        measure="interaction",
        regions=[Region((0, 1, 2, 4), 0.9)],
    ).save(tmp_path / "good.npz")
    arrays = dict(np.load(tmp_path / "good.npz"))
    return tmp_path / "bad.npz", json.loads(str(arrays.pop("words"))), arrays


def put(value: Any, *place: Any) -> Any:
    """Return a function that sets a value in the words."""

    def change(words: Any) -> None:
        for key in place[:-1]:
            words = words[key]
        words[place[-1]] = value

    return change


WORDS = [
    put(5, "caption"),
    put("\ud800", "caption"),
    put("short", "caption"),
    put([[0, 1]], "spans"),
    put([[0, 1], [TEXT, 2]], "spans"),
    put([[5, 2], [0, 1]], "spans"),
    put([[-5, 2], [0, 1]], "spans"),
    put([3, 5], "grid"),
    put([3, TEXT], "grid"),
    put([True, 12], "grid"),
    put([10**4000, 1], "grid"),
    put(TEXT, "measure"),
    put(["value"], "measure"),
    put(TEXT, "score"),
    put([TEXT, 1], "tokens"),
    put([1], "tokens"),
    put([1, 0], "content"),
    put([True], "unknown"),
    put(TEXT, "pruned"),
    put({"box": [0, 1, 2, 4]}, "regions"),
    put([TEXT, 1, 2, 4], "regions", 0, "box"),
    put([0, 1, 2, 5], "regions", 0, "box"),
    put(TEXT, "regions", 0, "confidence"),
    put(1.5, "regions", 0, "confidence"),
    put(10**400, "regions", 0, "confidence"),
    put([80, TEXT], "photo", "size"),
    put([float("nan"), 0, 1, 1], "photo", "seen"),
    put([0.5, 0, 0.5, 1], "photo", "seen"),
    put(None, "photo"),
]


@pytest.mark.parametrize("change", WORDS)
def test_words(written, change):
    """Every field of the words is checked for its type, length and range."""
    path, words, arrays = written
    change(words)
    np.savez(path, words=np.array(json.dumps(words)), **arrays)
    with pytest.raises(UserError, match="not a file of alignment maps") as refused:
        Alignment.load(path)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 500


ARRAYS = {
    "no words": {"words": None},
    "words that are no text": {"words": np.zeros(3)},
    "words that are no JSON": {"words": np.array("{")},
    "words that are a list": {"words": np.array("[1]")},
    "deep words": {"words": np.array("[" * 100_000)},
    "no pixels": {"pixels": None},
    "flat pixels": {"pixels": np.zeros(12, np.uint8)},
    "no pixel": {"pixels": np.zeros((3, 0, 8), np.uint8)},
    "float pixels": {"pixels": np.zeros((3, 6, 8))},
    "no maps": {"map_align": None, "map_dot": None},
    "a map named by HTML": {f"map_{TEXT}": np.zeros((2, 12), np.float32)},
    "whole numbers": {"map_align": np.zeros((2, 12), np.int64)},
    "too few maps": {"map_align": np.zeros((1, 12), np.float32)},
    "too few patches": {"map_align": np.zeros((2, 11), np.float32)},
    "masks of another size": {"masks": np.zeros((2, 6, 9), bool)},
    "too few masks": {"masks": np.zeros((1, 6, 8), bool)},
    "a flat photo": {"photo": np.zeros((9, 8), np.uint8)},
    "objects": {"masks": np.array([{}, {}])},
}


@pytest.mark.parametrize("changes", ARRAYS.values(), ids=ARRAYS)
def test_arrays(written, changes):
    """Every array is checked for its type and shape, and the name of a map must be a known source."""
    path, words, arrays = written
    arrays = {"words": np.array(json.dumps(words))} | arrays | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(UserError, match="not a file of alignment maps"):
        Alignment.load(path)


def npy(shape: str, dtype: str = "<f4", content: bytes = b"") -> bytes:
    """Return an array in numpy's format with any header."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


@pytest.mark.parametrize(
    "content",
    [
        npy("(2500000000,)"),
        npy("(-1,)"),
        npy("(2,)", content=b"\0" * 4),
        npy("(2,)", content=b"\0" * 12),
        npy("(1,)", dtype="|O", content=b"\0" * 8),
        npy("(" * 5000),
        npy("(1,)")[:9],
        b"",
        b"\x93NUMPY\x09\x00",
    ],
)
def test_headers(tmp_path, content):
    """The reader does not allocate the size in a header unless the zip contains that many bytes."""
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as file:
        file.writestr("pixels.npy", content)
    with pytest.raises(ValueError, match=r".+"):
        read_npz(tmp_path / "bad.npz", 2**40)


def test_bomb(tmp_path):
    """A small file that decompresses to a large one is refused before it is decompressed."""
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name in "ab":
            file.writestr(f"{name}.npy", npy("(600,)", dtype="|u1", content=bytes(600)))
    assert read_npz(tmp_path / "bomb.npz", 1200)["b"].shape == (600,)
    with pytest.raises(ValueError, match="larger than"):
        read_npz(tmp_path / "bomb.npz", 1199)


@pytest.mark.parametrize("cut", [0, 1, 100, -30, -1])
def test_truncated(written, cut):
    """Truncated files and other files are refused."""
    path = written[0]
    path.write_bytes((path.parent / "good.npz").read_bytes()[:cut])
    with pytest.raises(UserError, match="not a file of alignment maps"):
        Alignment.load(path)
    with pytest.raises(UserError, match="no such file"):
        Alignment.load(path.with_name("none.npz"))


def test_as_numpy(tmp_path):
    """Arrays of every order, size and type that numpy writes are read correctly."""
    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.array("é"), "c": np.zeros((0, 3)), "d": np.array([True])}
    np.savez_compressed(tmp_path / "own.npz", **arrays)
    found = read_npz(tmp_path / "own.npz", 1000)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
