"""The command line explains user errors in one line that names the option, and shows tracebacks for code errors."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from patchword import cli
from patchword.commands.blame import blamed, flatten
from patchword.commands.objective_names import build
from patchword.errors import UserError


@pytest.fixture(autouse=True)
def _leave_the_environment_alone() -> Iterator[None]:
    """Restore the environment, because `seed_everything` and the command line set environment variables."""
    before, path = dict(os.environ), [*sys.path]
    yield
    os.environ.clear()
    os.environ.update(before)
    sys.path[:] = path


@pytest.fixture
def leaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a module that exits on import, and a module whose class exits when it is created."""
    (tmp_path / "leaves_at_once.py").write_text("import sys\nsys.exit()\n")
    (tmp_path / "leaves_later.py").write_text("import sys\ndef Leaving():\n    sys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_module_that_exits_is_an_error(
    leaving: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If imported code calls `sys.exit`, the message names the objective or the file and line, and the code is 2."""
    with pytest.raises(UserError, match=r"leaves_at_once calls sys\.exit"):
        build("leaves_at_once.Leaving")
    with pytest.raises(UserError, match=r"Leaving calls sys\.exit"):
        build("leaves_later.Leaving")
    command = SimpleNamespace(main=lambda _: __import__("leaves_at_once"))
    monkeypatch.setattr(cli, "_module", lambda _: command)
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify"])
    assert ended.value.code == 2
    assert "leaves_at_once.py, line 2, ended the program (sys.exit)" in capsys.readouterr().err

    class Hook:  # as wandb's
        def exit(self, code: object = 0, leave: Callable[[Any], Any] = sys.exit) -> None:
            leave(code)

    monkeypatch.setattr(sys, "exit", Hook().exit)
    command.main = ArgumentParser().parse_args
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", "--help"])
    assert ended.value.code in (0, None)


def raised(call: Callable[[], Any]) -> Exception:
    """Return the exception of a call without the frame of the caller, as the command line would catch it."""
    try:
        call()
    except Exception as error:
        return error.with_traceback(error.__traceback__.tb_next.tb_next)  # type: ignore[union-attr]
    raise AssertionError("nothing was raised")


WEIGHT = [torch.nn.Parameter(torch.zeros(1))]
ADAM = {"model.optimizer.class_path": "torch.optim.AdamW", "model.optimizer.init_args.weight_decay": 0.1}
STOPPING = {"trainer.callbacks.0.class_path": "lightning.pytorch.callbacks.EarlyStopping"}
STOPPING |= {"trainer.callbacks.0.init_args.monitor": "val/nothing"}


class Logged:
    callback_metrics: ClassVar[dict[str, Any]] = {}
    fast_dev_run = False


@pytest.mark.parametrize(
    ("call", "chosen", "about"),
    [
        (
            lambda: torch.optim.AdamW(WEIGHT, lr=-1.0, weight_decay=0.1),
            ADAM | {"model.optimizer.init_args.lr": -1.0, "trainer.max_epochs": -1},
            "model.optimizer.lr is -1.0",
        ),
        (
            lambda: torch.optim.AdamW(WEIGHT, betas=(2.0, 0.9), weight_decay=0.1),
            ADAM | {"model.optimizer.init_args.betas": [2.0, 0.9]},
            "model.optimizer.betas is [2.0, 0.9]",
        ),
        (
            lambda: torch.optim.LBFGS([{"params": WEIGHT}, {"params": []}]),
            {"model.optimizer.class_path": "torch.optim.LBFGS"},
            "model.optimizer is 'torch.optim.LBFGS'",
        ),
        (
            lambda: EarlyStopping("val/nothing")._run_early_stopping_check(Logged()),  # type: ignore[arg-type]
            STOPPING,
            "trainer.callbacks.0.monitor is 'val/nothing'",
        ),
        (lambda: torch.optim.AdamW(WEIGHT, lr=-1.0), {}, None),
    ],
)
def test_an_error_of_a_library_names_the_typed_value(
    call: Callable[[], Any], chosen: dict[str, Any], about: str | None
) -> None:
    """The value is found by the message, by the arguments of the failing constructor, or by the failing class."""
    assert blamed(raised(call), chosen, {}) == about


def test_errors_of_code_keep_their_traceback() -> None:
    """An error in the user's code or in patchword is not blamed on an option."""

    def own() -> None:
        torch.optim.AdamW(WEIGHT, lr=-1.0)

    chosen = {"model.optimizer.init_args.lr": -1.0}
    with pytest.raises(ValueError, match="Invalid learning rate") as caught:
        own()
    assert blamed(caught.value, chosen, {}) is None
    assert blamed(raised(lambda: build("SPARC.nothing")), {"trainer.profiler": "nothing"}, {}) is None


def test_values_are_flattened() -> None:
    """Lists of classes are flattened with numbers, and other lists are kept as values."""
    from jsonargparse import Namespace

    config = Namespace(callbacks=[Namespace(class_path="A", init_args=Namespace(x=1))], betas=[0.9, 0.95])
    assert dict(flatten(config)) == {
        "callbacks.0.class_path": "A",
        "callbacks.0.init_args.x": 1,
        "betas": [0.9, 0.95],
    }


SMALL = [
    *("fit", "--config", "configs/clip.yaml", "--data.batch_size", "4", "--data.train_size", "8"),
    *("--data.val_size", "4", "--trainer.max_steps", "1", "--trainer.max_epochs", "-1", "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--seed_everything", "-1"], "seed_everything is -1: -1 is not in bounds"),
        (["--trainer.callbacks+=LearningRateFinder"], "LearningRateFinder cannot set the learning rate"),
        (["--model.optimizer.lr", "-1"], "model.optimizer.lr is -1.0: Invalid learning rate: -1.0"),
    ],
)
def test_a_typed_value_that_a_library_refuses_is_one_line(
    typed: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A value that a library refuses gives one line, both before the model is built and in training."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main([*SMALL, *typed])
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("patchword: error")]
    assert message in line


@pytest.mark.parametrize("typed", ["--trainer.barebones=true", "--trainer.enable_checkpointing=false"])
def test_a_run_without_checkpoints(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkpoint is written if the trainer disables checkpoints."""
    monkeypatch.chdir(tmp_path)
    cli.main([*SMALL, typed])
    assert not list(tmp_path.rglob("*.ckpt"))
