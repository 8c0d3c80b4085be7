"""Images and captions in tars, as img2dataset writes them and WebDataset reads them."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset

from patchword.data.batch import Sample
from patchword.data.fingerprint import fingerprint, stamps
from patchword.data.handles import Handles
from patchword.data.patterns import find_files
from patchword.data.pixels import Preprocessing, read_image
from patchword.data.splits import Splits
from patchword.data.tar_index import TarIndex, index_tars
from patchword.data.tars import BLOCK, key_at
from patchword.errors import InputError
from patchword.spec import Specified


class ShardedCaptions(Dataset[Sample]):
    """The samples of many tars (shards), each read where the index says that it lies.

    A sample's id is its place among the samples of all shards in their order. An epoch goes through the shards in
    random order and through the samples of `mix` shards at a time in random order, so that a process reads from few
    files at once.

    Args:
        index: Where the samples are.
        image_size: Height and width in pixels; images are scaled so that the shorter side fits and cropped at the
            centre.
        field: Of a caption's member that is JSON, the field with the caption; empty if the member is the caption.
        mix: Number of shards whose samples are mixed.

    Raises:
        InputError: When a sample is read whose image or caption cannot be; the message names shard and key.
    """

    def __init__(self, index: TarIndex, image_size: int, field: str = "", mix: int = 8) -> None:
        self.index = index
        self.image_size = image_size
        self.field = field
        self.mix = mix
        self._handles = Handles()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Sample:
        sample = range(len(self))[index]
        path = self.index.path(sample)
        image_block, image_bytes, caption_block, caption_bytes = self.index.places[sample].tolist()
        try:
            caption = _caption(self._read(path, caption_block, caption_bytes), self.field)
            image = read_image(BytesIO(self._read(path, image_block, image_bytes)))
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): mend that, and resume") from error
        except ValueError as error:
            place = f"{path}: sample {key_at(path, image_block)}"
            raise InputError(f"{place}: {error}; repair or remove the sample") from error
        view = Preprocessing().view(*image.size, self.image_size)
        return Sample(sample, view.image(image), [caption], [[]], [])

    def order(self, generator: torch.Generator) -> Int64[Tensor, " N"]:
        """All samples, those of `mix` randomly chosen shards mixed, then those of the next `mix`, and so on."""
        starts = self.index.starts.tolist()
        shards = torch.randperm(len(starts) - 1, generator=generator)
        pools = [torch.cat([torch.arange(starts[i], starts[i + 1]) for i in pool]) for pool in shards.split(self.mix)]
        return torch.cat([pool[torch.randperm(len(pool), generator=generator)] for pool in pools])

    def _read(self, path: Path, block: int, size: int) -> bytes:
        content = self._handles.read(path, block * BLOCK, size)
        if len(content) < size:
            raise InputError("the shard is shorter than it was when it was indexed")
        return content


class CaptionShards(Specified, Splits):
    """Your own data in tars (shards) of images and captions, as img2dataset writes CC3M and others.

    A sample is made of the members `KEY.jpg` (or jpeg, png, webp) and `KEY.txt` of an uncompressed tar. Each of
    `train`, `val` and `test` is a path, a glob (`shards/*.tar`), a range (`shards/{00000..00331}.tar`) or a list of
    these. An index of the samples is made at the first start and kept beside the shards, if their folder can be
    written.

    Args:
        train: The shards to train on.
        val: The shards to validate on; null for no validation.
        test: The shards to test and predict on; null for none.
        caption: The member with the caption, `txt`, or `json:FIELD` for a field of KEY.json.
        image_size: Height and width in pixels to which images are scaled and cropped.
        batch_size: Images per batch on each device.
        mix: Shards whose samples are mixed at a time when training shuffles: more mix better, fewer are read from at
            once.
        seed: Each seed shuffles in another way.
        num_workers: Processes that read images; 0 reads them in the training process.

    Raises:
        InputError: At setup, before training, if shards are missing or not whole, or a sample lacks its image or
            caption; when it is read, if an image or a caption cannot be decoded. The message names shard and key.
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        caption: str = "txt",
        image_size: int = 224,
        batch_size: int = 64,
        mix: int = 8,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if image_size < 1:
            raise InputError(f"image_size must be a positive number of pixels, not {image_size}")
        if mix < 1:
            raise InputError(f"mix must be 1 (samples of one shard at a time) or more, not {mix}")
        self.patterns = {"train": train, "val": val, "test": test}
        self.member, _, self.field = caption.partition(":")
        if not self.member or (self.member == "json") != bool(self.field):
            raise InputError(f"caption must be a member such as txt, or json:FIELD, not {caption!r}")
        self.image_size = image_size
        self.batch_size = batch_size
        self.mix = mix
        self.seed = seed
        self.num_workers = num_workers
        self._splits: dict[str, ShardedCaptions] = {}
        if val is None:
            self.val_dataloader = None  # type: ignore[method-assign, assignment] # what Lightning takes for no validation

    def prepare_data(self) -> None:
        """Index the shards once on each machine, before its other processes read the index."""
        if self.trainer is not None and self.trainer.state.fn is not None:
            self.setup(self.trainer.state.fn)

    def setup(self, stage: str) -> None:
        """Find and index the shards that `stage` needs."""
        if stage == "fit":
            self.split("train")
        if stage == "validate" or (stage == "fit" and self.patterns["val"] is not None):
            self.split("val")
        if stage in ("test", "predict"):
            self.split("test")

    def split(self, name: str) -> ShardedCaptions:
        """The samples of a split's shards, found and indexed when they are asked for first."""
        if name not in self._splits:
            patterns, option = self.patterns[name], f"data.{name}"
            if patterns is None:
                raise InputError(f"{option} is null: say which shards it is")
            index = index_tars(find_files(patterns, option), self.member)
            if len(index) == 0:
                raise InputError(f"{option}: the shards of {patterns} hold no samples")
            self._splits[name] = ShardedCaptions(index, self.image_size, self.field, self.mix)
        return self._splits[name]

    def fingerprint(self, split: str) -> str:
        """Depends on names, sizes and times of the shards, and on the options that change samples."""
        paths = self.split(split).index.paths
        return fingerprint(type(self).__name__, stamps(paths), self.member, self.field, self.image_size)


def _caption(member: bytes, field: str) -> str:
    """The caption in the member's bytes.

    Raises:
        InputError: If there is none; the message does not name the sample.
    """
    try:
        content = json.loads(member) if field else member.decode("utf-8-sig")
    except ValueError as error:
        raise InputError(f"the caption is not {'JSON' if field else 'UTF-8 text'} ({error})") from error
    if field:
        if not isinstance(content, dict) or not isinstance(content.get(field), str):
            names = ", ".join(content) if isinstance(content, dict) else "no fields"
            raise InputError(f"its JSON has no text {field!r}, but {names}: set data.caption to json:FIELD")
        content = content[field]
    if not content.strip():
        raise InputError("the caption is empty")
    return content.strip()
