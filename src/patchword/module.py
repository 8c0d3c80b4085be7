"""The one LightningModule: it encodes a batch, calls the objective, logs its terms and steps the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from jaxtyping import UInt8
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from PIL.Image import Image
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import AdamW

from patchword import distributed
from patchword.cached.batch import CachedBatch, embed, embed_texts
from patchword.contrast import LogitScale
from patchword.data.batch import Batch
from patchword.encoders.base import Encoder, Selection, Tokens
from patchword.encoders.masked import masked_images, masked_texts
from patchword.errors import TrainingError, UserError
from patchword.features import Images, Texts
from patchword.maps.alignment import Alignment
from patchword.maps.inspect import inspect
from patchword.maps.phrases import Policy
from patchword.maps.sources import PLAIN_SOURCES, TokenSource, require_sources
from patchword.metrics.baselines import Baselines
from patchword.metrics.bootstrap import ImageTotals
from patchword.metrics.evaluation import Evaluation, PhraseMaps, split_name
from patchword.metrics.hard_negatives import pair_scores
from patchword.objective import Need, Objective, lacking, require_weights
from patchword.protocols import BoxedData, MeasuringData, PredictingData, SplitEvaluation
from patchword.provenance.fingerprint import weights_checksum
from patchword.provenance.spec import callable_spec
from patchword.training import grad_cache
from patchword.training.batch_checks import (
    require_captions,
    require_negatives,
    require_right_form,
    warn_of_split_batches,
)
from patchword.training.batch_reports import BatchReports
from patchword.training.checkpoint_io import verify_checkpoints
from patchword.training.configure import configure
from patchword.training.lr_schedule import Schedule, refuse_finder
from patchword.training.needs import supplied
from patchword.training.non_finite import diagnose
from patchword.training.param_groups import FineTuning
from patchword.training.resumable import ResumableModule
from patchword.training.teacher import Teacher
from patchword.training.unused_parameters import freeze_unused, summary
from patchword.training.warm_start import load_encoder


class AlignmentModule(ResumableModule):
    """Any alignment objective on any pair of encoders.

    Args:
        encoder: The pair of towers.
        objective: The alignment objective, which defines the loss, the score and the maps.
        token_selection: The tokens that take part in token-level losses and maps: `all` real tokens, `words` (no
            special tokens) or `content` (no special tokens and no function words).
        phrase_query: How a phrase becomes a map when grounding is measured: by its `content` words in their caption, by
            all tokens of its `span`, or `alone`, encoded as a separate caption.
        map_sources: The sources of maps that are measured, drawn and inspected; see `maps.sources`. Those other than
            `align`, `cosine` and `dot` run the towers again, also in each validation.
        chunk_size: The largest number of images, and of captions, that pass through the towers at once; null for the
            complete batch. Loss and gradients are those of the complete batch in the memory of a chunk, with one more
            forward pass of the towers (GradCache). Gradient accumulation is no substitute: it adds no negatives.
        text_exchange: How losses over all pairs get the texts of other ranks: all at once (`all_gather`), or one rank
            at a time (`ring`). A ring's memory does not grow with the number of ranks, but it fetches texts twice.
        gradient_checkpointing: Recompute the activations inside the towers' blocks in the backward pass instead of
            storing them. This needs less memory and a third more time; loss and gradients are unchanged.
        compile: Compile the towers with `torch.compile` when they run for the first time, which takes about a minute.
        optimizer: A torch optimizer that supports groups of parameters of any shape. Parameters with fewer than two
            dimensions (biases, norms, temperatures) have no weight decay.
        schedule: The schedule of the learning rate.
        fine_tuning: Lower learning rates for the towers and for their first blocks.
        teacher_momentum: If the objective needs a teacher, which is a moving average of the encoder: the share of it
            that remains in each step. A share m averages about 1 / (1 - m) steps.

    Raises:
        UserError: If an argument is not of the expected kind, such as the class of an objective instead of an
            instance, or its value is not allowed.
    """

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        token_selection: Selection = "all",
        phrase_query: Policy = "content",
        map_sources: list[TokenSource] = [*PLAIN_SOURCES],  # noqa: B006 - never modified
        chunk_size: int | None = None,
        text_exchange: distributed.Exchange = "all_gather",
        gradient_checkpointing: bool = False,
        compile: bool = False,
        optimizer: OptimizerCallable = AdamW,
        schedule: Schedule = Schedule(),  # noqa: B008 - never modified
        fine_tuning: FineTuning = FineTuning(),  # noqa: B008 - never modified
        teacher_momentum: float = 0.999,
    ) -> None:
        super().__init__()
        for name, part, kind in (("encoder", encoder, Encoder), ("objective", objective, Objective)):
            if not isinstance(part, kind):
                found = f"the class {part.__name__} itself" if isinstance(part, type) else type(part).__name__
                raise UserError(f"{name} must be an instance of {kind.__name__}, not {found}")
        if chunk_size is not None and chunk_size < 1:
            raise UserError(f"chunk_size must be 1 or more (or null for the whole batch), not {chunk_size}")
        require_weights(objective)
        require_sources(map_sources, encoder)
        objective.build(encoder.embed_dim)
        self.encoder = encoder
        self.objective = objective
        self.teacher = Teacher(encoder, teacher_momentum) if "teacher" in objective.needs else None
        self.token_selection = token_selection
        self.phrase_query = phrase_query
        self.map_sources = tuple(map_sources)
        self.chunk_size = chunk_size
        self.text_exchange = text_exchange
        self.gradient_checkpointing = gradient_checkpointing
        self.compiled = compile
        self.optimizer = optimizer
        self.schedule = schedule
        self.fine_tuning = fine_tuning
        self.save_hyperparameters(
            {
                "encoder": encoder.spec,
                "objective": objective.spec,
                "token_selection": token_selection,
                "phrase_query": phrase_query,
                "chunk_size": chunk_size,
                "text_exchange": text_exchange,
                "gradient_checkpointing": gradient_checkpointing,
                "compile": compile,
                "optimizer": callable_spec(optimizer),
                "schedule": asdict(schedule),
                "fine_tuning": asdict(fine_tuning),
                "teacher_momentum": teacher_momentum,
            }
            # Checkpoints and results of default sources are the same as before there was a choice.
            | ({} if self.map_sources == PLAIN_SOURCES else {"map_sources": [*map_sources]})
        )
        self.totals: dict[str, ImageTotals] = {}  # of the last evaluation of each split
        self._evaluations: dict[str, Evaluation | SplitEvaluation] = {}
        self._reports = BatchReports()
        self.encoder_at_start = ""  # a checksum of the encoder's weights, which `setup` computes before a training
        self._no_start: UserError | None = None  # why the encoder of `fine_tuning.start_from` could not be loaded

    def setup(self, stage: str) -> None:
        """Check the objective, log the shape of the features, freeze unused parameters, and warn of split batches.

        A training begins with the encoder of `fine_tuning.start_from`.
        """
        verify_checkpoints(self.trainer)
        if stage == "fit":
            self._warm_start()
            self.train(self.training)
        require_right_form(self.objective, self.encoder)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self._baselines = Baselines(data.training_boxes if isinstance(data, BoxedData) else None)
        (rows, columns), (height, width) = self.encoder.grid, self.encoder.image_size
        image = f"an image of {height} x {width} pixels"
        rank_zero_info(f"{rows} x {columns} patches of {image}, D = {self.encoder.embed_dim}")
        if stage == "fit":
            refuse_finder(self.trainer)
            if unused := freeze_unused(self):
                name, what = type(self.objective).__name__, summary(unused, self)
                rank_zero_info(f"not trained, since the loss of {name} does not depend on them: {what}")
            warn_of_split_batches(self.trainer, self.encoder, self.chunk_size)

    def train(self, mode: bool = True) -> AlignmentModule:
        """Switch to training or evaluation; with `fine_tuning.fixed_statistics`, batch norms remain in evaluation."""
        super().train(mode)
        if self.fine_tuning.fixed_statistics:
            for part in self.encoder.modules():
                if isinstance(part, _BatchNorm):
                    part.eval()
        return self

    def _warm_start(self) -> None:
        """Load the encoder of `fine_tuning.start_from`, and compute the checksum of the weights at the start."""
        self._no_start = None
        if (path := self.fine_tuning.start_from) is not None:
            try:
                load_encoder(self.encoder, path)
            except UserError as error:
                self._no_start = error  # a resumed training does not need the file
            else:
                rank_zero_info(f"the encoder starts with the weights of {path}")
            if self.teacher is not None:
                self.teacher.module.load_state_dict(self.encoder.state_dict())
        self.encoder_at_start = weights_checksum(self.encoder)

    def on_fit_start(self) -> None:
        """Refuse to train if the encoder could not be loaded from `fine_tuning.start_from`.

        Lightning says only now whether the training resumes from a checkpoint.
        """
        if self._no_start is not None and self.trainer.ckpt_path is None:
            raise self._no_start

    def configure_model(self) -> None:
        """Apply the options of the model and the strategy of the trainer. A second call changes nothing."""
        configure(self)

    def encode_texts(self, captions: list[str]) -> tuple[Texts, Tokens]:
        """Encode captions. Returns their embeddings and their tokens."""
        tokens = self.encoder.tokenize(captions).to(self.device)
        return grad_cache.encode_texts(self.encoder, tokens, self.token_selection, self.chunk_size), tokens

    def forward(self, batch: Batch) -> tuple[Images, Texts, Tokens]:
        """Encode a batch. Returns the embeddings of its images [I] and captions [T], and the captions' tokens."""
        if isinstance(batch, CachedBatch):
            images, texts, tokens = embed(self.encoder, batch, self.token_selection)
        else:
            texts, tokens = self.encode_texts(batch.captions)
            images = self.encode_images(batch.images)
            if "masked" in self.objective.needs and self.training:  # evaluation would take many passes for a loss
                images = replace(images, masked=masked_images(self.encoder, batch.images, self.chunk_size))
                texts = replace(texts, masked=masked_texts(self.encoder, tokens, texts.mask, self.chunk_size))
        ids = tokens.ids.masked_fill(~tokens.mask, -1) if "ids" in self.objective.needs else None
        return images, replace(texts, phrases=tokens.phrases(batch.phrase_caption, batch.phrase_span), ids=ids), tokens

    def supply(self, images: Images, texts: Texts, tokens: Tokens, batch: Batch) -> tuple[Images, Texts]:
        """Add what the objective needs to the images and texts of a batch: hard negatives, regions, views, a teacher's
        embeddings. The teacher runs only if nothing else is missing.
        """
        cached = batch.needed_words if isinstance(batch, CachedBatch) else {}

        def encode(need: Need, texts: list[str]) -> Tensor:
            if (words := cached.get(need)) is None:
                return self.encode_texts(texts)[0].pooled
            return embed_texts(self.encoder, texts, words, self.token_selection)[0].pooled

        images = supplied(self.objective.needs, encode, self.encode_images, batch, images, self.encoder.image_size)
        if lacking(self.objective, images, texts) != ["teacher"] or isinstance(batch, CachedBatch):
            return images, texts
        assert self.teacher is not None
        return self.teacher.teach(images, texts, batch, tokens, self.token_selection, self.chunk_size)

    def encode_images(self, pixels: UInt8[Tensor, "I _ H W"]) -> Images:
        """Encode raw pixels."""
        return grad_cache.encode_images(self.encoder, pixels, self.chunk_size)

    @torch.no_grad()
    def inspect(
        self,
        image: Image,
        caption: str,
        phrases: Sequence[str] | None = None,
        whole: bool = False,
        sources: Sequence[TokenSource] | None = None,
    ) -> Alignment:
        """Compute maps of the words or phrases of a caption over any image; see `patchword.maps.inspect.inspect`."""
        return inspect(self, image, caption, phrases, whole, sources)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the sum of the objective's terms; each term is logged as `train/<name>`.

        Raises:
            TrainingError: If the loss is not finite; the message names the terms and the samples.
        """
        require_captions(self.objective, batch)
        if batch_idx == 0:
            require_negatives(self.objective, batch)
        images, texts, tokens = self(batch)
        self._reports.report_repeated_images(batch, self.log)
        self._reports.report_captions(tokens, "train", self.log)
        images, texts = self.supply(images, texts, tokens, batch)
        terms = self.losses(images, texts)
        loss = self._logged(terms, images, "train")
        if not loss.isfinite():
            raise TrainingError(diagnose(terms, images, texts, batch.ids, self.global_step))
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, PhraseMaps]:
        """Update the metrics of a validation split. Returns the maps of the `phrases` for callbacks."""
        return self._evaluate(batch, split_name(self.trainer.val_dataloaders, dataloader_idx, "val"))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, PhraseMaps]:
        """Update the metrics of a test split. Returns the maps of the `phrases` for callbacks."""
        return self._evaluate(batch, split_name(self.trainer.test_dataloaders, dataloader_idx, "test"))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Compute `scores` [T] of captions with their images, `maps` [T, L, P], `mask` [T, L] and `spans` [T, L, 2].

        `shapes` [T, 2] are the rows and columns of the images' patches, at the top left of the maps.

        A data module that is `PredictingData` computes its own predictions instead.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, PredictingData):
            return data.predict(self, batch)
        images, texts, tokens = self(batch)
        return {
            "scores": pair_scores(self.objective.score, images, texts, batch.caption_image),
            "maps": self.objective.align(images[batch.caption_image], texts),
            "mask": texts.mask,
            "spans": tokens.spans,
            "shapes": images.shapes[batch.caption_image],
        }

    def on_validation_epoch_end(self) -> None:
        """Log every metric of every split as `<split>/<metric>`."""
        for split, evaluation in self._evaluations.items():
            self.log_dict({f"{split}/{name}": value for name, value in evaluation.compute().items()})
            self.totals |= {f"{split}/{part}": own for part, own in getattr(evaluation, "totals", {}).items()}
        self._evaluations = {}

    on_test_epoch_end = on_validation_epoch_end

    def losses(self, images: Images, texts: Texts) -> dict[str, Tensor]:
        """Compute the objective's terms for the pairs of this rank, with the texts of all ranks."""
        with distributed.exchange(self.text_exchange):
            return self.objective(images, texts)

    def _logged(self, terms: dict[str, Tensor], images: Images, split: str) -> Tensor:
        """Log the means of the terms over ranks, which are the loss of all pairs. Returns the sum on this rank."""
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
        if not isinstance(evaluation, Evaluation):
            evaluation.update(batch)
            return {}
        images, texts, tokens = self(batch)
        self._reports.report_captions(tokens, split, self.log)
        whole, every = self.supply(images, texts, tokens, batch)
        if not lacking(self.objective, whole, every):  # other data than that of training can lack parts of the loss
            self._logged(self.losses(whole, every[batch.first_caption]), images, split)
        return {"phrases": evaluation.update(batch, images, texts, tokens)}

    def _evaluation(self, split: str) -> Evaluation | SplitEvaluation:
        """The evaluation that the data defines for a split, or else the metrics of captions and phrases."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, MeasuringData) and (suite := data.suite(split)) is not None:
            return suite.evaluation(self)
        return Evaluation(
            self.encoder, self.objective, self.token_selection, self.phrase_query, self._baselines, self.map_sources
        )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then clamp learned temperatures to their range, and update the teacher."""
        super().optimizer_step(*args, **kwargs)
        for part in self.objective.modules():
            if isinstance(part, LogitScale):
                part.clamp_()
        if self.teacher is not None:
            self.teacher.update_parameters(self.encoder)
