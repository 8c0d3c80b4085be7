"""One run of a comparison: an ordinary `fit`, then an ordinary `test`, in its own folder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from patchword.commands.config_files import find_config
from patchword.errors import UserError
from patchword.files.atomic_write import atomic_write
from patchword.files.printable import printable
from patchword.files.results_file import RESULTS, read_results
from patchword.files.yaml_file import read_yaml


@dataclass(frozen=True)
class Run:
    """A variant with a seed.

    Attributes:
        variant: The name of the variant.
        seed: The seed of the run.
        folder: The folder of all files of the run.
        arguments: The arguments of `fit` and `test`, except for folders and the checkpoint.
    """

    variant: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the run in messages."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def options(self) -> list[tuple[str, str]]:
        """The arguments as pairs of an option and its value."""
        return list(zip(self.arguments[::2], self.arguments[1::2], strict=True))

    @property
    def checkpoint(self) -> Path:
        """The path of the last checkpoint."""
        return self.folder / "fit" / "checkpoints" / "last.ckpt"

    @property
    def finished(self) -> bool:
        """Whether the run has been trained and tested, and its results can be read."""
        return self.results.is_file() and not self.broken

    @property
    def results(self) -> Path:
        """The path of the test results."""
        return self.folder / "test" / RESULTS

    @property
    def broken(self) -> str:
        """The error in the results file; empty if the file is valid or does not exist."""
        try:
            if self.results.is_file():
                read_results(self.results)
        except UserError as error:
            return str(error)
        return ""

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.checkpoint.is_file()

    def command(self, stage: str, resume: bool = False) -> list[str]:
        """Return the command line of a stage: `patchword fit ...` or `patchword test ...`."""
        place = ("--trainer.logger.save_dir", str(self.folder.parent.parent))
        name = ("--trainer.logger.name", f"{self.folder.parent.name}/{self.folder.name}")
        version = ("--trainer.logger.version", stage)
        checkpoint = ("--ckpt_path", str(self.checkpoint)) if resume or stage == "test" else ()
        return ["patchword", stage, *self.arguments, *place, *name, *version, *checkpoint]

    @property
    def stages(self) -> tuple[str, ...]:
        """The remaining stages; a finished training is not repeated."""
        return ("test",) if (self.folder / "fit" / "done").is_file() else ("fit", "test")

    def note_end(self, stage: str) -> None:
        """Record that a stage is finished."""
        (self.folder / stage / "done").touch()

    def line(self) -> str:
        """Return the commands of all remaining stages as one line for a shell."""
        return " && ".join(shlex.join(self.command(stage, resume=self.begun)) for stage in self.stages)

    def require_same(self) -> None:
        """Check that the folder does not contain a run with other settings.

        Raises:
            UserError: If the settings or configuration files differ, or the record of them is broken.
        """
        path = self.folder / "run.json"
        if not path.is_file():
            return
        now = self._identity()
        try:
            before = json.loads(path.read_text())
            new, old = now["settings"], before["settings"]
            differing = [key for key in new | old if new.get(key) != old.get(key)]
            changed = [file for file, digest in now["files"].items() if before["files"].get(file, digest) != digest]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is broken: delete {self.folder} to start this run again") from error
        remedy = f"choose another --out, or delete {self.folder}"
        if differing:
            then, here = (settings.get(differing[0], "not given") for settings in (old, new))
            raise UserError(f"{self.folder} has a run with {differing[0]} {then}, but now it is {here}: {remedy}")
        if changed:
            raise UserError(f"{self.folder} has a run that was started before {changed[0]} changed: {remedy}")

    def note(self) -> None:
        """Record the settings of this run for `require_same`."""
        with atomic_write(self.folder / "run.json") as file:
            file.write(json.dumps(self._identity(), indent=2) + "\n")

    @contextmanager
    def claimed(self) -> Iterator[IO[str] | None]:
        """Hold the lock of the run, which child processes inherit; None if another process holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield lock

    def start(self, stage: str, lock: IO[str], threads: int | None) -> subprocess.Popen[bytes]:
        """Start `fit` (from its checkpoint, if there is one) or `test`, with its output in a log file.

        Args:
            stage: `fit` or `test`.
            lock: The lock from `claimed`. The process inherits it and keeps it even if this process is killed.
            threads: The number of CPU threads of the process; None for torch's default.
        """
        typed = [*self.command(stage, resume=stage == "fit" and self.begun), "--trainer.enable_progress_bar", "false"]
        environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        with self.log(stage).open("ab") as log:
            log.write(f"$ {shlex.join(typed)}\n".encode())
            log.flush()
            return subprocess.Popen(
                [sys.executable, "-m", *typed],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # so that Ctrl-C reaches the process only once, through us
                pass_fds=(lock.fileno(),),
            )

    def log(self, stage: str) -> Path:
        """Return the path of the log of `fit` or `test`."""
        return self.folder / f"{stage}.log"

    def progress(self) -> tuple[int, int, int | None]:
        """The number of training steps so far, of finished epochs, and of all epochs; None if it is not known."""
        folder = self.folder / "fit"
        try:
            head, *rows = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
            last = dict(zip(head.split(","), rows[-1].split(","), strict=True))
            epochs = read_yaml(folder / "config.yaml")["trainer"]["max_epochs"]
            return int(last["step"]) + 1, int(last["epoch"]), epochs if epochs and epochs > 0 else None
        except (OSError, ValueError, LookupError, TypeError, UserError):  # not yet written, or just being written
            return 0, 0, None

    def failure(self, stage: str, code: int) -> str:
        """Why `fit` or `test` failed: the signal that killed it, or the error in its log, or the log's last line.

        Args:
            stage: `fit` or `test`.
            code: The exit code of its process; negative for a signal.
        """
        if code == -signal.SIGKILL:
            return f"{stage} was killed, probably because memory ran out: use fewer --jobs or smaller batches"
        if code < 0:
            return f"{stage} was ended by {signal.Signals(-code).name}"
        lines = [line for line in self.log(stage).read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("patchword: error: ")]
        last = (errors or lines or ["the log is empty"])[-1].removeprefix("patchword: error: ")
        return f"{stage} ended with exit code {code}: {printable(last, 2000)}"

    def _identity(self) -> dict[str, dict[str, str]]:
        """Return the settings of the run, and the checksums of its configuration files."""
        settings: dict[str, str] = {}
        files: dict[str, str] = {}
        for option, value in self.options:
            settings[option] = f"{settings[option]} {value}" if option == "--config" and option in settings else value
            if option == "--config":
                path = find_config(value)
                files[value] = _checksum(path) if path.is_file() else "missing"
        return {"settings": settings, "files": files}


def _checksum(path: Path) -> str:
    """Return the checksum of the content of a configuration file; comments and layout do not matter."""
    content = json.dumps(read_yaml(path), default=str)
    return hashlib.sha256(content.encode()).hexdigest()
