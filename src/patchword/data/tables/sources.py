"""Open rows of images and captions, mostly with Hugging Face `datasets`."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from patchword.data.published import LAYOUTS
from patchword.data.tables import json_lists
from patchword.data.tables.column_names import csv_columns, require_unique
from patchword.data.tables.patterns import expand, find_files
from patchword.data.tars.members import read_samples
from patchword.data.tars.tar_index import TarRows
from patchword.errors import UserError
from patchword.files.printable import printable
from patchword.provenance.fingerprint import stamps
from patchword.provenance.hub import Repository, explain, find
from patchword.version import __version__

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

# For each format, the name of its builder in `datasets` and the builder's options.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "parquet": ("parquet", {"batch_size": 100}),  # the default is the size of the first row group, which can be empty
    "csv": ("csv", {"keep_default_na": False}),
    "tsv": ("csv", {"keep_default_na": False, "sep": "\t", "quoting": 3}),
    "json": ("", {}),  # read by `patchword.data.tables.json_lists`
    "webdataset": ("", {}),  # read by `patchword.data.tars.members`
    "imagefolder": ("imagefolder", {"drop_labels": True}),
}

BOMB = (2**24, 1000)  # a parquet column of more bytes and with a higher compression factor is not read


@dataclass(frozen=True)
class Source:
    """A split's rows and their origin.

    Attributes:
        rows: The rows; images are not decoded.
        files: The local files with the rows; empty for a data set of the hub.
        root: The folder that image paths are relative to and must not leave.
        repository: The hub data set of the rows at the commit that was read; None for files and folders.
        selection: The selected rows of JSON lists; None for all rows.
    """

    rows: Dataset | IterableDataset | json_lists.JsonRows | TarRows
    files: list[Path]
    root: Path
    repository: Repository | None = None
    selection: json_lists.Selection | None = None


def open_rows(
    source: str,
    split: str | list[str],
    option: str,
    config: str | None,
    streaming: bool,
    root: Path | None,
    columns: Sequence[str] = (),
) -> Source:
    """Open the rows of a split.

    Args:
        source: One of `FORMATS`, one of `LAYOUTS`, or a data set: a name on the hub, with an optional revision after
            an `@`, or a folder.
        split: The files of a format (a path, a glob, a range, a list of these; for `imagefolder` the folder), or the
            split's name in the data set.
        option: The option whose value `split` is, for messages.
        config: The configuration of a data set that has several.
        streaming: True reads rows sequentially, False allows random access.
        root: The folder that image paths are relative to; None for the folder of the files. Layouts are read from it.
        columns: The columns that will be read from tars.

    Raises:
        UserError: If the files do not exist, or if `datasets` cannot read them.
    """
    if source in FORMATS:
        builder, options = FORMATS[source]
        place = f"{option}: {split}"
        if source == "json":
            return _json(split, option, streaming, root)
        files, folder = _files(source, split, option)
        if source == "webdataset":
            return _tars(files, folder, split, option, streaming, columns)
        names: Any = [escape(str(path)) for path in files] or _addresses(split, option)
        if source == "imagefolder":
            names = f"{escape(str(folder))}/**"
            _require_tables([path for path in files if path.stem == "metadata"], place)
        if source == "parquet":
            _require_plausible(files)
        if source == "parquet" and streaming and files:
            return Source(_parquet_stream(files), files, root or folder)
        if builder == "csv":
            header, *_ = _headers(files or names, place, options)
            options = {**options, "features": _texts(header)}
        rows = _load(builder, place, streaming, split="train", data_files={"train": names}, **options)
        return Source(_undecoded(rows), files, root or folder)
    if source in LAYOUTS:
        return _layout(source, split, option, streaming, root)
    if not isinstance(split, str):
        raise UserError(f"{option} must be the name of a split of {source}, not a list")
    if source.startswith((".", "/", "~")) and not Path(source).expanduser().is_dir():
        raise UserError(f"data.source: there is no folder {source}: correct it, or use a format ({', '.join(FORMATS)})")
    close = [] if "/" in source else get_close_matches(source, FORMATS, cutoff=0.8)
    if close:
        raise UserError(f"data.source: there is no format {source}; did you mean {close[0]}?")
    place = f"{option}: {split} of {source}"
    folder = Path(source).expanduser()
    if folder.is_dir():
        _require_tables([*folder.rglob("*")], place)
        rows = _load(str(folder), place, streaming, name=config, split=split)
        return Source(_undecoded(rows), [], root or folder)
    try:
        repository = find(source, "dataset")
    except UserError as error:
        raise UserError(f"data.source: {error}") from error
    rows = _undecoded(_load_repository(repository, place, streaming, config, split))
    return Source(rows, [], root or _downloads(), repository)


def _json(patterns: str | list[str], option: str, streaming: bool, root: Path | None) -> Source:
    """Open the rows of JSON lists as a stream, or as a table in the cache of `datasets`."""
    place = f"{option}: {patterns}"
    patterns, selection = json_lists.select(patterns, option)
    files, folder = _files("json", patterns, option)
    options: dict[str, Any] = {"files": [*map(str, files)] or _addresses(patterns, option), "selection": selection}
    rows = _generated(json_lists.read_rows, options, files, streaming, place)
    return Source(rows, files, root or folder, selection=selection)


def _layout(source: str, split: str | list[str], option: str, streaming: bool, root: Path | None) -> Source:
    """Open the rows of a data set in its published layout."""
    if root is None:
        raise UserError(f"data.source is {source}, so data.root must be the folder with its files, but it is null")
    if not isinstance(split, str):
        raise UserError(f"{option} must be the name of a split of {source}, not a list")
    layout = LAYOUTS[source]
    files = layout.files(root, split)
    rows = _generated(layout.rows, {"root": root, "split": split}, files, streaming, f"{option}: {split} of {source}")
    return Source(rows, files, root)


def _generated(read: Any, options: dict[str, Any], files: list[Path], streaming: bool, place: str) -> Any:
    """Return the rows that `read(**options)` yields, as a stream or as a table in the cache of `datasets`.

    The cache is used again if the function, the options, the files and the version of patchword are the same.
    """
    import datasets

    if streaming:
        return datasets.IterableDataset.from_generator(read, gen_kwargs=options)
    features = datasets.Features({"row": datasets.Value("large_string")})
    known = {"read": read, "options": options, "stamps": (__version__, *stamps(files))}
    try:
        table: Any = datasets.Dataset.from_generator(json_lists.as_table, features=features, gen_kwargs=known)
    except Exception as error:  # any file system or network can fail; `datasets` also wraps our UserError
        reason = next((one for one in (error, error.__cause__) if isinstance(one, UserError)), None)
        raise UserError(f"{place} cannot be read ({reason or _reason(error)})") from error
    return json_lists.JsonRows(table)


def _tars(
    files: list[Path], folder: Path, split: str | list[str], option: str, streaming: bool, columns: Sequence[str]
) -> Source:
    """Open the samples of tars; tars at addresses are downloaded unless they are streamed."""
    import datasets

    addresses = [str(path) for path in files] or _addresses(split, option)
    if streaming:
        rows = datasets.IterableDataset.from_generator(read_samples, gen_kwargs={"addresses": addresses})
        return Source(rows, files, folder)
    if not files:
        try:
            files = [Path(path) for path in datasets.DownloadManager().download(addresses)]
        except Exception as error:  # any file system or network can fail
            raise UserError(f"{option}: {split} cannot be read ({_reason(error)})") from error
    members = ["json" if name.startswith("json.") else name for name in columns]
    return Source(TarRows(files, [*dict.fromkeys(members)]), files, folder)


def _files(source: str, patterns: str | list[str], option: str) -> tuple[list[Path], Path]:
    """Return the local files that match `patterns`, and their common folder; no files if the patterns are addresses."""
    if "://" in str(patterns) and source != "imagefolder":
        return [], Path.cwd()
    if source == "imagefolder":
        folder = Path(str(patterns)).expanduser()
        if not isinstance(patterns, str) or not folder.is_dir():
            raise UserError(f"{option}: there is no folder {patterns}: use a folder with images and a metadata.jsonl")
        if not any(folder.glob("**/metadata.*")):
            raise UserError(
                f"{option}: {folder} has no metadata.jsonl (or .csv, .parquet) with file_name and caption: add it"
            )
        return sorted(path for path in folder.rglob("*") if path.is_file()), folder
    files = [path.absolute() for path in find_files(patterns, option)]
    return files, Path(os.path.commonpath([path.parent for path in files]))


def _addresses(patterns: str | list[str], option: str) -> list[str]:
    """Return the addresses in `patterns`, with ranges expanded."""
    return [
        one for pattern in ([patterns] if isinstance(patterns, str) else patterns) for one in expand(pattern, option)
    ]


def _load(path: str, place: str, streaming: bool, **options: Any) -> Any:
    """Call `datasets.load_dataset` and raise all its errors as UserError; code of a data set is never run."""
    import datasets

    try:
        return datasets.load_dataset(path, streaming=streaming, **options)
    except Exception as error:  # any file system, parser or network can fail
        raise UserError(f"{place} cannot be read ({_reason(error)})") from error


def _texts(columns: Sequence[str]) -> Features:
    """Return the columns of a CSV, all as texts, so that `007` remains unchanged and numbers can be missing."""
    import datasets

    return datasets.Features({name: datasets.Value("string") for name in columns})


def _headers(files: Sequence[str | Path], place: str, options: dict[str, Any]) -> list[list[str]]:
    """Return the column names of each CSV file; a repeated name raises UserError."""
    try:
        return [csv_columns(str(file), options) for file in files]
    except UserError:
        raise
    except Exception as error:  # any file system, parser or network can fail
        raise UserError(f"{place} cannot be read ({_reason(error)})") from error


def _load_repository(repository: Repository, place: str, streaming: bool, config: str | None, split: str) -> Any:
    """Load a hub data set at its commit, or from the cache of `datasets` if the hub does not answer."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, commit = repository.name, repository.commit
    try:
        if not repository.online:
            builder = _prepared(repository, place, config)
        else:
            builder = datasets.load_dataset_builder(name, config, revision=commit)
        if hasattr(builder.config, "decode_num_threads"):
            builder.config.decode_num_threads = 0  # we decode the images of a stream ourselves
        if streaming:
            return builder.as_streaming_dataset(split=split)
        builder.download_and_prepare()
        return builder.as_dataset(split=split)
    except UserError:
        raise
    except (ConnectionError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise UserError(f"{place} cannot be read: {explain(error, f'{name}@{commit}', 'dataset')}") from error
    except Exception as error:
        raise UserError(f"{place} cannot be read ({_reason(error)})") from error


def _prepared(repository: Repository, place: str, config: str | None) -> Any:
    """Return a builder of tables and streams from the copy of a repository in the cache of `datasets`."""
    import datasets
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    *owner, name = repository.name.split("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / "___".join([*owner, camelcase_to_snakecase(name)])
    kept = sorted(path.parts[-3] for path in folder.glob(f"*/0.0.0/{repository.commit}"))
    found = [one for one in kept if config in (None, one)]
    if not found:
        raise UserError(
            f"{place} cannot be read: the hub does not answer, and {folder} has no copy of commit {repository.commit}"
            f"{f' of the configuration {config}' if config else ''}: try again when there is a connection"
        )
    if len(found) > 1:
        raise UserError(f"{place} cannot be read: set data.config to one of {found}")
    return Cache(repo_id=repository.name, dataset_name=name, config_name=found[0], hash=repository.commit)


def _reason(error: Exception) -> str:
    """Describe an error of `datasets` in one line."""
    reason = " ".join(str(error.__cause__ or error).split())
    if "scripts are no longer supported" in reason:
        return (
            "it is a script, and code from the hub is never run: if the hub has converted it to parquet files, "
            "data.source: NAME@refs/convert/parquet reads them"
        )
    if "codec can't decode" in reason:
        return f"a file is not UTF-8 text ({reason[:200]}): save it as UTF-8"
    if "corresponds to no data" in reason:
        return "it has no rows"
    if "cast array of type" in reason:
        return (
            "a column has values of different types in different rows, which a table cannot store: set "
            f"streaming: true, which reads each row separately ({reason[:200]})"
        )
    if "should be in WebDataset format" in reason:
        return (
            "its tars are not read as samples by `datasets`: the first samples differ in their members, or names have "
            "further dots, where a key ends at the first dot. Read the tars themselves: set data.source to webdataset, "
            "and the split to their paths or addresses, such as hf://datasets/OWNER/NAME/{00000..00009}.tar"
        )
    if reason.startswith("Config name is missing"):
        return f"set data.config to one of {reason[reason.find('[') : reason.find(']') + 1]}"
    return f"{type(error).__name__}: {reason[:300]}"


def _require_plausible(files: list[Path]) -> None:
    """Check the footers of parquet files for repeated column names and for decompression bombs.

    Files that are not parquet are ignored here; their reader raises an error later.

    Raises:
        UserError: If a name is repeated, or a column would grow to more than a thousand times its size.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    for path in files:
        try:
            footer = read_metadata(path)
        except (ArrowException, OSError):
            continue
        require_unique(footer.schema.to_arrow_schema().names, str(path))
        for column in range(footer.num_columns):
            chunks = [footer.row_group(group).column(column) for group in range(footer.num_row_groups)]
            size = sum(chunk.total_uncompressed_size for chunk in chunks)
            packed = sum(chunk.total_compressed_size for chunk in chunks)
            if size > BOMB[0] and size > BOMB[1] * packed:
                raise UserError(
                    f"{path}: column {printable(chunks[0].path_in_schema, 40)} would grow from {packed} to {size} "
                    "bytes or more, which is implausible for captions or images: rewrite the file without this column"
                )


def _require_tables(files: list[Path], place: str) -> None:
    """Check the CSV and parquet files among `files` for repeated column names, and parquet files for their sizes."""
    _headers([path for path in files if path.suffix == ".csv"], place, FORMATS["csv"][1])
    _require_plausible([path for path in files if path.suffix == ".parquet"])


def _parquet_stream(files: list[Path]) -> IterableDataset:
    """Stream the rows of local files; the reader of `datasets` would sleep for five seconds after each pass."""
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
            raise UserError(f"{path} cannot be read ({error}): write the file again") from error


def _undecoded(rows: Any) -> Any:
    """Return `rows` with images as bytes or paths instead of decoded images."""
    import datasets

    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def _downloads() -> Path:
    """Return the folder of downloaded files of the hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def read_on(
    rows: Dataset | IterableDataset | json_lists.JsonRows | TarRows, place: str
) -> Generator[Mapping[str, Any]]:
    """Yield the rows in order; for remote rows, `datasets` retries several times before it gives up.

    Raises:
        UserError: If reading fails; the message begins with `place`.
    """
    try:
        yield from rows
    except UserError:
        raise
    except Exception as error:  # any file system, parser or network can fail
        raise UserError(
            f"{place}: reading failed ({_reason(error)}): when the data is available again, resume from the last "
            "checkpoint (--ckpt_path)"
        ) from error


def is_downloaded(row: Mapping[str, Any]) -> bool:
    """Whether a row has its image. A row of img2dataset has it if its `status` is `success`; all other rows do."""
    return row.get("status", "success") == "success" or not {"key", "url"} <= row.keys()


def downloaded(rows: Dataset | json_lists.JsonRows | TarRows) -> list[int]:
    """Return the numbers of the rows for which `is_downloaded` is true."""
    columns = [name for name in ("key", "url", "status") if name in rows.column_names]
    if len(columns) < 3 or isinstance(rows, json_lists.JsonRows | TarRows):
        return list(range(len(rows)))
    found = [i for i, row in enumerate(rows.select_columns(columns)) if is_downloaded(row)]
    if len(found) < len(rows):
        left = len(rows) - len(found)
        rank_zero_info(f"left out {left} of {len(rows)} rows because img2dataset could not download their images")
    return found
