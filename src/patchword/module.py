"""The one LightningModule: encode, ask the objective, log, step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import UInt8
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from patchword import __version__, chunks, distributed
from patchword.alignment import Alignment
from patchword.batch_norm import synchronize_batch_norms
from patchword.cached.batch import CachedBatch, embed
from patchword.contrast import Scale
from patchword.data.batch import Batch
from patchword.data.zero_shot import ZeroShotBatch, ZeroShotScores
from patchword.encoders.base import Encoder, Selection, Tokens
from patchword.encoders.checkpointing import checkpoint_gradients
from patchword.encoders.compilation import compile_towers
from patchword.errors import InputError, TrainingError
from patchword.features import Images, Texts
from patchword.hub import commits
from patchword.look import look
from patchword.maps import Policy
from patchword.metrics.evaluation import Evaluation, PhraseMaps, split_name
from patchword.metrics.hard_negatives import pair_scores
from patchword.not_finite import diagnose
from patchword.objective import Objective
from patchword.optimizer_groups import FineTuning, optimizer_of, parameter_groups
from patchword.rng import rng_state, set_rng_state
from patchword.schedule import Schedule
from patchword.sharding import shard
from patchword.spec import callable_spec
from patchword.suites.base import SuiteData, SuiteEvaluation
from patchword.unused import freeze_unused, summary

if TYPE_CHECKING:
    from PIL.Image import Image


class AlignmentModule(LightningModule):
    """Any alignment objective on any pair of encoders.

    Args:
        encoder: The pair of towers.
        objective: What is minimised, scored and drawn.
        tokens: Tokens that take part in token-level losses and maps: `all` real ones, `words` (no special
            tokens) or `content` (no function words either).
        query: How a phrase is turned into a map when grounding is measured: by its `content` words in their
            caption, by its whole `span`, or `alone`, encoded as a caption of its own.
        chunk_size: At most so many images, and captions, go through the towers at once; null for the whole batch. The
            loss and its gradients stay those of the whole batch, in the memory of a chunk, for one more forward pass of
            the towers (GradCache). Accumulating gradients is no substitute: it adds no negatives.
        exchange: How losses over all pairs get other ranks' texts: all at once (`gather`), or one rank's at a time
            (`ring`), in memory that does not grow with the number of ranks, fetching every text twice.
        gradient_checkpointing: Keep no activations inside the towers' blocks but compute them again in the backward
            pass: less memory, a third more time. Loss and gradients stay as they are.
        compile: Compile the towers with `torch.compile` when they run first, which takes a minute or so.
        optimizer: Any torch optimiser. Parameters with fewer than two dimensions (biases, norms,
            temperatures) are not decayed.
        schedule: The learning rate over training.
        fine_tuning: Lower learning rates for the towers, and for their first blocks.
    """

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        tokens: Selection = "all",
        query: Policy = "content",
        chunk_size: int | None = None,
        exchange: distributed.Exchange = "gather",
        gradient_checkpointing: bool = False,
        compile: bool = False,
        optimizer: OptimizerCallable = AdamW,
        schedule: Schedule = Schedule(),  # noqa: B008 - never modified
        fine_tuning: FineTuning = FineTuning(),  # noqa: B008 - never modified
    ) -> None:
        super().__init__()
        if chunk_size is not None and chunk_size < 1:
            raise InputError(f"chunk_size must be 1 or more (or null for the whole batch), not {chunk_size}")
        objective.setup(encoder.embed_dim)
        self.encoder = encoder
        self.objective = objective
        self.tokens = tokens
        self.query = query
        self.chunk_size = chunk_size
        self.exchange = exchange
        self.gradient_checkpointing = gradient_checkpointing
        self.compiled = compile
        self.optimizer = optimizer
        self.schedule = schedule
        self.fine_tuning = fine_tuning
        self.save_hyperparameters(
            {
                "encoder": encoder.spec,
                "objective": objective.spec,
                "tokens": tokens,
                "query": query,
                "chunk_size": chunk_size,
                "exchange": exchange,
                "gradient_checkpointing": gradient_checkpointing,
                "compile": compile,
                "optimizer": callable_spec(optimizer),
                "schedule": asdict(schedule),
                "fine_tuning": asdict(fine_tuning),
                "_instantiator": "lightning.pytorch.cli.instantiate_module",
            }
        )
        self._evaluations: dict[str, Evaluation | SuiteEvaluation] = {}
        self.trained: dict[str, Any] | None = None
        self._rng_states: Tensor | None = None
        self._splits_with_cut_captions: set[str] = set()
        self._splits_seen: set[str] = set()

    def setup(self, stage: str) -> None:
        """Say what the encoders make of an image, and what will not train as one may think."""
        (rows, columns), (height, width) = self.encoder.grid, self.encoder.image_size
        rank_zero_info(
            f"{rows} x {columns} patches of an image of {height} x {width} pixels, D = {self.encoder.embed_dim}"
        )
        if stage == "fit":
            if unused := freeze_unused(self):
                name, what = type(self.objective).__name__, summary(unused, self)
                rank_zero_info(f"not trained, since the loss of {name} does not depend on them: {what}")
            self._warn_of_batches()

    def configure_model(self) -> None:
        """Make of the model what its switches and the trainer's devices ask for; a second time changes nothing.

        Raises:
            InputError: If the trainer's precision would put the objective's parameters into half precision.
        """
        if self._trainer is None:  # `load_from_checkpoint` calls this, too
            return
        if self.trainer.precision in ("16-true", "bf16-true"):
            raise InputError(
                f"trainer.precision is {self.trainer.precision}, and objectives compute in float32: use bf16-mixed"
            )
        synchronize_batch_norms(self)
        if self.gradient_checkpointing:
            checkpoint_gradients(self.encoder)
        if self.compiled:
            compile_towers(self.encoder)
        if self.device_mesh is not None:  # of Lightning's ModelParallelStrategy
            shard(self.encoder, self.objective, self.device_mesh)

    def encode_texts(self, captions: list[str]) -> tuple[Texts, Tokens]:
        """Embeddings of captions, with their tokens."""
        tokens = self.encoder.tokenize(captions).to(self.device)
        return chunks.encode_texts(self.encoder, tokens, self.tokens, self.chunk_size), tokens

    def forward(self, batch: Batch) -> tuple[Images, Texts, Tokens]:
        """Embeddings of a batch's images [I] and captions [T], and the captions' tokens."""
        if isinstance(batch, CachedBatch):
            images, texts, tokens = embed(self.encoder, batch, self.tokens)
        else:
            texts, tokens = self.encode_texts(batch.captions)
            images = self.encode_images(batch.images)
        return images, replace(texts, phrases=tokens.phrases(batch.phrase_caption, batch.phrase_span)), tokens

    def encode_images(self, pixels: UInt8[Tensor, "I 3 H W"]) -> Images:
        """Embeddings of raw pixels."""
        return chunks.encode_images(self.encoder, pixels, self.chunk_size)

    @torch.no_grad()
    def look(self, image: Image, caption: str, phrases: Sequence[str] | None = None, whole: bool = False) -> Alignment:
        """Where the model sees words or phrases of a caption in any image; see `patchword.look.look`."""
        return look(self, image, caption, phrases, whole)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the objective's terms, each logged as `train/<name>`.

        Raises:
            TrainingError: If it is not finite; the message names the terms and the samples.
        """
        self._require_captions(batch)
        images, texts, tokens = self(batch)
        self._report_cut_captions(tokens, "train")
        self._report_unknown_words(tokens, "train")
        terms = self.losses(images, texts)
        loss = self._logged(terms, images, "train")
        if not loss.isfinite():
            raise TrainingError(diagnose(terms, images, texts, batch.ids, self.global_step))
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, PhraseMaps]:
        """Add to the metrics of the validation split; returns the `phrases`' maps for callbacks."""
        return self._evaluate(batch, split_name(self.trainer.val_dataloaders, dataloader_idx, "val"))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, PhraseMaps]:
        """Add to the metrics of a test split; returns the `phrases`' maps for callbacks."""
        return self._evaluate(batch, split_name(self.trainer.test_dataloaders, dataloader_idx, "test"))

    def predict_step(
        self, batch: Batch | ZeroShotBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor] | ZeroShotScores:
        """For each caption, `scores` [T] with its image and `maps` [T, L, P]; `mask` [T, L], `spans` [T, L, 2].

        Of a `ZeroShotBatch`, what its data module makes of it.
        """
        if isinstance(batch, ZeroShotBatch):
            return self.trainer.datamodule.predict(self, batch)  # type: ignore[attr-defined]
        images, texts, tokens = self(batch)
        return {
            "scores": pair_scores(self.objective.score, images, texts, batch.caption_image),
            "maps": self.objective.align(images[batch.caption_image], texts),
            "mask": texts.mask,
            "spans": tokens.spans,
        }

    def on_validation_epoch_end(self) -> None:
        """Log every metric of every split as `<split>/<metric>`."""
        self._log_evaluations()

    def on_test_epoch_end(self) -> None:
        """Log every metric of every split as `<split>/<metric>`."""
        self._log_evaluations()

    def losses(self, images: Images, texts: Texts) -> dict[str, Tensor]:
        """The objective's terms of this rank's pairs among those of all ranks."""
        with distributed.exchange(self.exchange):
            return self.objective(images, texts)

    def _logged(self, terms: dict[str, Tensor], images: Images, split: str) -> Tensor:
        """The terms' sum on this rank; logged are the means over ranks, which are the loss of all ranks' pairs."""
        values = torch.stack(list(terms.values()))
        shared = distributed.mean(values)
        logged = {f"{split}/{name}": value for name, value in zip(terms, shared, strict=True)}
        self.log_dict(logged, batch_size=len(images), add_dataloader_idx=False)
        self.log(f"{split}/loss", shared.sum(), prog_bar=True, batch_size=len(images), add_dataloader_idx=False)
        return values.sum()

    def _evaluate(self, batch: Any, split: str) -> dict[str, PhraseMaps]:
        if split not in self._evaluations:
            self._evaluations[split] = self._evaluation(split).to(self.device)
        evaluation = self._evaluations[split]
        if isinstance(evaluation, SuiteEvaluation):
            evaluation.update(batch)
            return {}
        images, texts, tokens = self(batch)
        self._report_cut_captions(tokens, split)
        self._report_unknown_words(tokens, split)
        self._logged(self.losses(images, texts[batch.first_caption]), images, split)
        return {"phrases": evaluation.update(batch, images, texts, tokens)}

    def _evaluation(self, split: str) -> Evaluation | SuiteEvaluation:
        """What measures a split: a suite's own way, or what is measured on all captions and phrases."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, SuiteData):
            return data.suite(split).evaluation(self)
        return Evaluation(self.encoder, self.objective, self.tokens, self.query)

    def _log_evaluations(self) -> None:
        for split, evaluation in self._evaluations.items():
            self.log_dict({f"{split}/{name}": value for name, value in evaluation.compute().items()})
        self._evaluations = {}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser, weight decay on matrices only, with the schedule applied at every step."""
        optimizer = optimizer_of(parameter_groups(self, self.encoder, self.fine_tuning), self.optimizer)
        factor = self.schedule.factor(lambda: self.trainer.estimated_stepping_batches)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then bring learned temperatures back into their range."""
        super().optimizer_step(*args, **kwargs)
        for part in self.objective.modules():
            if isinstance(part, Scale):
                part.clamp_()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how the model was trained, and every rank's random state: a resumed run draws the same dropout."""
        seed = os.environ.get("PL_GLOBAL_SEED")  # set by lightning's seed_everything
        checkpoint.setdefault("trained", {}).update(
            steps=self.trainer.global_step,
            seed=None if seed is None else int(seed),
            patchword=__version__,
            hub=commits(self.encoder, self.trainer.datamodule),  # type: ignore[attr-defined]
        )
        checkpoint["rng_states"] = distributed.gather(rng_state().to(self.device)[None]).cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the random states until training goes on; building loaders must not consume them."""
        self.trained = checkpoint.get("trained")
        self._rng_states = checkpoint.get("rng_states")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Restore the random state in the first step after a resume."""
        if self._rng_states is not None and len(self._rng_states) == self.trainer.world_size:
            set_rng_state(self._rng_states[self.global_rank])
        self._rng_states = None

    def _warn_of_batches(self) -> None:
        """Warn where a batch is not the one that negatives or statistics come from."""
        batches = self.trainer.accumulate_grad_batches
        if batches > 1:
            rank_zero_warn(
                f"accumulate_grad_batches={batches} adds no negatives: each of the {batches} losses contrasts the "
                "pairs of its own batch only. For the loss of one large batch in little memory, multiply "
                f"data.batch_size by {batches} and set model.chunk_size to what it was"
            )
        if self.chunk_size is not None and chunks.has_batch_norm(self.encoder):
            rank_zero_warn(
                f"the encoder has batch norms, and model.chunk_size is {self.chunk_size}: each chunk is normalised by "
                "itself, so that features differ from those of the whole batch. Towers with layer norms are exact"
            )

    def _require_captions(self, batch: Batch) -> None:
        """Refuse several captions of an image where the loss would take them for negatives of one another."""
        if len(batch.captions) == len(batch):
            return
        if not self.objective.many_captions:
            raise InputError(
                f"{type(self.objective).__name__} takes one caption of each image, and the batch has "
                f"{len(batch.captions)} for {len(batch)} images: let the data give one of them (captions: sample)"
            )
        if not batch.caption_image.bincount().eq(len(batch.captions) / len(batch)).all():
            raise InputError("each image of a training batch must have the same number of captions")

    def _report_cut_captions(self, tokens: Tokens, split: str) -> None:
        """Count captions that are longer than the text tower takes, and show the first one once."""
        if not tokens.truncated.any():
            return
        name = f"{split}/cut_captions"
        self.log(name, tokens.truncated.sum().float(), reduce_fx="sum", add_dataloader_idx=False, batch_size=1)
        if split in self._splits_with_cut_captions:
            return
        self._splits_with_cut_captions.add(split)
        first = tokens.captions[int(tokens.truncated.int().argmax())]
        rank_zero_warn(
            f"a caption is longer than the text tower's {tokens.ids.shape[1]} tokens and was cut: {first[:80]!r}; "
            f"the log counts such captions as {name}"
        )

    def _report_unknown_words(self, tokens: Tokens, split: str) -> None:
        """Say if the tokenizer does not know a tenth or more of the words in the first batch of a split."""
        if split in self._splits_seen:
            return
        self._splits_seen.add(split)
        unknown, words = int(tokens.unknown.sum()), int(tokens.select("words").sum())
        if 10 * unknown < max(words, 1):
            return
        row, token = tokens.unknown.nonzero()[0].tolist()
        start, end = tokens.spans[row, token].tolist()
        rank_zero_warn(
            f"the tokenizer does not know {unknown} of the {words} words in the first {split} batch, as "
            f"{tokens.captions[row][start:end]!r}, and takes them all for the same: give the text tower a tokenizer "
            "that was made for your captions"
        )
