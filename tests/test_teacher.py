"""A teacher is the exact moving average of the encoder: in training, after a resume, on several ranks and sharded."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from patchword import AlignmentModule
from patchword.data.augmentation import Views
from patchword.data.batch import Batch, collate
from patchword.data.scenes.datamodule import Scenes
from patchword.errors import UserError
from patchword.objective import lacking
from patchword.objectives import CLIP, COSMOS, Sum
from patchword.training.fsdp import shard
from patchword.training.param_groups import FineTuning, parameter_groups
from patchword.training.teacher import Teacher
from tests import tiny
from tests.ranks import as_device, on_ranks
from tests.test_module import assert_same_bits, state

# The command line ignores this warning too.
pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")

MOMENTUM = 0.7


def data(**arguments: Any) -> Scenes:
    return tiny.data(views=Views(local_crops=1, distort=False), **arguments)


def batch(size: int = 5) -> Batch:
    scenes = data().split("train")
    return collate([scenes[i] for i in range(size)])


def averaged(averages: dict[str, Tensor], student: dict[str, Tensor]) -> dict[str, Tensor]:
    """One step of the moving average in float64; numbers that are not floating point are the student's."""
    return {
        n: MOMENTUM * averages[n].double() + (1 - MOMENTUM) * x.double() if x.is_floating_point() else x
        for n, x in student.items()
    }


class Follow(Callback):
    """Compute the average of the weights and statistics after each step, from the weights before the first one."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.steps = 0
        self.expected = deepcopy(pl_module.encoder.state_dict())
        assert_same_bits(dict(pl_module.teacher.module.state_dict()), dict(self.expected))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > self.steps:
            self.expected = averaged(self.expected, deepcopy(pl_module.encoder.state_dict()))
        self.steps = trainer.global_step


@pytest.mark.filterwarnings("ignore:accumulate_grad_batches=2 adds no negatives")
@pytest.mark.parametrize("accumulated", [1, 2])
def test_it_is_the_moving_average_of_the_student(accumulated: int, tmp_path: Path) -> None:
    """It starts as a copy and follows every step of the optimizer, not every batch, with statistics of batch norms."""
    module, follow = tiny.module(COSMOS(), teacher_momentum=MOMENTUM), Follow()
    options = {"max_epochs": 1, "limit_val_batches": 0, "accumulate_grad_batches": accumulated}
    tiny.trainer(tmp_path, follow, **options).fit(module, data())
    assert follow.steps == 6 // accumulated
    found, student = module.teacher.module.state_dict(), module.encoder.state_dict()
    assert found.keys() == follow.expected.keys()
    for name, x in follow.expected.items():
        assert_close(found[name].double(), x.double(), rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    assert {name.endswith(("running_mean", "running_var")) for name in found} == {True, False}
    assert sum(not torch.equal(x, student[name]) for name, x in found.items()) > 10


def test_it_is_never_trained() -> None:
    """The optimizer and DDP do not see it, its dropout is off, and it has no gradient after a step."""
    module = tiny.exact_module(COSMOS(), dropout=0.5).train()
    assert not any(part.training for part in module.teacher.modules())
    named = {name for group in parameter_groups(module, module.encoder, FineTuning()) for name in group.names}
    assert named
    assert not any(name.startswith("teacher.") for name in named)
    one, two = (module.supply(*module(batch()), batch()) for _ in range(2))
    assert torch.equal(one[0].teacher, two[0].teacher)
    assert not torch.equal(one[0].views, two[0].views)
    sum(module.losses(*one).values()).backward()
    assert all(p.grad is None and not p.requires_grad for p in module.teacher.parameters())


def test_positions_are_copied_and_not_averaged() -> None:
    """torch's moving average rounds integers down: with 0.996, it changes 267 of the first 3000 positions."""
    student = tiny.exact_module(CLIP()).encoder
    student.register_buffer("positions", torch.arange(3000))
    student.register_buffer("masked", torch.tensor([True, False]))
    teacher = Teacher(student, 0.996)
    for _ in range(3):
        teacher.update_parameters(student)
    assert torch.equal(teacher.module.positions, torch.arange(3000))
    assert torch.equal(teacher.module.masked, student.masked)


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    """Student, teacher, optimizer and views are the same after a stop in the middle of an epoch."""

    class Stop(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 7:
                raise RuntimeError("stopped")

    def fit(folder: Path, *callbacks: Callback, **arguments: Any) -> None:
        trainer = tiny.trainer(folder, *callbacks, limit_val_batches=1)
        trainer.fit(tiny.module(COSMOS(), teacher_momentum=MOMENTUM), data(), **arguments)

    fit(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path / "part", Stop())
    last = tmp_path / "part/last.ckpt"
    assert state(last)["global_step"] == 4
    fit(tmp_path / "part", ckpt_path=last, weights_only=True)
    found, expected = state(last), state(tmp_path / "whole/last.ckpt")
    assert sum(name.startswith("teacher.module.") for name in expected["state_dict"]) > 10
    assert_same_bits(found, expected)
    again = AlignmentModule.load_from_checkpoint(last)
    assert again.hparams["teacher_momentum"] == MOMENTUM
    kept = {n: x for n, x in expected["state_dict"].items() if n.startswith("teacher.")}
    assert_same_bits({f"teacher.{n}": x for n, x in again.teacher.state_dict().items()}, kept)


@pytest.mark.parametrize("size", [1, 4])
def test_chunks_do_not_change_it(size: int) -> None:
    """In two-pass mode, a teacher that differs from the student gives the same embeddings."""
    found = []
    for chunk in (None, size):
        module = tiny.exact_module(COSMOS(), chunk_size=chunk).double()
        with torch.no_grad():
            for parameter in module.teacher.parameters():
                parameter.mul_(1.1)
        images, texts = module.supply(*module(batch()), batch())
        found.append((images.teacher, texts.teacher, images.views))
    assert_close(*found)
    assert not torch.equal(found[0][2][:, 0], found[0][0][:, 1])


def test_views_depend_on_the_epoch_and_the_sample_alone() -> None:
    """Batches have the same views with and without workers, and other views in another epoch."""

    def views(epoch: int, **arguments: Any) -> list[Tensor]:
        loader = data(**arguments).train_dataloader()
        loader.sampler.set_epoch(epoch)
        found = {}
        for each in loader:
            found |= dict(zip(each.ids.tolist(), torch.cat([each.global_views, each.local_views], 1), strict=True))
        return [found[i] for i in range(96)]

    first = views(0)
    assert all(torch.equal(x, y) for x, y in zip(views(0, num_workers=2, remember=False), first, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(views(1), first, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(views(0, batch_size=8), views(0, seed=1), strict=True))


def test_validation_measures_everything_but_the_loss(tmp_path: Path) -> None:
    """Validation images have no crops. The teacher is not run on them in vain."""
    module = tiny.module(COSMOS())
    trainer = tiny.trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    trainer.fit(module, data())
    assert "train/distillation" in trainer.callback_metrics
    assert "val/retrieval/image_to_text/r@1" in trainer.callback_metrics
    assert not {"val/loss", "val/distillation"} & trainer.callback_metrics.keys()
    scenes = data().split("val")
    whole = collate([scenes[i] for i in range(2)])
    images, texts = module.supply(*module(whole), whole)
    assert set(lacking(module.objective, images, texts)) == {"views", "teacher"}
    assert (images.views, images.teacher, texts.teacher) == (None, None, None)


def test_a_sum_has_one_teacher_for_all_its_parts() -> None:
    module = tiny.exact_module(Sum({"cosmos": COSMOS(), "clip": CLIP()}))
    assert isinstance(module.teacher, Teacher)
    images, texts = module.supply(*module(batch()), batch())
    assert module.losses(images, texts).keys() == {"cosmos/global", "cosmos/distillation", "clip/global"}


def test_features_of_random_views_are_not_cached() -> None:
    with pytest.raises(UserError, match=r"set data\.views to null"):
        data().fingerprint("train")
    assert data().fingerprint("val") == tiny.data().fingerprint("val")


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_a_wrong_momentum_is_refused(momentum: float) -> None:
    with pytest.raises(UserError, match=r"teacher_momentum must lie in \[0, 1\]"):
        tiny.exact_module(COSMOS(), teacher_momentum=momentum)


def _sharded(rank: int) -> dict[str, Tensor]:
    """A teacher's weights and embeddings after two changes of a sharded student."""
    module = tiny.exact_module(COSMOS(), teacher_momentum=MOMENTUM).double()
    shard(module.encoder, module.objective, init_device_mesh("cpu", (2,)), module.teacher.module)
    return _after_two_changes(module)


def _after_two_changes(module: AlignmentModule) -> dict[str, Tensor]:
    teacher: Any = module.teacher
    found = {}
    for step in range(2):
        images, texts = module.supply(*module(batch()), batch())
        sum(module.losses(images, texts).values()).backward()  # after which FSDP2 shards the student again
        with torch.no_grad():
            for parameter in module.encoder.parameters():
                parameter.mul_(1.1)
        teacher.update_parameters(module.encoder)
        found |= {f"{step} images": images.teacher, f"{step} texts": texts.teacher}
    weights = teacher.module.state_dict()
    return found | {n: x.full_tensor() if isinstance(x, DTensor) else x for n, x in weights.items()}


def test_a_sharded_teacher_is_the_average_of_a_sharded_student() -> None:
    """With FSDP2, every rank averages its own parts."""
    expected = _after_two_changes(tiny.exact_module(COSMOS(), teacher_momentum=MOMENTUM).double())
    for found in on_ranks(_sharded):
        assert_close(found, expected)


def _trained(rank: int, folder: Path) -> dict[str, Tensor]:
    with as_device(rank) as devices:
        return _weights(folder, data(batch_size=8), **devices)


def _weights(folder: Path, scenes: Scenes, **arguments: Any) -> dict[str, Tensor]:
    """Student and teacher after an epoch of six steps in float64."""
    module = tiny.exact_module(COSMOS(), teacher_momentum=MOMENTUM)
    options = {"max_epochs": 1, "limit_val_batches": 0, "precision": "64-true"}
    tiny.trainer(folder, **options, **arguments).fit(module, scenes)
    return {n: x.detach().clone() for n, x in module.state_dict().items()}


@pytest.mark.slow
def test_two_processes_end_in_the_teacher_of_one(tmp_path: Path) -> None:
    """Student and teacher are the same, because views do not depend on the number of processes."""
    expected = _weights(tmp_path / "one", data(batch_size=16))
    assert any(name.startswith("teacher.module.") for name in expected)
    for found in on_ranks(_trained, tmp_path / "two"):
        for name, x in expected.items():
            assert_close(found[name], x, rtol=1e-5, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")
