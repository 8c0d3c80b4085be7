"""What training does when it is signalled, when a disk is full, and when a process dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from lightning.pytorch import Callback

from patchword.objectives import SPARC
from tests import tiny
from tests.test_module import assert_same_bits, state


@pytest.fixture(autouse=True)
def _leave_the_process_alone() -> Iterator[None]:
    """Lightning's seed_everything writes environment variables; a failing test may leave handlers."""
    before, handlers = dict(os.environ), [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    os.environ.clear()
    os.environ.update(before)
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True):
        signal.signal(number, handler)


class Signal(Callback):
    """Signals this very process in a hook, once a step has been reached."""

    def __init__(self, number: int, hook: str, step: int) -> None:
        self.number, self.step, self.sent = number, step, False
        setattr(self, hook, self._send)

    def _send(self, trainer: Any, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tiny.trainer(folder).fit(tiny.module(SPARC()), tiny.data())
    return folder


# Checkpoints are made at steps 4, 8 and 12; an epoch has 6 steps; validation follows steps 6 and 12.
@pytest.mark.parametrize(
    ("number", "hook", "step", "saved"),
    [
        (signal.SIGTERM, "on_train_batch_start", 4, 5),
        (signal.SIGTERM, "on_train_batch_end", 6, 6),
        (signal.SIGTERM, "on_validation_batch_start", 6, 6),
        (signal.SIGINT, "on_before_zero_grad", 7, 8),
        (signal.SIGINT, "on_train_epoch_end", 6, 6),
    ],
)
def test_a_signal_saves_a_state_from_which_training_ends_in_the_same_bits(
    uninterrupted: Path, tmp_path: Path, capsys: Any, number: int, hook: str, step: int, saved: int
) -> None:
    """Wherever the signal arrives, the resumed run has the weights, random states and validations of the whole one."""
    with pytest.raises(SystemExit) as stopped:
        tiny.trainer(tmp_path, Signal(number, hook, step)).fit(tiny.module(SPARC()), tiny.data())
    assert stopped.value.code == 128 + number
    path = tmp_path / "last.ckpt"
    assert state(path)["global_step"] == saved
    trainer = tiny.trainer(tmp_path)
    trainer.fit(tiny.module(SPARC()), tiny.data(), ckpt_path=path)
    assert_same_bits(state(path), state(uninterrupted / "last.ckpt"))
    validated, expected = (
        pd.concat(pd.read_csv(file) for file in sorted((folder / "logs").glob("*/metrics.csv")))
        .dropna(subset=["val/loss"])
        .set_index("step")["val/loss"]
        .to_dict()
        for folder in (tmp_path, uninterrupted)
    )
    assert validated == pytest.approx(expected)
