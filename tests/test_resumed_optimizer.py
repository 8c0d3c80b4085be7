"""A resumed optimizer takes its state from the checkpoint, and changed options from the configuration."""

from __future__ import annotations

import functools
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from patchword import AlignmentModule
from patchword.errors import UserError
from patchword.objectives import CLIP
from patchword.training.lr_schedule import Schedule
from patchword.training.param_groups import FineTuning, Group, optimizer_of
from patchword.training.resumed_optimizer import built, change_options, require_same_optimizer
from tests import tiny


class Rates(Callback):
    """Record the options of the first group at every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        self.seen.append({name: value for name, value in optimizer.param_groups[0].items() if name != "params"})


def model(lr: float, **options: Any) -> AlignmentModule:
    made = tiny.module(CLIP(), schedule=Schedule())
    optimizer = functools.partial(torch.optim.AdamW, lr=lr, **options)
    return AlignmentModule(made.encoder, CLIP(), optimizer=optimizer, fine_tuning=FineTuning(tower_lr=0.5))


def fit(folder: Path, model: AlignmentModule, steps: int, **resume: Any) -> list[dict[str, Any]]:
    rates = Rates()
    trainer = tiny.trainer(folder, rates, max_steps=steps, max_epochs=-1, limit_val_batches=0)
    trainer.fit(model, tiny.data(batch_size=8, train_size=32), **resume)
    return rates.seen


def test_what_is_given_anew_wins_and_the_longer_schedule_goes_on(tmp_path: Path) -> None:
    """Changed rates and betas apply from the first resumed step, and eps stays as in the checkpoint.

    The checkpoint of a finished schedule has rate 0, and the longer schedule continues in its middle.
    """
    fit(tmp_path, model(1e-3), 2)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["lr_schedulers"][0]["_last_lr"][0] == 0
    saved["optimizer_states"][0]["param_groups"][0]["eps"] = 1e-3  # as a callback might do during training
    torch.save(saved, tmp_path / "last.ckpt")
    resume = {"ckpt_path": tmp_path / "last.ckpt", "weights_only": True}
    seen = fit(tmp_path, model(4e-4, betas=(0.5, 0.6)), 4, **resume)
    assert [one["lr"] for one in seen] == pytest.approx([2e-4, 4e-4 * (1 - 0.5**0.5) / 2])
    assert [tuple(one["betas"]) for one in seen] == [(0.5, 0.6)] * 2
    assert [one["eps"] for one in seen] == [1e-3] * 2
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["lr_schedulers"][0]["base_lrs"] == pytest.approx([4e-4, 2e-4, 4e-4, 2e-4])
    del saved["optimizer_states"]
    torch.save(saved, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="holds weights without the optimizer's state"):
        fit(tmp_path, model(4e-4), 6, **resume)


def test_a_schedule_that_has_not_changed_gives_the_same_bits() -> None:
    """The rate of the next step is recomputed exactly."""
    optimizer, scheduler, now, _ = trained(lr=3e-3)
    rates = [group["lr"] for group in optimizer.param_groups]
    change_options(optimizer, scheduler, now, now)
    assert [group["lr"] for group in optimizer.param_groups] == rates == scheduler.get_last_lr()


def trained(**options: Any) -> tuple[torch.optim.Optimizer, LambdaLR, Any, list[Group]]:
    """Return an optimizer after three of ten steps, with one group with weight decay and one without."""
    layer = nn.Linear(3, 2)
    groups = [Group(["weight"], [layer.weight], 1.0, True), Group(["bias"], [layer.bias], 0.5, False)]
    optimizer = optimizer_of(groups, functools.partial(torch.optim.AdamW, **options))
    now = deepcopy(built(optimizer, groups))
    scheduler = LambdaLR(optimizer, Schedule(warmup_steps=2).factor(lambda: 10))
    for _ in range(3):
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
    return optimizer, scheduler, now, groups


def test_decay_that_is_given_anew_is_not_given_to_norms() -> None:
    """A changed weight decay applies only to groups that have weight decay."""
    optimizer, scheduler, before, _ = trained(lr=1e-3, weight_decay=0.1)
    change_options(optimizer, scheduler, before, trained(lr=2e-3, weight_decay=0.3)[2])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert scheduler.base_lrs == [2e-3, 1e-3]


def test_over_a_checkpoint_of_an_earlier_version_the_present_options_win() -> None:
    """Such a checkpoint does not contain the options of its optimizer."""
    optimizer, scheduler, _, _ = trained(lr=1e-3, weight_decay=0.1)
    change_options(optimizer, scheduler, None, trained(lr=1e-3, weight_decay=0.2)[2])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]


def test_another_optimizer_and_other_groups_are_refused() -> None:
    """The message names the change, whether or not the checkpoint has the names of parameters."""
    optimizer, _, now, groups = trained(lr=1e-3)
    hparams = {
        "optimizer": {"class_path": "torch.optim.adamw.AdamW"},
        "fine_tuning": {"tower_lr": 0.5},
        "tokens": "all",
    }
    checkpoint = {"optimizer_states": [optimizer.state_dict()], "optimizer_groups": now, "hyper_parameters": hparams}
    require_same_optimizer(checkpoint, hparams | {"tokens": "content"}, groups)
    sgd = hparams | {"optimizer": {"class_path": "torch.optim.sgd.SGD"}}
    with pytest.raises(UserError, match=r"model\.optimizer is SGD, but the checkpoint holds the state of AdamW"):
        require_same_optimizer(checkpoint, sgd, groups)
    otherwise = hparams | {"fine_tuning": {"tower_lr": 1.0}, "tokens": "content"}
    for before in (now, None):
        with pytest.raises(UserError, match=r"parameters: model\.fine_tuning\.tower_lr is 1\.0 and was 0\.5\. Resume"):
            require_same_optimizer(checkpoint | {"optimizer_groups": before}, otherwise, groups[:1])
