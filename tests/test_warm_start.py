"""`fine_tuning.start_from`: a training starts from the encoder of another run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from patchword import AlignmentModule, Objective
from patchword.callbacks.cost import Cost
from patchword.encoders import TwoTowers
from patchword.errors import UserError
from patchword.objectives import CLIP, COSMOS, SPARC
from patchword.provenance.fingerprint import weights_checksum
from patchword.training.param_groups import FineTuning
from tests import tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train CLIP for an epoch, and return its checkpoint."""
    folder = tmp_path_factory.mktemp("source")
    tiny.trainer(folder, max_epochs=1).fit(tiny.module(CLIP(temperature=0.5)), tiny.data())
    return folder / "last.ckpt"


def module(objective: Objective, source: Path) -> AlignmentModule:
    return tiny.module(objective, fine_tuning=FineTuning(start_from=str(source)))


def begun(module: AlignmentModule, folder: Path) -> AlignmentModule:
    """The module just before its first step."""
    module.trainer = tiny.trainer(folder)
    module.trainer.strategy.connect(module)
    module._warm_start()
    return module


def test_a_training_starts_with_the_encoder_and_not_with_the_objective(source: Path, tmp_path: Path) -> None:
    """The encoder's weights at the start are those of the checkpoint, and the temperature is the configured one."""
    former, started = AlignmentModule.load_from_checkpoint(source), module(CLIP(), source)
    temperature = dict(CLIP().state_dict())
    assert weights_checksum(started.encoder) != weights_checksum(former.encoder)
    begun(started, tmp_path)
    assert weights_checksum(started.encoder) == weights_checksum(former.encoder)
    assert_close(dict(started.objective.state_dict()), temperature)
    assert weights_checksum(started.objective) != weights_checksum(former.objective)


def test_a_checkpoint_records_the_start(source: Path, tmp_path: Path) -> None:
    """Runs of two objectives from one start are a pair, and their checkpoints name the start."""
    tiny.trainer(tmp_path, Cost(), max_epochs=1).fit(module(SPARC(), source), tiny.data())
    found = torch.load(tmp_path / "last.ckpt", weights_only=True)
    former = AlignmentModule.load_from_checkpoint(source)
    assert found["trained"]["encoder_at_start"] == weights_checksum(former.encoder)
    assert found["hyper_parameters"]["fine_tuning"]["start_from"] == str(source)


def test_a_resumed_training_and_a_loaded_model_need_no_other_run(source: Path, tmp_path: Path) -> None:
    """After the start, the file of the other run may be gone; a new training names it in its message."""
    copy = tmp_path / "other.ckpt"
    copy.write_bytes(source.read_bytes())
    tiny.trainer(tmp_path / "whole").fit(module(CLIP(), copy), tiny.data())
    tiny.trainer(tmp_path / "parts", max_epochs=1).fit(module(CLIP(), copy), tiny.data())
    copy.unlink()
    resumed = tmp_path / "parts/last.ckpt"
    tiny.trainer(tmp_path / "parts").fit(module(CLIP(), copy), tiny.data(), ckpt_path=resumed)
    whole, parts = (AlignmentModule.load_from_checkpoint(tmp_path / name / "last.ckpt") for name in ("whole", "parts"))
    assert weights_checksum(whole) == weights_checksum(parts)
    new = module(CLIP(), copy)
    with pytest.raises(UserError, match=r"model\.fine_tuning\.start_from: .*other\.ckpt: there is no such file"):
        tiny.trainer(tmp_path / "new").fit(new, tiny.data())
    copy.write_bytes(source.read_bytes())
    tiny.trainer(tmp_path / "new").fit(new, tiny.data())  # the same module may try again
    assert weights_checksum(new) == weights_checksum(whole)


def test_the_teacher_starts_as_a_copy_too(source: Path, tmp_path: Path) -> None:
    """COSMOS's teacher is the moving average of the encoder that starts from the checkpoint."""
    started = begun(module(COSMOS(heads=4), source), tmp_path)
    assert started.teacher is not None
    assert_close(dict(started.teacher.module.state_dict()), dict(started.encoder.state_dict()))
    assert weights_checksum(started.encoder) == started.encoder_at_start


def test_another_encoder_is_refused(source: Path, tmp_path: Path) -> None:
    """The message names the option, the file and the weights that differ."""
    other = module(CLIP(), source)
    other.encoder = TwoTowers(other.encoder.image, other.encoder.text, embed_dim=16, extra_layer=True)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"start_from: .*last\.ckpt: its encoder is not the one that is configured"):
        tiny.trainer(tmp_path).fit(other, tiny.data())


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
@pytest.mark.parametrize("fixed", [True, False])
def test_batch_norms_keep_their_statistics_only_if_they_are_fixed(tmp_path: Path, fixed: bool) -> None:
    """With fixed statistics, running means stay as they are while weights are trained, also after a validation."""
    trained = tiny.module(CLIP(), fine_tuning=FineTuning(fixed_statistics=fixed))
    before = {name: value.clone() for name, value in trained.encoder.image.state_dict().items()}  # type: ignore[union-attr]
    tiny.trainer(tmp_path, max_epochs=2).fit(trained, tiny.data())
    after = dict(trained.encoder.image.state_dict())  # type: ignore[union-attr]
    means = [name for name in before if name.endswith("running_mean")]
    assert means
    assert all(torch.equal(before[name], after[name]) == fixed for name in means)
    scales = [name.replace("running_mean", "weight") for name in means]
    assert not any(torch.equal(before[name], after[name]) for name in scales)
