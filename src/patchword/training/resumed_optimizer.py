"""Restores an optimizer from a checkpoint and keeps the options that the user has changed.

Lightning restores all options of an optimizer with its state, including options that the user has just changed. In
patchword, a checkpoint also stores the options that its optimizer was built with. If an option is different now, the
user has changed it, and it replaces the restored option. All other options remain as restored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from patchword.errors import UserError
from patchword.training.param_groups import Group

Built = list[dict[str, Any]]


def built(optimizer: Optimizer, groups: list[Group]) -> Built:
    """For each group of a new optimizer, the `names` of its parameters and its `options`, as a checkpoint stores them.

    `optimizer_of` has built the optimizer of `groups`.
    """
    return [
        {"names": group.names, "options": {name: _plain(value) for name, value in made.items() if _is_option(value)}}
        for made, group in zip(optimizer.param_groups, groups, strict=True)
    ]


def change_options(optimizer: Optimizer, scheduler: LambdaLR, before: Built | None, now: Built) -> None:
    """Set the options that were changed since the checkpoint, and the learning rates of the current schedule.

    The restored learning rates are those of the former schedule for the next step, which are 0 if it has ended.

    Args:
        optimizer: The restored optimizer.
        scheduler: The restored scheduler, with the function of the current schedule.
        before: The result of `built` that the checkpoint stores. None if an earlier version wrote the checkpoint: all
            current options replace the restored ones.
        now: The result of `built` for the optimizer before it was restored.
    """
    for number, (group, new) in enumerate(zip(optimizer.param_groups, now, strict=True)):
        had = before[number]["options"] if before is not None else {}
        changed = {name: value for name, value in new["options"].items() if name not in had or had[name] != value}
        if "lr" in changed:  # the peak; the scheduler computes the current rate from it
            changed["initial_lr"] = changed.pop("lr")
        group.update(changed)
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    scheduler._last_lr = [peak * factor for peak, factor in zip(scheduler.base_lrs, factors, strict=True)]
    for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def require_same_optimizer(checkpoint: Mapping[str, Any], hparams: Mapping[str, Any], groups: list[Group]) -> None:
    """Refuse a checkpoint whose optimizer state is missing or belongs to other groups of parameters.

    `hparams` are the hyperparameters of the current model, as a checkpoint stores them, and `groups` are its groups.

    Raises:
        UserError: The message names the options that were changed.
    """
    if not checkpoint.get("optimizer_states"):
        raise UserError(
            "--ckpt_path: this checkpoint holds weights without the optimizer's state (save_weights_only), so "
            "training cannot be resumed from it: use a checkpoint that was saved with save_weights_only false"
        )
    former = checkpoint.get("hyper_parameters", {})
    had, new = _class(former), _class(hparams)
    if had and new and had != new:
        raise UserError(
            f"model.optimizer is {new}, but the checkpoint holds the state of {had}: resume with the same optimizer, "
            "or start a new run without --ckpt_path"
        )
    known = checkpoint.get("optimizer_groups")
    if known is not None:
        same = [each["names"] for each in known] == [group.names for group in groups]
    else:  # an earlier version wrote the checkpoint
        sizes = [len(each["params"]) for each in checkpoint["optimizer_states"][0]["param_groups"]]
        same = sizes == [len(group.names) for group in groups]
    if not same:
        parts = ("encoder", "objective", "fine_tuning")
        before, now = ({name: each.get(name) for name in parts} for each in (former, hparams))
        changed = differences(before, now)
        raise UserError(
            "the optimizer's state in the checkpoint belongs to other groups of parameters"
            + (f": {'; '.join(changed)}" if changed else "")
            + ". Resume with the former options, or start a new run without --ckpt_path"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any], place: str = "model") -> list[str]:
    """One phrase for each option of a model that is different from that of a checkpoint."""
    found = []
    for name in [*now, *(name for name in before if name not in now)]:
        if str(name).startswith("_") or before.get(name) == now.get(name):
            continue
        had, new, key = before.get(name), now.get(name), place if name == "init_args" else f"{place}.{name}"
        if isinstance(had, Mapping) and isinstance(new, Mapping):
            found += differences(had, new, key)
        else:
            found.append(f"{key} is {new!r:.60} and was {had!r:.60}")
    return found


def _class(hparams: Mapping[str, Any]) -> str:
    """The name of the optimizer's class; empty if it is not known."""
    spec = hparams.get("optimizer")
    return str(spec.get("class_path", "")).rpartition(".")[2] if isinstance(spec, Mapping) else ""


def _is_option(value: Any) -> bool:
    """Whether a value is an option and not parameters."""
    if isinstance(value, (tuple, list)):
        return all(isinstance(one, (bool, int, float, str)) for one in value)
    return value is None or isinstance(value, (bool, int, float, str)) or (isinstance(value, Tensor) and not value.ndim)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
