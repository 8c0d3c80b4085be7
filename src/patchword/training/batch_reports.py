"""Reports on batches: cut captions, unknown words and repeated images are counted in the log and reported once."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch.utilities import rank_zero_warn

from patchword.data.batch import Batch
from patchword.encoders.base import Tokens

Log = Callable[..., None]  # LightningModule.log


class BatchReports:
    """Remembers what was reported, so that each warning appears once."""

    def __init__(self) -> None:
        self._splits_with_cut_captions: set[str] = set()
        self._splits_seen: set[str] = set()
        self._has_repeated_images = False

    def report_repeated_images(self, batch: Batch, log: Log) -> None:
        """Log the number of images that occur twice in a batch of this device, and warn once."""
        if not batch.repeated:
            return
        log("train/repeated_images", float(batch.repeated), reduce_fx="sum", batch_size=1, on_step=False, on_epoch=True)
        if self._has_repeated_images:
            return
        self._has_repeated_images = True
        rank_zero_warn(
            f"{batch.repeated} of the {len(batch)} images of a batch occur in it more than once, so the loss treats "
            "each as a negative of itself; the log counts them as train/repeated_images. List the captions of one "
            "image in one row, let rows name image files, or lower data.batch_size"
        )

    def report_captions(self, tokens: Tokens, split: str, log: Log) -> None:
        """Report the captions of a batch that were cut, and the words that the tokenizer does not know."""
        self.report_cut_captions(tokens, split, log)
        self.report_unknown_words(tokens, split)

    def report_cut_captions(self, tokens: Tokens, split: str, log: Log) -> None:
        """Log the number of captions that are too long for the text tower, and warn of the first one in each split."""
        if not tokens.truncated.any():
            return
        name = f"{split}/cut_captions"
        log(name, tokens.truncated.sum().float(), reduce_fx="sum", add_dataloader_idx=False, batch_size=1)
        if split in self._splits_with_cut_captions:
            return
        self._splits_with_cut_captions.add(split)
        first = tokens.captions[int(tokens.truncated.int().argmax())]
        rank_zero_warn(
            f"a caption is longer than the text tower's {tokens.ids.shape[1]} tokens and was cut: {first[:80]!r}; "
            f"the log counts such captions as {name}"
        )

    def report_unknown_words(self, tokens: Tokens, split: str) -> None:
        """Warn if the tokenizer does not know at least a tenth of the words in the first batch of a split."""
        if split in self._splits_seen:
            return
        self._splits_seen.add(split)
        unknown, words = int(tokens.unknown.sum()), int(tokens.select("words").sum())
        if 10 * unknown < max(words, 1):
            return
        row, token = tokens.unknown.nonzero()[0].tolist()
        start, end = tokens.spans[row, token].tolist()
        rank_zero_warn(
            f"the tokenizer does not know {unknown} of the {words} words in the first {split} batch, such as "
            f"{tokens.captions[row][start:end]!r}, and gives all of them the same token: give the text tower a "
            "tokenizer that was made for your captions"
        )
