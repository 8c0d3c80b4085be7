"""Training handles signals, full disks and dying processes without losing its last checkpoint."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.connectors import signal_connector
from torch.utils.data import DataLoader

from patchword import cli
from patchword.callbacks.checkpoint import Checkpoint
from patchword.data.worker_signals import outlive_signals
from patchword.errors import TrainingError, UserError
from patchword.objectives import SPARC
from patchword.training.checkpoint_io import WholeFileIO
from tests import tiny
from tests.test_module import assert_same_bits, state


@pytest.fixture(autouse=True)
def _leave_the_process_alone() -> Iterator[None]:
    """Restore the environment, which `seed_everything` changes, and signal handlers, which a failing test may leave."""
    before, handlers = dict(os.environ), [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    os.environ.clear()
    os.environ.update(before)
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True):
        signal.signal(number, handler)


class Signal(Callback):
    """Send a signal to this process in a given hook at a given step."""

    def __init__(self, number: int, hook: str, step: int) -> None:
        self.number, self.step, self.sent = number, step, False
        setattr(self, hook, self._send)

    def _send(self, trainer: Any, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.trainer(folder).fit(tiny.module(SPARC()), tiny.data())
    return folder


# Checkpoints are saved at steps 4, 8 and 12. An epoch has 6 steps, and validation follows steps 6 and 12.
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
    """Whenever a signal arrives, the resumed run has the weights, random states and losses of an uninterrupted run."""
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


def test_a_signal_before_the_first_step_saves_nothing(tmp_path: Path) -> None:
    """A run that is stopped before its first step writes no checkpoint, because there is nothing to resume."""
    before = signal.getsignal(signal.SIGINT)
    trainer = tiny.trainer(tmp_path, Signal(signal.SIGTERM, "on_validation_batch_start", 0))
    with pytest.raises(SystemExit) as stopped:
        trainer.fit(tiny.module(SPARC()), tiny.data())
    assert stopped.value.code == 143
    assert not list(tmp_path.glob("*.ckpt*"))
    assert signal.getsignal(signal.SIGINT) is before, "the previous handlers are restored"


@pytest.mark.filterwarnings("ignore:accumulate_grad_batches=2 adds no negatives")
def test_a_stop_waits_for_the_step_of_accumulated_gradients(tmp_path: Path) -> None:
    """Checkpoints do not contain gradients, so training stops only after a step of the optimizer."""
    trainer = tiny.trainer(
        tmp_path, Signal(signal.SIGTERM, "on_train_batch_start", 1), max_epochs=1, accumulate_grad_batches=2
    )
    with pytest.raises(SystemExit):
        trainer.fit(tiny.module(SPARC()), tiny.data())
    assert state(tmp_path / "last.ckpt")["global_step"] == 2


def test_a_stop_with_links_saves_the_state_itself(tmp_path: Path) -> None:
    """With `save_last: link`, the link points to a checkpoint of the last step, not to an older one."""
    trainer = tiny.trainer(tmp_path, Signal(signal.SIGTERM, "on_train_batch_start", 4))
    callback, folder = trainer.checkpoint_callback, tmp_path / "checkpoints"
    callback.save_last, callback.save_top_k, callback.dirpath = "link", -1, str(folder)
    with pytest.raises(SystemExit):
        trainer.fit(tiny.module(SPARC()), tiny.data())
    assert (folder / "last.ckpt").is_symlink()
    assert state(folder / "last.ckpt")["global_step"] == 5


def test_slurm_requeues_from_a_state_between_two_steps(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requeueing by Lightning saves a state between two steps, also with two callbacks, and the new job resumes it."""
    for name, value in {"JOB_ID": "7", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_JOB_NAME", "job")
    commands: list[list[str]] = []
    monkeypatch.setattr(signal_connector, "call", lambda command: commands.append(command) or 0)
    other = {"dirpath": tmp_path / "other", "monitor": "val/loss", "save_top_k": 0}
    trainer = tiny.trainer(
        tmp_path, Checkpoint(**other), Signal(signal.SIGUSR1, "on_before_zero_grad", 4), default_root_dir=tmp_path
    )
    trainer.fit(tiny.module(SPARC()), tiny.data())
    assert commands == [["scontrol", "requeue", "7"]]
    assert state(tmp_path / "hpc_ckpt_1.ckpt")["global_step"] == 5
    trainer = tiny.trainer(tmp_path, Checkpoint(**other), default_root_dir=tmp_path)
    trainer.fit(tiny.module(SPARC()), tiny.data())
    assert trainer.ckpt_path == str(tmp_path / "hpc_ckpt_1.ckpt")
    assert_same_bits(state(Path(trainer.checkpoint_callback.last_model_path)), state(uninterrupted / "last.ckpt"))


@contextmanager
def full_disk(free: int) -> Iterator[None]:
    """Simulate a full disk without root: no file of this process can grow beyond `free` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("free", [0, 3000, 300_000])
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, free: int) -> None:
    """If writing fails at any point, the old file is kept, the partial file is deleted, and the message says so."""
    path = tmp_path / "last.ckpt"
    WholeFileIO().save_checkpoint({"step": 1}, path)
    with full_disk(free), pytest.raises(TrainingError) as error:
        WholeFileIO().save_checkpoint({"step": 2, "weights": [torch.ones(50_000)] * 4, "x": torch.ones(200_000)}, path)
    assert str(error.value) == (
        f"{path}: File too large, so this checkpoint was not saved. "
        f"The previous checkpoint was kept: fix the problem, then resume with --ckpt_path {path}"
    )
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_another_error_while_saving_is_not_reported_as_a_full_disk(tmp_path: Path) -> None:
    """An object that cannot be pickled is an error of the code. It leaves no file either."""
    with pytest.raises(AttributeError):
        WholeFileIO().save_checkpoint({"step": lambda: 1}, tmp_path / "last.ckpt")
    assert not os.listdir(tmp_path)


def test_training_on_a_full_disk_ends_with_the_last_whole_checkpoint(tmp_path: Path) -> None:
    """The callback saves with WholeFileIO by default, so the checkpoint of step 4 is kept if saving step 8 fails."""

    class Fill(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                disk.__enter__()

    disk = full_disk(100_000)
    try:
        with pytest.raises(TrainingError, match=f"resume with --ckpt_path {tmp_path / 'last.ckpt'}"):
            tiny.trainer(tmp_path, Fill()).fit(tiny.module(SPARC()), tiny.data())
    finally:
        disk.__exit__(None, None, None)
    assert state(tmp_path / "last.ckpt")["global_step"] == 4
    assert not list(tmp_path.glob("*.part"))


def test_a_folder_that_cannot_be_written_is_found_before_training(tmp_path: Path) -> None:
    """An unwritable checkpoint folder is reported at the start, not when the first checkpoint is saved."""
    (tmp_path / "file").touch()
    trainer = tiny.trainer(tmp_path)
    trainer.checkpoint_callback.dirpath = str(tmp_path / "file" / "checkpoints")
    with pytest.raises(UserError, match="checkpoints cannot be saved there; choose another folder"):
        trainer.fit(tiny.module(SPARC()), tiny.data())
    assert trainer.global_step == 0


def closed_by_a_logger() -> OSError:
    """Return the error of a logger that is closed because a checkpoint failed, and that finds the disk full as well."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    error.__context__ = TrainingError("last.ckpt: No space left on device")
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device: a file cannot be written"),
        (closed_by_a_logger(), "last.ckpt: No space left on device"),
        (TrainingError("training cannot go on"), "training cannot go on"),
        (RuntimeError("The sizes `data_parallel_size=3` and"), "The sizes `data_parallel_size=3`"),  # of Lightning
    ],
)
def test_the_command_line_says_what_ended_training(monkeypatch: Any, capsys: Any, error: Exception, said: str) -> None:
    """Training errors end with one line, and on a full disk it does not matter which file failed first."""

    def fail(_: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "_lightning", fail)
    with pytest.raises(SystemExit) as end:
        cli.main(["fit"])
    assert end.value.code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"patchword: error: {said}")


def test_ctrl_c_before_training_is_no_traceback(monkeypatch: Any, capsys: Any) -> None:
    """Ctrl-C ends with exit code 130, as shells expect, where Lightning would end with 1."""

    def interrupted(_: list[str]) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    monkeypatch.setattr(cli, "_lightning", interrupted)
    with pytest.raises(SystemExit) as end:
        cli.main(["fit"])
    assert end.value.code == 130
    assert capsys.readouterr().err == "patchword: interrupted\n"


def test_loader_workers_outlive_signals_that_everybody_gets() -> None:
    """SLURM and terminals also signal data workers, which must deliver batches until the trainer has saved."""
    loader = DataLoader(range(1000), num_workers=1, batch_size=1, worker_init_fn=outlive_signals)  # type: ignore
    batches = iter(loader)
    next(batches)
    worker = batches._workers[0]  # type: ignore[attr-defined]
    # Another process sends the signal, because SIGTERM from the process of the loader must end the worker.
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    assert sum(1 for _ in batches) == 999
    worker.join(20)
    batches = iter(loader)
    next(batches)
    worker = batches._workers[0]  # type: ignore[attr-defined]
    worker.terminate()
    worker.join(20)
    worker.kill()  # otherwise a worker that ignores SIGTERM would block the end of this test
    assert worker.exitcode == 0


# A launching process and one other rank. Nothing here takes long to import.
LAUNCHER = """
    import os, subprocess, sys, time, types
    from patchword.training import processes
    start = "import os, sys, time; from patchword.training import processes; processes.end_with_launcher();"
    child = subprocess.Popen([sys.executable, "-c", start + sys.argv[1]], env={**os.environ, "LOCAL_RANK": "1"})
    launcher = types.SimpleNamespace(procs=[child], num_processes=2)
    processes.threading.Thread(target=processes._watch_children, args=(launcher,), daemon=True).start()
    time.sleep(0.5)  # until the thread has begun
    try:
        exec(sys.argv[2])
    finally:
        processes.wait_for_children()
"""


@pytest.mark.parametrize(
    ("child", "first", "code", "said"),
    [
        ("time.sleep(1); raise SystemExit('its own error')", "time.sleep(100)", 1, "its own error"),
        ("time.sleep(1); raise SystemExit('its own error')", "", 1, "its own error"),
        ("time.sleep(1); os.kill(os.getpid(), 9)", "time.sleep(100)", 137, "local rank 1 was killed by SIGKILL"),
        ("time.sleep(100)", "processes.kill_children(); sys.exit('own error')", 1, "own error"),
        ("time.sleep(1); sys.exit(143)", "sys.exit(143)", 143, ""),
        ("time.sleep(1)", "", 0, ""),
        ("time.sleep(100)", "os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_ranks_end_together(child: str, first: str, code: int, said: str) -> None:
    """If any rank fails, the command ends within seconds with its exit code and error, and no process is left."""
    launcher = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LAUNCHER), child, first],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, error = launcher.communicate(timeout=30)  # this also waits for the other rank, which holds the pipe
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    assert launcher.returncode == code, error
    assert said in (error.splitlines() or [""])[-1]
