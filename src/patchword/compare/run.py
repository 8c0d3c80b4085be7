"""One run of a comparison: an ordinary `fit`, then an ordinary `test`, in a folder of its own."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import yaml

from patchword.configs_path import find_config
from patchword.errors import InputError


@dataclass(frozen=True)
class Run:
    """A variant with a seed.

    Attributes:
        variant: The variant's name.
        seed: The seed.
        folder: Where everything of this run is.
        arguments: What `fit` and `test` are given, but for folders and checkpoint.
    """

    variant: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def checkpoint(self) -> Path:
        """The latest state of its training."""
        return self.folder / "fit" / "checkpoints" / "last.ckpt"

    @property
    def finished(self) -> bool:
        """Whether it has been trained and tested."""
        return (self.folder / "test" / "results.json").is_file()

    @property
    def begun(self) -> bool:
        """Whether there is a state to go on from."""
        return self.checkpoint.is_file()

    def command(self, stage: str, resume: bool = False) -> list[str]:
        """What one would type: `patchword fit ...`, or `patchword test ...`."""
        place = ("--trainer.logger.save_dir", str(self.folder.parent.parent))
        name = ("--trainer.logger.name", f"{self.folder.parent.name}/{self.folder.name}")
        version = ("--trainer.logger.version", stage)
        checkpoint = ("--ckpt_path", str(self.checkpoint)) if resume or stage == "test" else ()
        return ["patchword", stage, *self.arguments, *place, *name, *version, *checkpoint]

    @property
    def stages(self) -> tuple[str, ...]:
        """What is still to be done; a training that has come to its end is not begun again."""
        return ("test",) if (self.folder / "fit" / "done").is_file() else ("fit", "test")

    def note_end(self, stage: str) -> None:
        """`stage` has come to its end."""
        (self.folder / stage / "done").touch()

    def line(self) -> str:
        """All that this run still needs, as one line for a shell."""
        return " && ".join(shlex.join(self.command(stage, resume=self.begun)) for stage in self.stages)

    def require_same(self) -> None:
        """Raises InputError if the folder holds a run with other settings."""
        path = self.folder / "run.json"
        if not path.is_file():
            return
        now = self._identity()
        try:
            before = json.loads(path.read_text())
            differing = [
                key
                for key in now["settings"] | before["settings"]
                if now["settings"].get(key) != before["settings"].get(key)
            ]
            changed = [file for file, digest in now["files"].items() if before["files"].get(file, digest) != digest]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is broken: delete {self.folder} to begin this run anew") from error
        remedy = f"give another --out, or delete {self.folder}"
        if differing:
            then, here = (x["settings"].get(differing[0], "not given") for x in (before, now))
            raise InputError(f"{self.folder} holds a run with {differing[0]} {then}, and now it is {here}: {remedy}")
        if changed:
            raise InputError(f"{self.folder} holds a run made before {changed[0]} was changed: {remedy}")

    def note(self) -> None:
        """Write down what this run is, for `require_same`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "run.json").write_text(json.dumps(self._identity(), indent=2) + "\n")

    @contextmanager
    def claimed(self) -> Iterator[IO[str] | None]:
        """The run's lock, held by this process and the processes that inherit it; None where another holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield lock

    def start(self, stage: str, lock: IO[str], threads: int | None) -> subprocess.Popen[bytes]:
        """Start `fit` (from its checkpoint, if there is one) or `test`; what it prints goes to a log file.

        Args:
            stage: `fit` or `test`.
            lock: See `claimed`; the process keeps it, should this one be killed.
            threads: Of the process's computations; None for torch's default.
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
                start_new_session=True,  # Ctrl-C reaches it once, through us
                pass_fds=(lock.fileno(),),
            )

    def log(self, stage: str) -> Path:
        """What `fit` or `test` prints."""
        return self.folder / f"{stage}.log"

    def last_words(self, stage: str) -> str:
        """The error in the log, or its last line."""
        lines = [line for line in self.log(stage).read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("patchword: error: ")]
        return (errors or lines or ["it said nothing"])[-1].removeprefix("patchword: error: ")

    def _identity(self) -> dict[str, dict[str, str]]:
        """The settings as they are given, and checksums of the files that they name."""
        words = list(self.arguments)
        settings: dict[str, str] = {}
        files: dict[str, str] = {}
        for option, value in zip(words[::2], words[1::2], strict=True):
            settings[option] = f"{settings[option]} {value}" if option == "--config" and option in settings else value
            if option == "--config":
                path = find_config(value)
                files[value] = _checksum(path) if path.is_file() else "missing"
        return {"settings": settings, "files": files}


def _checksum(path: Path) -> str:
    """Of what a configuration says; comments and layout do not matter."""
    try:
        content = json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")), default=str)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return hashlib.sha256(content.encode()).hexdigest()
