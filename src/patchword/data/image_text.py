"""Your own images and captions in any format that Hugging Face `datasets` reads."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from patchword.data.batch import Batch
from patchword.data.fingerprint import fingerprint, stamps
from patchword.data.phrases import automatic
from patchword.data.pixels import Preprocessing
from patchword.data.rows import Augmentation, Captions, Columns, RowReader
from patchword.data.skipping import SkippedList
from patchword.data.sources import Source, downloaded, open_rows, read_on
from patchword.data.splits import Splits
from patchword.data.stream import RowStream, StreamLoader
from patchword.data.table import TableSamples, TrainingTableSamples
from patchword.errors import InputError
from patchword.hub import record
from patchword.spec import Specified


class ImageText(Specified, Splits):
    """Images and captions of the Hugging Face hub, or of parquet, CSV, TSV, JSON, WebDataset or image folders of yours.

    `source` says how `train`, `val` and `test` are meant: for a format (`parquet`, `csv`, `tsv`, `json`, `webdataset`,
    `imagefolder`) they are files (a path, a glob, a range such as `{00000..00331}.tar`, or a list; of `imagefolder` the
    folder), else they are names of splits of the data set `source`. Code of the hub is never run.

    A sample that cannot be read is passed over: its place goes to another one, `skipped.jsonl` in the folder of the run
    names it, and more than `max_broken` of them are an error.

    Args:
        source: A format, the name of a data set on the hub (`OWNER/NAME`, or `OWNER/NAME@REVISION` for a branch, a tag
            or a commit), or the folder of one.
        train: What to train on.
        val: What to validate on; null for no validation.
        test: What to test and predict on; null for none.
        config: Which configuration of a data set that has several.
        image: The column with the image or its path; or a path with columns in braces, such as `{key:.5}/{key}.jpg`.
        caption: The column, or columns, with one or several captions. A dot leads into a record: `json.caption`.
        root: The folder that image paths are relative to, and must not leave; null for the folder of the files.
        captions: Of several captions, training sees the `first`, a `sample` of one in each epoch, or `all` of them.
            Evaluation sees all.
        captions_per_image: Of `all`, so many of each image: more are drawn from anew in each epoch, fewer are repeated.
            Null shows as many as there are; a loss takes them if each image has equally many.
        sentences: In training every sentence of a caption is a caption.
        phrases: Noun phrases of captions: `none`, `words` (all but function words), `spacy` or `spacy:MODEL` (noun
            phrases, 5 ms or so each caption), `data` or `data:COLUMN` (objects with start, end and, if they have one,
            box), or `auto`: a column `phrases` if there is one, else spaCy's if it is installed, else words.
        augmentation: In training, `none`, or the random `crop` of CLIP.
        fit: How an image becomes a square: as the `backbone` was trained, the centre's `crop`, or all of it, to
            `stretch`.
        image_size: Height and width in pixels; null for what the encoder takes.
        max_pixels: Images with more pixels than that are broken; null for Pillow's limit of 89 million.
        max_broken: So many samples of a split may be broken, on each device.
        streaming: Train on rows in the order of their files, without a copy of the data in the cache of `datasets`.
            Validation and test read theirs as ever.
        steps_per_epoch: Of a stream: the number of batches after which an epoch is said to end.
        shuffle_buffer: Of a stream: from so many rows at a time the next one is drawn.
        batch_size: Images per batch on each device.
        seed: Each seed shuffles in another way.
        num_workers: Processes that read images; 0 reads them in the training process.

    Raises:
        InputError: If an option or the data is not as it should be; the message names option, file and row.
    """

    def __init__(
        self,
        source: str,
        train: str | list[str],
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        config: str | None = None,
        image: str = "image",
        caption: str | list[str] = "caption",
        root: str | None = None,
        captions: Captions = "first",
        captions_per_image: int | None = None,
        sentences: bool = False,
        phrases: str = "none",
        augmentation: Augmentation = "none",
        fit: Literal["backbone", "crop", "stretch"] = "backbone",
        image_size: int | None = None,
        max_pixels: int | None = None,
        max_broken: int = 100,
        streaming: bool = False,
        steps_per_epoch: int | None = None,
        shuffle_buffer: int = 1_000,
        batch_size: int = 64,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if image_size is not None and image_size < 1:
            raise InputError(f"image_size must be a positive number of pixels, not {image_size}")
        limit = Image.MAX_IMAGE_PIXELS
        if max_pixels is not None and not 1 <= max_pixels <= (limit or max_pixels):
            raise InputError(f"max_pixels must lie between 1 and Pillow's limit of {limit}, not {max_pixels}")
        if max_broken < 0:
            raise InputError(f"max_broken must be 0 (the first broken sample is an error) or more, not {max_broken}")
        if streaming and (steps_per_epoch is None or steps_per_epoch < 1):
            raise InputError(
                "streaming needs steps_per_epoch: a stream has no length, and devices whose epochs differed in length "
                "would wait for one another without end"
            )
        if steps_per_epoch is not None and not streaming:
            raise InputError("steps_per_epoch is for streaming: true; otherwise an epoch shows every row once")
        if shuffle_buffer < 1:
            raise InputError(f"shuffle_buffer must be 1 (only files are shuffled) or more, not {shuffle_buffer}")
        if captions_per_image is not None and (captions != "all" or captions_per_image < 1):
            raise InputError(
                "captions_per_image is for captions: all, and must be 1 or more, or null for all there are"
            )
        if not caption:
            raise InputError("caption is an empty list: name a column")
        kind, _, column = phrases.partition(":")
        of_data = (column or "phrases") if kind == "data" else None
        self.columns = Columns(image, [caption] if isinstance(caption, str) else caption, of_data)
        self.source = source
        self.patterns = {"train": train, "val": val, "test": test}
        self.config = config
        self.root = None if root is None else Path(root).expanduser()
        self.captions: Captions = captions
        self.captions_per_image = captions_per_image
        self.sentences = sentences
        self.phrases = phrases
        self.augmentation: Augmentation = augmentation
        self.fit = fit
        self.image_size = image_size
        self.max_pixels = max_pixels
        self.max_broken = max_broken
        self.streaming = streaming
        self.steps_per_epoch = steps_per_epoch
        self.shuffle_buffer = shuffle_buffer
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self._sources: dict[str, Source] = {}
        self._stream: StreamLoader | None = None
        self._skipped = SkippedList(max_broken, None)
        if val is None:
            self.val_dataloader = None  # type: ignore[method-assign, assignment] # what Lightning takes for no validation

    def prepare_data(self) -> None:
        """Download and convert once on each machine, before its other processes read the result."""
        if self.trainer is not None and self.trainer.state.fn is not None:
            self._open(self.trainer.state.fn)

    def setup(self, stage: str) -> None:
        """Open the splits that `stage` needs, and look at the first row of each."""
        folder = self.trainer.log_dir if self.trainer is not None else None
        self._skipped = SkippedList(self.max_broken, None if folder is None else Path(folder))
        self._open(stage)

    def train_dataloader(self) -> Iterable[Batch]:
        """Shuffled and resumable; this device's share."""
        if not self.streaming:
            return super().train_dataloader()
        world_size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        from datasets.distributed import split_dataset_by_node

        rows: Any = split_dataset_by_node(self._source("train").rows, rank, world_size)
        if self.num_workers > rows.num_shards:
            raise InputError(
                f"data.num_workers is {self.num_workers}, and each of {world_size} device(s) streams "
                f"{rows.num_shards} file(s) of data.train, each read by one process: set data.num_workers to "
                f"{rows.num_shards} or less, or write more files"
            )
        assert self.steps_per_epoch is not None
        stream = RowStream(
            rows, self._reader("train"), "data.train", self.batch_size, self.shuffle_buffer, self.seed, rank,
            self.max_broken,
        )  # fmt: skip
        self._stream = StreamLoader(stream, self.steps_per_epoch, self.num_workers, world_size)
        return self._stream

    def teardown(self, stage: str) -> None:
        """End the processes that read a stream."""
        if self._stream is not None:
            self._stream.close()

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Note the broken samples that the batch's have taken the place of.

        Raises:
            InputError: If there have been more than `max_broken`.
        """
        if batch.skipped:
            trainer = self.trainer
            assert trainer is not None
            name = "train" if trainer.training else "val" if trainer.validating or trainer.sanity_checking else "test"
            self._skipped.add(name, batch.skipped)
        return batch

    @property
    def commits(self) -> dict[str, str]:
        """The commit of the hub's data set that was read; empty of files, and before anything was read."""
        return record(*(source.repository for source in self._sources.values()))

    def split(self, name: str) -> TableSamples:
        """The samples of a split that can be read in any order."""
        source = self._source(name)
        numbers = np.array(downloaded(source.rows), dtype=np.int64)
        kind = TrainingTableSamples if name == "train" else TableSamples
        seed = self.seed if name == "train" else 0  # runs with different seeds are measured on one thing
        return kind(source.rows, numbers, self._reader(name), f"data.{name}", seed, self.max_broken)

    def fingerprint(self, split: str) -> str:
        """Depends on the split's files (names, sizes, times), images that they name, and options that change samples.

        Raises:
            InputError: If samples differ from epoch to epoch.
        """
        chance = self.captions == "sample" or self.captions_per_image is not None
        if split == "train" and (self.streaming or self.augmentation != "none" or chance):
            raise InputError(
                "the training samples differ from epoch to epoch, so that nothing computed from them can be kept: set "
                "data.augmentation to none, data.captions to first, and data.streaming to false"
            )
        source, reader = self._source(split), self._reader(split)
        rows: Any = source.rows
        files = stamps(source.files) or [rows._fingerprint]
        images = []
        if reader.path(rows[0], f"data.{split}") is not None:
            places = ((row, f"data.{split}, row {i}") for i, row in enumerate(rows))
            paths = [path for row, place in places if (path := reader.path(row, place))]
            images = stamps(path for path in paths if path.is_file())
        options = [self.captions, self.sentences] if split == "train" else []
        view = [asdict(reader.preprocessing), reader.size, self.max_pixels]
        return fingerprint("ImageText", asdict(reader.columns), reader.phrases, files, images, view, options)

    def _open(self, stage: str) -> None:
        """Open the splits that `stage` needs."""
        for name in {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",)):
            if name != "val" or stage == "validate" or self.patterns["val"] is not None:
                self._source(name)

    def _source(self, name: str) -> Source:
        """The rows of a split, opened when they are asked for first."""
        if name not in self._sources:
            pattern, option = self.patterns.get(name), f"data.{name}"
            if pattern is None:
                raise InputError(f"{option} is null: say which of {self.source} it is")
            streaming = self.streaming and name == "train"
            opened = next(iter(self._sources.values())).repository if self._sources else None
            pinned = self.source if opened is None else f"{opened.name}@{opened.commit}"
            source = open_rows(pinned, pattern, option, self.config, streaming, self.root)
            with closing(read_on(source.rows, option)) as rows:
                first = next(rows, None)
            if first is None:
                raise InputError(f"{option}: {pattern} holds no rows")
            self.columns.check(first, f"{option} ({pattern})")
            self._sources[name] = source
        return self._sources[name]

    def _reader(self, name: str) -> RowReader:
        """Makes samples of the rows of a split."""
        preprocessing, size = self._framing()
        source, columns, phrases = self._source(name), self.columns, self.phrases
        if phrases == "auto":
            phrases = automatic(next(iter(source.rows)))
            rank_zero_info(f"phrases of data.{name}: {phrases}")
            columns = replace(columns, phrases="phrases" if phrases == "data" else None)
        return RowReader(
            columns,
            source.root,
            preprocessing,
            size,
            self.max_pixels,
            self.captions,
            self.captions_per_image,
            self.sentences,
            self.augmentation,
            phrases,
            source.repository,
        )

    def _framing(self) -> tuple[Preprocessing, int]:
        """How an image becomes a square, and its size, as the options or else the encoder say."""
        if self.fit != "backbone" and self.image_size is not None:
            return Preprocessing(self.fit), self.image_size
        if self.trainer is None:
            raise InputError("outside a Trainer there is no encoder to ask: set fit to crop or stretch, and image_size")
        encoder: Any = self.trainer.lightning_module.encoder
        return encoder.preprocessing.fitted(self.fit), self.image_size or encoder.image_size[0]
