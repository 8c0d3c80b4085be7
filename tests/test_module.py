"""The LightningModule trains, evaluates, saves checkpoints and resumes exactly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback
from torch.testing import assert_close
from torch.utils.data import DataLoader

from patchword import AlignmentModule, Objective
from patchword.data.batch import collate
from patchword.data.scenes.datamodule import Scenes
from patchword.errors import UserError
from patchword.maps.phrases import SOURCES
from patchword.metrics.retrieval import ranks
from patchword.objectives import CLIP, FILIP, FLAIR, MGCA, SPARC, SigLIP
from tests import tiny


@pytest.fixture(autouse=True)
def _leave_the_environment_alone() -> Iterator[None]:
    """Restore the environment, because Lightning's seed_everything sets variables."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (CLIP, "objective must be an instance of Objective, not the class CLIP itself"),
        (None, "objective must be an instance of Objective, not NoneType"),
    ],
)
def test_what_is_no_objective_is_refused_by_name(objective: Any, message: str) -> None:
    """A class instead of an instance, or what a function without a return statement gives, gets one clear message."""
    module, plain = tiny.module(CLIP()), AlignmentModule.__init__.__wrapped__  # without the tests' checks of types
    with pytest.raises(UserError, match=message):
        plain(AlignmentModule.__new__(AlignmentModule), module.encoder, objective)
    with pytest.raises(UserError, match="encoder must be an instance of Encoder, not CLIP"):
        plain(AlignmentModule.__new__(AlignmentModule), CLIP(), module.objective)


class StopAt(Callback):
    """Stop training with an unexpected error."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


def state(path: Path) -> dict[str, Any]:
    """Return model, optimizer, schedule, loader and random states from a checkpoint."""
    saved = torch.load(path, weights_only=True)
    return {
        name: saved[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "rng_states", "global_step")
    }


def assert_same_bits(x: Any, y: Any, where: str = "") -> None:
    """Compare recursively; tensors must have equal bits."""
    if isinstance(x, torch.Tensor):
        assert torch.equal(x, y), where
    elif isinstance(x, dict):
        assert x.keys() == y.keys(), where
        for key in x:
            assert_same_bits(x[key], y[key], f"{where}.{key}")
    elif isinstance(x, (list, tuple)):
        assert len(x) == len(y), where
        for position, pair in enumerate(zip(x, y, strict=True)):
            assert_same_bits(*pair, f"{where}[{position}]")
    else:
        assert x == y, where


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    tiny.trainer(folder).fit(tiny.module(SPARC()), tiny.data())
    return state(folder / "last.ckpt")


# Checkpoints are made at steps 4, 8 and 12; an epoch has 6 steps; validation follows steps 6 and 12.
@pytest.mark.parametrize("step", [5, 7, 9, 11])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    uninterrupted: dict[str, Any], tmp_path: Path, step: int
) -> None:
    """Model (with dropout), optimizer, schedule and random states are equal for every stopping point."""
    with pytest.raises(RuntimeError, match="stopped"):
        tiny.trainer(tmp_path, StopAt(step)).fit(tiny.module(SPARC()), tiny.data())
    assert state(tmp_path / "last.ckpt")["global_step"] == step // 4 * 4
    tiny.trainer(tmp_path).fit(tiny.module(SPARC()), tiny.data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert_same_bits(state(tmp_path / "last.ckpt"), uninterrupted)


def test_training_that_ends_inside_an_epoch_goes_on_there(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    """After `max_steps`, a resumed run shows the rest of the epoch first, and validates after step 6."""
    tiny.trainer(tmp_path, max_steps=3, max_epochs=-1).fit(tiny.module(SPARC()), tiny.data())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] == 0
    tiny.trainer(tmp_path).fit(tiny.module(SPARC()), tiny.data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    found = state(tmp_path / "last.ckpt")
    # The schedule of the first part ended at step 3: what must be the same is the order of the data.
    assert found["global_step"] == uninterrupted["global_step"] == 12
    assert_same_bits(found["rng_states"], uninterrupted["rng_states"])


def test_workers_change_no_number(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    """A run with two data workers gives the same bits, and so does a second run."""
    tiny.trainer(tmp_path).fit(tiny.module(SPARC()), tiny.data(num_workers=2))
    assert_same_bits(state(tmp_path / "last.ckpt"), uninterrupted)


def test_the_last_step_is_saved(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    """Lightning's callback would not save steps after the last multiple of every_n_train_steps."""
    tiny.trainer(tmp_path, every_n_steps=5, max_steps=7, max_epochs=-1).fit(tiny.module(CLIP()), tiny.data())
    assert state(tmp_path / "last.ckpt")["global_step"] == 7


def test_a_checkpoint_rebuilds_the_objective_and_scores_the_same(tmp_path: Path) -> None:
    """A model that is loaded with weights_only has the same class, options and scores."""
    trained = tiny.module(SPARC(threshold=0.3, separate_temperature=True), phrase_query="span")
    tiny.trainer(tmp_path, max_epochs=1).fit(trained, tiny.data())
    again = AlignmentModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert again.objective.spec == trained.objective.spec
    assert again.objective.threshold == 0.3
    assert again.phrase_query == "span"
    assert again.token_selection == "content"
    batch = collate([tiny.data().split("val")[i] for i in range(4)])
    for module in (again.eval(), trained.eval()):
        module.to("cpu")
    with torch.no_grad():
        expected, found = trained(batch), again(batch)
    assert_close(again.objective.align(found[0], found[1]), trained.objective.align(expected[0], expected[1]))
    assert again.trained["steps"] == 6


def test_logs_terms_and_every_metric(tmp_path: Path) -> None:
    """metrics.csv has the loss and its terms, retrieval, grounding from every source, and hard negatives."""
    tiny.trainer(tmp_path, max_epochs=1).fit(tiny.module(SPARC()), tiny.data())
    columns = set(pd.read_csv(tmp_path / "logs" / "version_0" / "metrics.csv").columns)
    assert {"train/global", "train/local", "train/loss", "val/loss", "val/global", "val/local"} <= columns
    assert {f"val/retrieval/{way}/r@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)} <= columns
    for source in SOURCES:
        for name in ("pointing_game", "box_accuracy", "average_precision", "auroc", "object_choice"):
            assert f"val/grounding/content/{source}/{name}" in columns
    assert {"val/hard_negatives/per_negative", "val/hard_negatives/chance_per_negative"} <= columns


@pytest.mark.parametrize("query", ["content", "span", "alone"])
def test_every_split_is_tested_under_every_query(tmp_path: Path, query: str) -> None:
    """The metrics of each test split have the name of the query."""
    module = tiny.module(CLIP(), phrase_query=query)
    tiny.trainer(tmp_path).test(module, tiny.data(), verbose=False)
    for split in ("test", "unseen_combinations", "unseen_concepts"):
        values = module.trainer.callback_metrics
        assert values[f"{split}/retrieval/images"] == 24
        assert values[f"{split}/grounding/{query}/cosine/phrases"] > 24
        assert values[f"{split}/grounding/{query}/cosine/dropped"] == 0
        assert_close(
            values[f"{split}/grounding/{query}/align/auroc"], values[f"{split}/grounding/{query}/cosine/auroc"]
        )  # CLIP's own map is the cosine


@pytest.mark.parametrize("make", [SPARC, SigLIP, FLAIR, MGCA])
def test_weight_decay_spares_biases_norms_and_temperatures(make: type[Objective]) -> None:
    """Neither those of the towers nor those of the objective decay, including the bias of sigmoid losses."""
    module = tiny.module(make())
    module._trainer = tiny.trainer(Path("."), logger=False)
    decayed, spared = module.configure_optimizers()["optimizer"].param_groups
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    single = {id(parameter) for parameter in module.objective.parameters() if parameter.ndim < 2}
    assert single - {id(parameter) for parameter in spared["params"]} <= {
        id(parameter) for parameter in module.objective.parameters() if not parameter.requires_grad
    }
    assert spared["weight_decay"] == 0
    assert decayed["weight_decay"] > 0


def test_temperatures_stay_in_range_after_a_step(tmp_path: Path) -> None:
    """The optimizer cannot move a temperature out of its range."""
    module = tiny.module(CLIP(temperature=0.01))
    with torch.no_grad():
        module.objective.scale.log.add_(3.0)
    tiny.trainer(tmp_path, max_steps=1, max_epochs=-1).fit(module, tiny.data())
    assert module.objective.scale().item() <= 100.001


def test_a_batch_without_negatives_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one pair on one device, a contrastive loss is 0. More devices, or a later small batch, are accepted."""
    module = tiny.module(CLIP())
    one = collate([tiny.data().split("train")[0]])
    with pytest.raises(UserError, match=r"no negatives, .* set data\.batch_size to 2 or more"):
        module.training_step(one, 0)
    reached = RuntimeError("the towers are asked")
    monkeypatch.setattr(AlignmentModule, "forward", lambda *_: (_ for _ in ()).throw(reached))
    with pytest.raises(RuntimeError, match="the towers are asked"):
        module.training_step(one, 1)
    monkeypatch.setattr("patchword.distributed.world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="the towers are asked"):
        module.training_step(one, 0)


def test_a_cut_caption_is_counted_and_reported(tmp_path: Path) -> None:
    """Truncated captions are counted in training and evaluation, and truncated phrases are dropped and counted."""
    module = tiny.module(CLIP())
    module.encoder.text.captions.max_length = 5
    with pytest.warns(UserWarning, match="longer than the text tower's 5 tokens and was cut"):
        tiny.trainer(tmp_path, max_steps=1, max_epochs=-1, limit_val_batches=0).fit(module, tiny.data())
    assert module.trainer.callback_metrics["train/cut_captions"] > 0
    with pytest.warns(UserWarning, match="counts such captions as val/cut_captions"):
        tiny.trainer(tmp_path).validate(module, tiny.data(), verbose=False)
    values = module.trainer.callback_metrics
    assert values["val/cut_captions"] == 24
    assert values["val/grounding/content/cosine/dropped"] > 0


def test_a_tokenizer_that_does_not_know_the_words_is_reported(tmp_path: Path) -> None:
    """If many words are unknown, captions look alike. There is one warning per split, and none for a few words."""

    class Quokkas(Scenes):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return replace(batch, captions=["the Quokka"] * len(batch.captions))

    data = Quokkas(batch_size=16, train_size=96, val_size=24, test_size=24)
    module = tiny.module(CLIP())
    with pytest.warns(UserWarning, match="does not know 16 of the 32 words in the first train .*'Quokka', .*") as told:
        tiny.trainer(tmp_path, limit_val_batches=0).fit(module, data)
    assert len([one for one in told if "tokenizer" in str(one.message)]) == 1
    few = module.encoder.tokenize(["a quokka"] + ["a dog next to a red apple"] * 3)
    assert few.unknown.sum() == 1
    module._reports.report_unknown_words(few, "another")  # warnings are errors


def test_an_objective_that_needs_the_width_is_told_it() -> None:
    """`build` of an objective gets the embedding dimension."""

    class WithHead(CLIP.__mro__[1]):  # Objective
        def build(self, embed_dim: int) -> None:
            self.head = torch.nn.Linear(embed_dim, 2)

        def forward(self, images: Any, texts: Any) -> dict[str, torch.Tensor]:
            return {"head": self.head(images.pooled).mean()}

        def score(self, images: Any, texts: Any) -> torch.Tensor:
            return images.pooled @ texts.pooled.T

        def align(self, images: Any, texts: Any) -> torch.Tensor:
            return texts.tokens @ images.patches.mT

    assert tiny.module(WithHead()).objective.head.in_features == 16


def test_data_without_phrases_and_negatives_is_measured_by_retrieval_alone(tmp_path: Path) -> None:
    """Grounding and hard negatives are not reported if the data has none."""
    data = tiny.data()
    bare = [replace(data.split("val")[i], phrases=[[]], negatives=[]) for i in range(8)]
    module = tiny.module(SPARC())
    tiny.trainer(tmp_path).validate(module, DataLoader(bare, batch_size=4, collate_fn=collate), verbose=False)
    values = module.trainer.callback_metrics
    assert values["val/retrieval/images"] == 8
    assert not any("pointing_game" in name or "hard_negatives" in name for name in values)


def test_captions_without_words_and_repeated_negatives_are_measured(tmp_path: Path) -> None:
    """Captions without content words do not break FILIP's retrieval, and equal negatives count once."""
    data = tiny.data()
    samples = [
        replace(data.split("val")[i], captions=["the of a"], phrases=[[]], negatives=["a", "the", "a"])
        for i in range(4)
    ]
    module = tiny.module(FILIP(), token_selection="content")
    tiny.trainer(tmp_path).validate(module, DataLoader(samples, batch_size=2, collate_fn=collate), verbose=False)
    values = module.trainer.callback_metrics
    assert values["val/retrieval/images"] == 4
    assert values["val/hard_negatives/negatives"] == values["val/hard_negatives/ties"] == 2 * 4
    assert values["val/hard_negatives/chance_per_image"] == pytest.approx(1 / 3)
    assert values["val/hard_negatives/per_negative"] == 0


def test_objectives_are_told_which_phrase_a_token_belongs_to() -> None:
    """LOUPE compares regions with phrases from the data if there are any, and otherwise with words."""
    scene = tiny.data().split("val")[0]
    _, texts, tokens = tiny.module(SPARC())(collate([scene]))
    assert texts.phrases is not None
    for number, phrase in enumerate(scene.phrases[0]):
        ends = tokens.spans[0][texts.phrases[0, 0] == number]
        assert (ends.min(), ends.max()) == (phrase.start, phrase.end)
    assert texts.phrases.max() == len(scene.phrases[0]) - 1


def test_texts_rank_images_by_the_objectives_text_score(tmp_path: Path) -> None:
    """FILIP has one score per direction, and retrieval uses both."""
    module, batch = tiny.module(FILIP()).eval(), collate([tiny.data().split("val")[i] for i in range(8)])
    loader = DataLoader([tiny.data().split("val")[i] for i in range(8)], batch_size=4, collate_fn=collate)
    tiny.trainer(tmp_path).validate(module, loader, verbose=False)
    images, texts, _ = module.eval()(batch)
    scores = [score(images, texts) for score in (module.objective.score, module.objective.text_to_image_score)]
    _, expected = ranks(scores[1], torch.arange(8))
    values = module.trainer.callback_metrics
    assert values["val/retrieval/text_to_image/median_rank"] == np.median(expected.numpy())
    assert values["val/retrieval/text_to_image/r@5"] == (expected <= 5).float().mean()
    assert not torch.equal(ranks(scores[0], torch.arange(8))[1], expected)
