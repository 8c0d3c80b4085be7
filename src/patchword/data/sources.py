"""Rows of images and captions, opened with Hugging Face `datasets`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from patchword.data.patterns import find_files
from patchword.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

# What each format is for `datasets`: the name of its builder, and the builder's options.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "parquet": ("parquet", {}),
    "csv": ("csv", {"keep_default_na": False}),
    "tsv": ("csv", {"keep_default_na": False, "sep": "\t", "quoting": 3}),
    "json": ("json", {}),
    "webdataset": ("webdataset", {}),
    "imagefolder": ("imagefolder", {"drop_labels": True}),
}


@dataclass(frozen=True)
class Source:
    """A split's rows, and where they came from.

    Attributes:
        rows: The rows; images are not decoded.
        files: The local files that hold them; none of a data set of the hub.
        root: The folder that image paths are relative to, and must not leave.
    """

    rows: Dataset | IterableDataset
    files: list[Path]
    root: Path


def open_rows(
    source: str, split: str | list[str], option: str, config: str | None, streaming: bool, root: Path | None
) -> Source:
    """The rows of a split.

    Args:
        source: One of `FORMATS`, or a data set: a name on the hub, or a folder.
        split: The files of a format (a path, a glob, a range, a list of these; for `imagefolder` the folder), or the
            split's name in the data set.
        option: The option that `split` is the value of, for messages.
        config: Which configuration of a data set that has several.
        streaming: Read rows in their order rather than any row.
        root: The folder that image paths are relative to; None for the folder of the files.

    Raises:
        InputError: If there are no such files, or `datasets` cannot read them.
    """
    if source in FORMATS:
        builder, options = FORMATS[source]
        files, folder = _files(source, split, option)
        names: Any = [escape(str(path)) for path in files] or split
        if source == "imagefolder":
            names = f"{escape(str(folder))}/**"
        if source == "parquet" and streaming and files:
            return Source(_parquet_stream(files), files, root or folder)
        rows = _load(builder, f"{option}: {split}", streaming, split="train", data_files={"train": names}, **options)
        return Source(_undecoded(rows), files, root or folder)
    if not isinstance(split, str):
        raise InputError(f"{option} must be the name of a split of {source}, not a list")
    if source.startswith((".", "/", "~")) and not Path(source).expanduser().is_dir():
        raise InputError(f"data.source: there is no folder {source}; formats are {', '.join(FORMATS)}")
    close = [] if "/" in source else get_close_matches(source, FORMATS, cutoff=0.8)
    if close:
        raise InputError(f"data.source: there is no format {source}; did you mean {close[0]}?")
    rows = _load(source, f"{option}: {split} of {source}", streaming, name=config, split=split)
    folder = Path(source).expanduser()
    return Source(_undecoded(rows), [], root or (folder if folder.is_dir() else _cache()))


def _files(source: str, patterns: str | list[str], option: str) -> tuple[list[Path], Path]:
    """The local files that `patterns` mean, and the folder that holds them all; no files where they are remote."""
    if "://" in str(patterns):
        return [], Path.cwd()
    if source == "imagefolder":
        folder = Path(str(patterns)).expanduser()
        if not isinstance(patterns, str) or not folder.is_dir():
            raise InputError(f"{option}: there is no folder {patterns}: give one with images and a metadata.jsonl")
        if not any(folder.glob("**/metadata.*")):
            raise InputError(f"{option}: {folder} has no metadata.jsonl (or .csv, .parquet) with file_name and caption")
        return sorted(path for path in folder.rglob("*") if path.is_file()), folder
    files = [path.absolute() for path in find_files(patterns, option)]
    return files, Path(os.path.commonpath([path.parent for path in files]))


def _load(path: str, place: str, streaming: bool, **options: Any) -> Any:
    """`datasets.load_dataset`, with its many kinds of errors as one; code from the hub is never run."""
    import datasets

    try:
        return datasets.load_dataset(path, streaming=streaming, **options)
    except Exception as error:  # of any file system, parser and network
        reason = " ".join(str(error.__cause__ or error).split())
        if "scripts are no longer supported" in reason:
            reason = f"{path} is a script, and code from the hub is never run: use its parquet files (source: parquet)"
        raise InputError(f"{place} cannot be read ({type(error).__name__}: {reason[:300]})") from error


def _parquet_stream(files: list[Path]) -> IterableDataset:
    """The rows of local files; the reader of `datasets` sleeps for five seconds at the end of each shuffled pass."""
    import datasets

    return datasets.IterableDataset.from_generator(_parquet_rows, gen_kwargs={"files": files})


def _parquet_rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    for path in files:
        try:
            with ParquetFile(path) as file:
                for rows in file.iter_batches(batch_size=100):
                    yield from rows.to_pylist()
        except (ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read ({error}): write it again") from error


def _undecoded(rows: Any) -> Any:
    """`rows` with images as bytes or paths."""
    import datasets

    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def _cache() -> Path:
    """Where `datasets` keeps what it has downloaded."""
    import datasets

    return Path(datasets.config.HF_CACHE_HOME).expanduser()


def is_downloaded(row: Mapping[str, Any]) -> bool:
    """Whether a row has its image: of a table by img2dataset, whether its `status` is `success`."""
    return row.get("status", "success") == "success" or not {"key", "url"} <= row.keys()


def downloaded(rows: Dataset) -> list[int]:
    """The numbers of the rows that have their image, as `is_downloaded` says."""
    columns = [name for name in ("key", "url", "status") if name in rows.column_names]
    if len(columns) < 3:
        return list(range(len(rows)))
    found = [i for i, row in enumerate(rows.select_columns(columns)) if is_downloaded(row)]
    if len(found) < len(rows):
        left = len(rows) - len(found)
        rank_zero_info(f"left out {left} of {len(rows)} rows, whose images img2dataset could not download")
    return found
