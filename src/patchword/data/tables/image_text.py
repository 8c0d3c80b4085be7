"""Images and captions: your own in any format that Hugging Face `datasets` reads, and published data sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from patchword.data.augmentation import Views
from patchword.data.batch import Batch
from patchword.data.feature_cache import FeatureCache
from patchword.data.pixels import Box, Preprocessing, ResizeOption, require_image_size
from patchword.data.published import LAYOUTS
from patchword.data.skipping import BrokenSample, SkippedList
from patchword.data.splits import Splits
from patchword.data.tables.phrases import automatic
from patchword.data.tables.rows import Augmentation, Captions, Columns, RowReader
from patchword.data.tables.sources import Source, downloaded, open_rows, read_on
from patchword.data.tables.stream import RowStream, StreamLoader
from patchword.data.tables.swaps import swap_model
from patchword.data.tables.table import TableSamples, shared_images
from patchword.data.tables.texts import Join
from patchword.data.tables.training import TrainingTableSamples
from patchword.data.tars.tar_index import TarRows
from patchword.errors import UserError
from patchword.provenance.fingerprint import fingerprint, stamps
from patchword.provenance.hub import record
from patchword.provenance.spec import Configurable


class ImageText(Configurable, Splits):
    """Images and captions from the Hugging Face hub or from parquet, CSV, TSV, JSON, WebDataset or image folders.

    If `source` is a format (`parquet`, `csv`, `tsv`, `json`, `webdataset`, `imagefolder`), then `train`, `val` and
    `test` are files: a path, a glob, a range such as `{00000..00331}.tar`, or a list; for `imagefolder`, the folder.
    Otherwise `source` is a data set, and they are names of its splits. Code from the hub is never run. Flickr8k,
    Flickr30k and COCO (`flickr8k`, `flickr30k`, `coco`) are read from `root`, in the layout of their archives.

    A sample that cannot be read is replaced by another one and listed in `skipped.jsonl` in the run's folder; more than
    `max_broken` of them raise an error. Rows that name the same image file are one image: in evaluation they are one
    sample with all captions, and in training they are never in the same batch, where each would be a negative of the
    other.

    Args:
        source: A format, a published data set (`flickr8k`, `flickr30k`, `coco`), the name of a data set on the hub
            (`OWNER/NAME`, or `OWNER/NAME@REVISION` for a branch, a tag or a commit), or the folder of a data set. If
            splits come from different sources, `source`, `image`, `caption` and `root` can each have one value per
            split: `{train: webdataset, val: json}`.
        train: Files or split for training.
        val: Files or split for validation; null for no validation.
        test: Files or split for test and predict; null for none.
        config: The configuration of a data set that has several.
        image: The column with the image or its path, or a path with columns in braces, such as `{key:.5}/{key}.jpg`.
            For tars, `image` is the jpg, jpeg, png or webp of each sample.
        caption: The column or columns with one or several captions. A dot selects a field of a record (`json.caption`)
            or of all records of a list (`sentences.raw`); a number selects one record (`conversations.1.value`).
        root: The folder that image paths are relative to and must not leave; null for the folder of the files. For a
            published data set, the folder with its files.
        captions: The captions that training sees: the `first` one, a random `sample` of one per epoch, or `all`.
            Evaluation sees all captions.
        captions_per_image: With `all`, the number of captions per image. If an image has more, they are drawn again in
            each epoch; if it has fewer, they are repeated. Null uses all captions; a loss needs the same number for
            each image.
        sentences: True turns every sentence of a caption into a caption of its own in training.
        join: The long texts of training: `all` puts a text of all captions of the image, joined, in front of them, and
            `captions_per_image` always keeps it as the first one; `prefixes` replaces the captions with the first one,
            the first two joined, the first three joined, and so on; `none` joins none.
        phrases: The source of phrases: `none`, `words` (all words except function words), `spacy` or `spacy:MODEL`
            (noun phrases; about 5 ms per caption), `data` or `data:COLUMN` (objects with start, end and, if known, box
            or boxes, type, and caption, which is the index of their caption), or `auto` (the column `phrases` if it
            exists, else spaCy if it is installed, else words).
        negatives: The source of hard negatives: a column with one or several captions that are wrong for the image, or
            `swap` or `swap:MODEL`, which exchanges two words or phrases of a caption that a spaCy model finds, as in
            NegCLIP (about 5 ms per caption). Evaluation measures those of an image's first caption. They can have one
            value per split; a split without a value has none. Null for none.
        augmentation: The augmentation in training: `none`, or `crop` for CLIP's random crop.
        views: Random crops of a training image as further views of it, which some objectives need; null for none.
        resize_mode: How an image becomes a square: `backbone` as the backbone was trained, `crop` crops the center,
            `stretch` stretches the entire image, `native` keeps its shape and pads it (for NaFlex models only).
        image_size: Height and width in pixels; null for the encoder's size.
        scaled_decoding: True decodes a JPEG at a half, a quarter or an eighth of its size if that is still at least as
            large as what the model sees. This is faster and changes pixels a little. Other formats are read completely.
        max_pixels: Images with more pixels count as broken; null for Pillow's limit of 89 million.
        max_broken: The largest number of broken samples per split and device.
        streaming: True trains on rows in the order of their files, without a copy of the data in the cache of
            `datasets`. Validation and test data are not streamed.
        steps_per_epoch: The number of batches in an epoch of a stream.
        shuffle_buffer: The number of rows of a stream from which the next one is drawn.
        mix: The number of tars whose samples are shuffled together, if the tars are not streamed.
        batch_size: Images per batch on each device.
        seed: Seed of shuffling and other random choices.
        num_workers: Number of processes that read images; 0 reads them in the training process.
        features: A cache of the features of frozen towers, such as `CachedFeatures`.
        test_sets: Other data modules by name that `patchword test` measures as well, such as evaluation suites.

    Raises:
        UserError: If an option or the data is wrong; the message names the option, file and row.
    """

    def __init__(
        self,
        source: str | dict[str, str],
        train: str | list[str],
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        config: str | None = None,
        image: str | dict[str, str] = "image",
        caption: str | list[str] | dict[str, str | list[str]] = "caption",
        root: str | dict[str, str] | None = None,
        captions: Captions = "first",
        captions_per_image: int | None = None,
        sentences: bool = False,
        join: Join = "none",
        phrases: str = "none",
        negatives: str | dict[str, str] | None = None,
        augmentation: Augmentation = "none",
        views: Views | None = None,
        resize_mode: ResizeOption = "backbone",
        image_size: int | None = None,
        scaled_decoding: bool = False,
        max_pixels: int | None = None,
        max_broken: int = 100,
        streaming: bool = False,
        steps_per_epoch: int | None = None,
        shuffle_buffer: int = 1_000,
        mix: int = 8,
        batch_size: int = 64,
        seed: int = 0,
        num_workers: int = 0,
        features: FeatureCache | None = None,
        test_sets: dict[str, LightningDataModule] | None = None,
    ) -> None:
        super().__init__()
        require_image_size(image_size)
        limit = Image.MAX_IMAGE_PIXELS
        if max_pixels is not None and not 1 <= max_pixels <= (limit or max_pixels):
            raise UserError(f"max_pixels must be between 1 and Pillow's limit of {limit}, not {max_pixels}")
        if max_broken < 0:
            raise UserError(f"max_broken must be 0 (the first broken sample raises an error) or more, not {max_broken}")
        if streaming and (steps_per_epoch is None or steps_per_epoch < 1):
            raise UserError(
                "streaming needs steps_per_epoch: a stream has no length, and devices with epochs of different lengths "
                "would wait for each other forever"
            )
        if steps_per_epoch is not None and not streaming:
            raise UserError("steps_per_epoch requires streaming: true; without streaming an epoch shows every row once")
        if shuffle_buffer < 1:
            raise UserError(f"shuffle_buffer must be 1 (only files are shuffled) or more, not {shuffle_buffer}")
        if mix < 1:
            raise UserError(f"mix must be 1 (samples of one tar at a time) or more, not {mix}")
        if captions_per_image is not None and (captions != "all" or captions_per_image < 1):
            raise UserError(
                "captions_per_image requires captions: all, and must be 1 or more, or null for all captions"
            )
        if not caption or (isinstance(caption, dict) and not all(caption.values())):
            raise UserError("caption is empty: set it to the name of a column")
        options = {"source": source, "image": image, "caption": caption, "root": root, "negatives": negatives}
        for name, option in options.items():
            if isinstance(option, dict) and (wrong := option.keys() - {"train", "val", "test"}):
                raise UserError(
                    f"data.{name} has the key {wrong.pop()!r}, but only the keys train, val and test are allowed"
                )
        kind, _, column = phrases.partition(":")
        of_data = (column or "phrases") if kind == "data" else None
        self.of_data = of_data
        self.image = image
        self.caption = caption
        self.negatives = negatives
        self.source = source
        self.patterns = {"train": train, "val": val, "test": test}
        self.config = config
        self.root = root
        self.captions: Captions = captions
        self.captions_per_image = captions_per_image
        self.sentences = sentences
        self.join: Join = join
        self.phrases = phrases
        self.augmentation: Augmentation = augmentation
        self.views = views
        self.resize_mode = resize_mode
        self.image_size = image_size
        self.scaled_decoding = scaled_decoding
        self.max_pixels = max_pixels
        self.max_broken = max_broken
        self.streaming = streaming
        self.steps_per_epoch = steps_per_epoch
        self.shuffle_buffer = shuffle_buffer
        self.mix = mix
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.features = features
        self.test_sets = test_sets or {}
        self._sources: dict[str, Source] = {}
        self._stream: StreamLoader | None = None
        self._skipped = SkippedList(max_broken, None)
        if val is None:
            self.val_dataloader = None  # type: ignore[method-assign, assignment] # this tells Lightning that there is no validation

    def prepare_data(self) -> None:
        """Download and convert once on each machine, before its other processes read the result."""
        if self.trainer is not None and self.trainer.state.fn is not None:
            self._open(self.trainer.state.fn)

    def setup(self, stage: str) -> None:
        """Open the splits that `stage` needs and check the first rows of each."""
        folder = self.trainer.log_dir if self.trainer is not None else None
        self._skipped = SkippedList(self.max_broken, None if folder is None else Path(folder))
        self._open(stage)
        super().setup(stage)

    def training_samples(self) -> Any:
        """Return a shuffled, resumable loader of this device's share of the training images."""
        if not self.streaming:
            return super().training_samples()
        world_size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        from datasets.distributed import split_dataset_by_node

        rows: Any = split_dataset_by_node(self._source("train").rows, rank, world_size)
        if self.num_workers > rows.num_shards:
            raise UserError(
                f"data.num_workers is {self.num_workers}, but each of {world_size} device(s) streams "
                f"{rows.num_shards} file(s) of data.train, and one process reads each file: set data.num_workers to "
                f"{rows.num_shards} or less, or split the data into more files"
            )
        assert self.steps_per_epoch is not None
        stream = RowStream(
            rows, self._reader("train"), "data.train", self.batch_size, self.shuffle_buffer, self.seed, rank,
            self.max_broken,
        )  # fmt: skip
        self._stream = StreamLoader(stream, self.steps_per_epoch, self.num_workers, world_size)
        return self._stream

    def teardown(self, stage: str) -> None:
        """Stop the processes that read a stream."""
        if self._stream is not None:
            self._stream.close()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Record the broken samples that samples of the batch replace; batches of suites have none.

        Raises:
            UserError: If there are more than `max_broken`.
        """
        if isinstance(batch, Batch) and batch.skipped:
            trainer = self.trainer
            assert trainer is not None
            name = "train" if trainer.training else "val" if trainer.validating or trainer.sanity_checking else "test"
            self._skipped.add(name, batch.skipped)
        return batch

    @property
    def commits(self) -> dict[str, str]:
        """The commits of the data sets from the hub; empty for files, and before anything was read."""
        return record(*(source.repository for source in self._sources.values()))

    def split(self, name: str) -> TableSamples:
        """Return the samples of a split, with random access."""
        source = self._source(name)
        numbers = np.array(downloaded(source.rows), dtype=np.int64)
        kind = TrainingTableSamples if name == "train" else TableSamples
        seed = self.seed if name == "train" else 0  # evaluation does not depend on the seed
        reader, place = self._reader(name), f"data.{name}"
        images = shared_images(source.rows, numbers, reader, place)
        if note := reader.resized(source.rows[0], f"{place}, row 0"):
            rank_zero_info(note)
        return kind(source.rows, numbers, images, reader, place, seed, self.max_broken, self.mix)

    def training_boxes(self) -> Iterator[tuple[str, list[Box]]]:
        """Yield the text and the boxes of each training phrase that has boxes; no image is decoded.

        The edges of boxes are fractions of what the model sees of the image. Streams yield nothing, and broken rows are
        left out.
        """
        if self.streaming or self.phrases in ("none", "words") or self.phrases.startswith("spacy"):
            return
        reader, rows = self._reader("train"), self._source("train").rows
        if reader.columns.phrases is None:
            return
        for number in downloaded(rows):
            with suppress(BrokenSample):
                yield from reader.boxes(rows[number], f"data.train, row {number}")

    def fingerprint(self, split: str) -> str:
        """Return a hash of the split's files (names, sizes, times), their images, and options that change samples.

        The hash of `train` covers all captions. It does not depend on how texts are chosen and made from them.

        Raises:
            UserError: If images differ between epochs.
        """
        if split == "train" and (self.streaming or self.augmentation != "none" or self.views is not None):
            raise UserError(
                "the training images differ from epoch to epoch, so nothing that is computed from them can be stored: "
                "set data.augmentation to none, data.views to null and data.streaming to false"
            )
        source, reader = self._source(split), self._reader(split)
        rows: Any = source.rows
        files = stamps(source.files) or [rows._fingerprint]
        images = []
        if not isinstance(rows, TarRows) and reader.path(rows[0], f"data.{split}") is not None:
            places = ((row, f"data.{split}, row {i}") for i, row in enumerate(rows))
            paths = [path for row, place in places if (path := reader.path(row, place))]
            images = stamps(path for path in paths if path.is_file())
        options: list[Any] = [self.sentences] if split == "train" else self.made_texts(split)
        options += [source.selection] if source.selection is not None else []
        view = [asdict(reader.preprocessing), reader.size, self.max_pixels]
        view += ["scaled decoding"] if self.scaled_decoding else []
        return fingerprint("ImageText", asdict(reader.columns), reader.phrases, files, images, view, options)

    def made_texts(self, split: str) -> list[str]:
        """Describe the long texts and the hard negatives that are made from the captions of a split."""
        long = [f"join {self.join}"] if split == "train" and self.join != "none" else []
        model = swap_model(self._negatives(split))
        return long + ([f"swap:{model}"] if model else [])

    def _open(self, stage: str) -> None:
        """Open the splits that `stage` needs."""
        for name in {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",)):
            if name != "val" or stage == "validate" or self.patterns["val"] is not None:
                self._source(name)

    def _option(self, option: str, split: str) -> Any:
        """Return the value of an option that can have one value per split.

        Raises:
            UserError: If the option has no value for this split.
        """
        value = getattr(self, option)
        if not isinstance(value, dict):
            return value
        if split not in value:
            raise UserError(f"data.{option} has values for {', '.join(value)}, but none for {split}: add one")
        return value[split]

    def columns(self, split: str) -> Columns:
        """Return the columns of a split's rows."""
        caption = self._option("caption", split)
        captions = [caption] if isinstance(caption, str) else caption
        size = "size" if self._option("source", split) in LAYOUTS else None
        negatives = self._negatives(split)
        column = None if swap_model(negatives) else negatives
        return Columns(self._option("image", split), captions, self.of_data, column, size)

    def _negatives(self, split: str) -> str | None:
        """Return the source of the hard negatives of a split."""
        return self.negatives.get(split) if isinstance(self.negatives, dict) else self.negatives

    def _source(self, name: str) -> Source:
        """Return the rows of a split, which are opened at the first call."""
        if name not in self._sources:
            pattern, option = self.patterns.get(name), f"data.{name}"
            of = self._option("source", name)
            if pattern is None:
                raise UserError(f"{option} is null: set it to files or a split of {of}")
            streaming = self.streaming and name == "train"
            same = (self._sources[other].repository for other in self._sources if self._option("source", other) == of)
            opened = next(same, None)
            pinned = of if opened is None else f"{opened.name}@{opened.commit}"  # all splits come from one commit
            root = self._option("root", name)
            folder = None if root is None else Path(root).expanduser()
            columns = self.columns(name)
            source = open_rows(pinned, pattern, option, self.config, streaming, folder, columns.names)
            with closing(read_on(source.rows, option)) as rows:
                columns.check(rows, f"{option} ({pattern})")
            self._sources[name] = source
        return self._sources[name]

    def _reader(self, name: str) -> RowReader:
        """Return the reader that makes samples from the rows of a split."""
        preprocessing, size = self._framing()
        source, columns, phrases = self._source(name), self.columns(name), self.phrases
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
            self.join,
            swap_model(self._negatives(name)),
            source.repository,
            self.views,
            self.scaled_decoding,
        )

    def _framing(self) -> tuple[Preprocessing, int]:
        """Return the preprocessing and the image size from the options, or from the encoder if they are not set."""
        if self.resize_mode in ("crop", "stretch") and self.image_size is not None:
            return Preprocessing(self.resize_mode), self.image_size
        if self.trainer is None:
            raise UserError(
                "without a Trainer there is no encoder that defines resize_mode and image_size: set resize_mode to "
                "crop or stretch, and set image_size"
            )
        encoder: Any = self.trainer.lightning_module.encoder
        return encoder.preprocessing.with_resize_mode(self.resize_mode), self.image_size or encoder.image_size[0]
