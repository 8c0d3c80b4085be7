"""Rows of images and captions, opened with Hugging Face `datasets`."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from patchword.data.patterns import expand, find_files
from patchword.errors import InputError
from patchword.hub import Repository, explain, find

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

# What each format is for `datasets`: the name of its builder, and the builder's options.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "parquet": ("parquet", {"batch_size": 100}),  # by default that of the first row group, which may be empty
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
        repository: The data set of the hub that they are, at the commit that was read; None of files and folders.
    """

    rows: Dataset | IterableDataset
    files: list[Path]
    root: Path
    repository: Repository | None = None


def open_rows(
    source: str, split: str | list[str], option: str, config: str | None, streaming: bool, root: Path | None
) -> Source:
    """The rows of a split.

    Args:
        source: One of `FORMATS`, or a data set: a name on the hub, with a revision after an `@`, or a folder.
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
        names: Any = [escape(str(path)) for path in files] or _addresses(split, option)
        if source == "imagefolder":
            names = f"{escape(str(folder))}/**"
        if source == "parquet" and streaming and files:
            return Source(_parquet_stream(files), files, root or folder)
        if builder == "csv" and files:
            options = {**options, "features": _texts(files[0], f"{option}: {split}", options)}
        rows = _load(builder, f"{option}: {split}", streaming, split="train", data_files={"train": names}, **options)
        return Source(_undecoded(rows), files, root or folder)
    if not isinstance(split, str):
        raise InputError(f"{option} must be the name of a split of {source}, not a list")
    if source.startswith((".", "/", "~")) and not Path(source).expanduser().is_dir():
        raise InputError(f"data.source: there is no folder {source}; formats are {', '.join(FORMATS)}")
    close = [] if "/" in source else get_close_matches(source, FORMATS, cutoff=0.8)
    if close:
        raise InputError(f"data.source: there is no format {source}; did you mean {close[0]}?")
    place = f"{option}: {split} of {source}"
    folder = Path(source).expanduser()
    if folder.is_dir():
        rows = _load(str(folder), place, streaming, name=config, split=split)
        return Source(_undecoded(rows), [], root or folder)
    try:
        repository = find(source, "dataset")
    except InputError as error:
        raise InputError(f"data.source: {error}") from error
    rows = _undecoded(_load_repository(repository, place, streaming, config, split))
    return Source(rows, [], root or _downloads(), repository)


def _files(source: str, patterns: str | list[str], option: str) -> tuple[list[Path], Path]:
    """The local files that `patterns` mean, and the folder that holds them all; no files where they are remote."""
    if "://" in str(patterns) and source != "imagefolder":
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


def _addresses(patterns: str | list[str], option: str) -> list[str]:
    """The addresses that `patterns` mean, ranges written out."""
    return [
        one for pattern in ([patterns] if isinstance(patterns, str) else patterns) for one in expand(pattern, option)
    ]


def _load(path: str, place: str, streaming: bool, **options: Any) -> Any:
    """`datasets.load_dataset`, with its many kinds of errors as one; code of a data set is never run."""
    import datasets

    try:
        return datasets.load_dataset(path, streaming=streaming, **options)
    except Exception as error:  # of any file system, parser and network
        raise InputError(f"{place} cannot be read ({_reason(error)})") from error


def _texts(file: Path, place: str, options: dict[str, Any]) -> Features:
    """The columns of a CSV, all of them texts, so that `007` stays what it is and a number may be missing."""
    import datasets
    import pandas as pd

    try:
        columns = pd.read_csv(file, nrows=0, **options).columns
    except ValueError as error:  # of the parser, or of text that is not UTF-8
        raise InputError(f"{place} cannot be read ({_reason(error)})") from error
    return datasets.Features({name: datasets.Value("string") for name in columns})


def _load_repository(repository: Repository, place: str, streaming: bool, config: str | None, split: str) -> Any:
    """Likewise of the hub, at its commit; of the copy that `datasets` keeps, if the hub does not answer."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, commit = repository.name, repository.commit
    try:
        if not repository.online:
            builder = _prepared(repository, place, config)
        else:
            builder = datasets.load_dataset_builder(name, config, revision=commit)
        if hasattr(builder.config, "decode_num_threads"):
            builder.config.decode_num_threads = 0  # a stream's images are decoded by us
        if streaming:
            return builder.as_streaming_dataset(split=split)
        builder.download_and_prepare()
        return builder.as_dataset(split=split)
    except InputError:
        raise
    except (ConnectionError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise InputError(f"{place} cannot be read: {explain(error, f'{name}@{commit}', 'dataset')}") from error
    except Exception as error:
        raise InputError(f"{place} cannot be read ({_reason(error)})") from error


def _prepared(repository: Repository, place: str, config: str | None) -> Any:
    """What makes tables and streams of the copy that `datasets` keeps of a repository."""
    import datasets
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    *owner, name = repository.name.split("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / "___".join([*owner, camelcase_to_snakecase(name)])
    kept = sorted(path.parts[-3] for path in folder.glob(f"*/0.0.0/{repository.commit}"))
    found = [one for one in kept if config in (None, one)]
    if not found:
        raise InputError(
            f"{place} cannot be read: the hub does not answer, and {folder} has no copy of commit {repository.commit}"
            f"{f' of the configuration {config}' if config else ''}: try again when there is a connection"
        )
    if len(found) > 1:
        raise InputError(f"{place} cannot be read: set data.config to one of {found}")
    return Cache(repo_id=repository.name, dataset_name=name, config_name=found[0], hash=repository.commit)


def _reason(error: Exception) -> str:
    """An error of `datasets` in a line."""
    reason = " ".join(str(error.__cause__ or error).split())
    if "scripts are no longer supported" in reason:
        return (
            "it is a script, and code from the hub is never run: if the hub has made parquet files of it, "
            "data.source: NAME@refs/convert/parquet reads them"
        )
    if "corresponds to no data" in reason:
        return "it has no rows"
    if reason.startswith("Config name is missing"):
        return f"set data.config to one of {reason[reason.find('[') : reason.find(']') + 1]}"
    return f"{type(error).__name__}: {reason[:300]}"


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


def _downloads() -> Path:
    """Where files of the hub lie."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def read_on(rows: Dataset | IterableDataset, place: str) -> Generator[Mapping[str, Any]]:
    """The rows, one after the other; of remote ones, `datasets` tries several times before it gives up.

    Raises:
        InputError: If they break off; the message begins with `place`.
    """
    try:
        yield from rows
    except InputError:
        raise
    except Exception as error:  # of any file system, parser and network
        raise InputError(
            f"{place} breaks off ({_reason(error)}): when it can be read again, go on from the last checkpoint "
            "(--ckpt_path)"
        ) from error


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
