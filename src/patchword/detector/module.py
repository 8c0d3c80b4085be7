"""The LightningModule of the detector: it fine-tunes a trained image tower with heads for classes and boxes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from lightning import LightningModule
from torch import Tensor
from torchvision.ops import box_convert

from patchword.data.batch import Batch
from patchword.data.splits import Splits
from patchword.detector.head import PatchHeads
from patchword.detector.matching import Objects, Weights, corners, set_loss
from patchword.errors import UserError
from patchword.maps.phrases import phrase_texts
from patchword.metrics.detection import Boxes, mean_average_precision
from patchword.module import AlignmentModule


class Detector(LightningModule):
    """Detects objects by texts: an OWL-ViT-style head on the towers of a trained model.

    The queries of a training batch are the phrases of all its images; a phrase of another image is a negative. The text
    tower is frozen, and both towers stay in `eval` mode. In validation, the queries are all phrases of the split, and
    the mean average precision of `metrics.detection` is logged as `val/map@0.3` and `val/map@0.5`. `val/chance_map@...`
    is that of the same boxes and confidences with the names of the queries permuted.

    Args:
        checkpoint: The checkpoint of `patchword fit` whose towers are fine-tuned: a file, or the folder of a run.
        weights: The weights of the loss.
        learning_rate: The learning rate of the heads.
        tower_learning_rate: The learning rate of the image tower; 0 freezes it.
        weight_decay: The weight decay of all trained parameters.
        detections: The most confident detections of each image count in validation, up to this number.

    Raises:
        UserError: If the checkpoint cannot be loaded.
    """

    def __init__(
        self,
        checkpoint: str,
        weights: Weights = Weights(),  # noqa: B008 - never modified
        learning_rate: float = 1e-3,
        tower_learning_rate: float = 1e-4,
        weight_decay: float = 1e-2,
        detections: int = 100,
    ) -> None:
        super().__init__()
        model = AlignmentModule.load_from_checkpoint(checkpoint)
        self.encoder, self.selection = model.encoder, model.token_selection
        self.heads = PatchHeads(self.encoder.embed_dim)
        self.weights = weights
        self.learning_rate = learning_rate
        self.tower_learning_rate = tower_learning_rate
        self.weight_decay = weight_decay
        self.detections = detections
        self.encoder.requires_grad_(False)
        self._queries: list[str] = []
        self._vectors: Tensor | None = None
        self._found: list[tuple[Boxes, Tensor, Boxes]] = []

    def setup(self, stage: str) -> None:
        """Choose the trained parameters.

        Raises:
            UserError: If there are several processes: precision is computed in one.
        """
        if self.trainer.world_size > 1:
            raise UserError(
                f"the detector runs in one process, not in {self.trainer.world_size}: set trainer.devices 1"
            )
        if self.tower_learning_rate > 0:
            used = self._used_by_images()
            for name, parameter in self.encoder.named_parameters():
                parameter.requires_grad_(name in used)

    def on_train_epoch_start(self) -> None:
        """Put the towers into `eval` mode: no dropout, and batch norms keep their means."""
        self.encoder.eval()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with a learning rate for the heads, and another one for the image tower."""
        tower = [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [{"params": [*self.heads.parameters()], "lr": self.learning_rate}]
        groups += [{"params": tower, "lr": self.tower_learning_rate}] if tower else []
        return torch.optim.AdamW(groups, weight_decay=self.weight_decay)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the terms of the loss; each is logged as `train/<name>`.

        Raises:
            UserError: If a batch has no box.
        """
        names, objects = objects_of(batch, self.encoder.image_size)
        if not names:
            raise UserError(
                "a training batch has no phrase with a box: the detector needs data with boxes, such as Scenes, or a "
                "larger batch"
            )
        terms = set_loss(*self._predicted(batch, self._embedded(names)), objects, self.weights)
        self.log_dict({f"train/{name}": value for name, value in terms.items()}, batch_size=len(batch))
        loss = torch.stack([*terms.values()]).sum()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Embed all phrases with boxes of the split.

        Raises:
            UserError: If the data module has no splits of samples, or no phrase of the split has a box.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, Splits):
            raise UserError(f"{type(data).__name__} has no phrases with boxes: use a data module such as Scenes")
        samples: Any = data.split("val")
        names = {
            caption[phrase.start : phrase.end]
            for sample in (samples[n] for n in range(len(samples)))
            for caption, phrases in zip(sample.captions, sample.phrases, strict=True)
            for phrase in phrases
            if phrase.box or phrase.boxes
        }
        if not names:
            raise UserError("no phrase of the validation split has a box: the detector needs data with boxes")
        self._queries, self._found = sorted(names), []
        self._vectors = self._embedded(self._queries)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Store the most confident detections of a batch, and its objects."""
        assert self._vectors is not None, "Lightning calls on_validation_epoch_start first"
        logits, boxes = self._predicted(batch, self._vectors)
        confidence, place = logits.flatten(1).topk(min(self.detections, logits[0].numel()))
        patch, query = place // logits.shape[2], place % logits.shape[2]
        image = torch.arange(len(batch), device=place.device)[:, None].expand_as(place)
        found = Boxes(corners(boxes[image, patch].flatten(0, 1)), batch.ids[image.flatten()], query.flatten())
        names, objects = objects_of(batch, self.encoder.image_size)
        numbers = torch.tensor([self._queries.index(name) for name in names], device=place.device)
        true = Boxes(corners(objects.boxes), batch.ids[objects.image], numbers[objects.query])
        self._found.append((_on_cpu(found), confidence.flatten().double().cpu(), _on_cpu(true)))

    def on_validation_epoch_end(self) -> None:
        """Log the mean average precision, and that of permuted names."""
        found, confidence, true = zip(*self._found, strict=True)
        detected, objects, scores = _joined(found), _joined(true), torch.cat(confidence)
        permuted = torch.randperm(len(self._queries), generator=torch.Generator().manual_seed(0))
        wrong = Boxes(detected.boxes, detected.image, permuted[detected.category])
        for prefix, boxes in (("", detected), ("chance_", wrong)):
            measured = mean_average_precision(boxes, scores, objects)
            self.log_dict({f"val/{prefix}{name}": value for name, value in measured.items()})
        self._found = []

    def _predicted(
        self, batch: Batch, queries: Float[Tensor, "Q D"]
    ) -> tuple[Float[Tensor, "I P Q"], Float[Tensor, "I P 4"]]:
        images = self.encoder.encode_images(batch.images)
        if images.mask is not None and not images.mask.all():
            raise UserError("the detector needs images without padding: set resize_mode to stretch or crop")
        with torch.autocast(images.patches.device.type, enabled=False):
            logits, boxes = self.heads(images.patches.float(), images.grid, queries.float())
        return logits, boxes

    @torch.no_grad()
    def _embedded(self, names: list[str]) -> Float[Tensor, "Q D"]:
        tokens = self.encoder.tokenize(names).to(self.device)
        return self.encoder.encode_texts(tokens, self.selection).pooled

    def _used_by_images(self) -> set[str]:
        """The names of the encoder's parameters on which patches depend."""
        height, width = self.encoder.image_size
        self.encoder.eval()  # batch norms must not learn from a blank image
        named = dict(self.encoder.named_parameters())
        for parameter in named.values():
            parameter.requires_grad_(True)
        with torch.enable_grad():
            blank = torch.zeros(2, 3, height, width, dtype=torch.uint8, device=self.device)
            patches = self.encoder.encode_images(blank).patches
            gradients = torch.autograd.grad(patches.sum(), [*named.values()], allow_unused=True)
        self.encoder.train()  # Lightning warns of modules in `eval` mode before the first epoch
        return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}


def objects_of(batch: Batch, size: tuple[int, int]) -> tuple[list[str], Objects]:
    """The different phrases with boxes of a batch, in alphabetical order, and the objects that they name.

    A box that several captions of an image give the same name is one object. `size` is the height and width of images.
    """
    height, width = size
    texts = phrase_texts(batch)
    image = batch.caption_image[batch.phrase_caption][batch.box_phrase].tolist()
    rows = {
        (n, texts[phrase], tuple(box))
        for n, phrase, box in zip(image, batch.box_phrase.tolist(), batch.boxes.tolist(), strict=True)
    }
    found = sorted(rows)
    names = sorted({name for _, name, _ in found})
    device = batch.boxes.device
    boxes = torch.tensor([box for *_, box in found], device=device).view(-1, 4)
    shares = boxes / boxes.new_tensor([width, height, width, height])
    return names, Objects(
        box_convert(shares, "xyxy", "cxcywh"),
        torch.tensor([n for n, *_ in found], dtype=torch.long, device=device),
        torch.tensor([names.index(name) for _, name, _ in found], dtype=torch.long, device=device),
    )


def _on_cpu(boxes: Boxes) -> Boxes:
    return Boxes(boxes.boxes.double().cpu(), boxes.image.cpu(), boxes.category.cpu())


def _joined(parts: tuple[Boxes, ...]) -> Boxes:
    return Boxes(*(torch.cat([getattr(one, name) for one in parts]) for name in ("boxes", "image", "category")))
