"""`patchword verify`: correct objectives pass, wrong ones are named, with any launcher."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from patchword.cli import main
from patchword.verify.command import table
from patchword.verify.modes import Difference

WRONG = '''
import torch
from patchword import Objective, distributed
from patchword.ops import cosine


class Local(Objective):
    """A loss that ignores the other ranks and is correct only on one process."""

    def forward(self, images, texts):
        z = 10 * cosine(images.pooled, texts.pooled)
        return {"local": torch.nn.functional.cross_entropy(z, torch.arange(len(z)))}

    def score(self, images, texts):
        return cosine(images.pooled, texts.pooled)

    def align(self, images, texts):
        return cosine(texts.tokens, images.patches).masked_fill(~texts.mask[..., None], 0)


class ByWorldSize(Local):
    """A loss with the correct value, whose gradients are too small by a factor of the number of ranks."""

    def forward(self, images, texts):
        x, y = distributed.gather(images.pooled), distributed.gather(texts.pooled)
        z = 10 * cosine(x, y)
        loss = torch.nn.functional.cross_entropy(z, torch.arange(len(z)))
        return {"local": loss.detach() + (loss - loss.detach()) / distributed.world_size()}
'''


def run(folder: Path, *command: str, **environment: str) -> tuple[int, str]:
    """Return the exit code and the output of a command that must end within three minutes."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=180)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def patchword(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "patchword", *arguments)


def test_right_objectives_pass_and_are_written(tmp_path: Path) -> None:
    """The file has every difference with its setting, and modes in float64 differ only by rounding."""
    command = patchword("verify", "--objectives", "SPARC", "MGCA", "--ranks", "2", "--batch", "3", "--csv", "found.csv")
    code, output = run(tmp_path, *command)
    assert code == 0, output
    assert "no differences except rounding" in output
    found = pd.read_csv(tmp_path / "found.csv")
    assert len(found) == 2 * (3 + 4)
    exact = found[found["mode"].isin(["all_gather", "ring", "two-pass", "FSDP2"])]
    assert exact[["loss", "gradient"]].max().max() < 1e-7
    rounded = found[found["mode"].isin(["fp32", "bf16"])]
    assert rounded["gradient"].min() > 1e-8, "another precision cannot be equal: it was not used"
    assert {"torch", "device_name", "date", "batch", "ranks", "parameter"} <= set(found.columns)


def test_wrong_objectives_are_named(tmp_path: Path) -> None:
    """A loss with only its own rank's negatives, or gradients off by the world size, gives exit code 1."""
    (tmp_path / "wrong.py").write_text(WRONG)
    command = patchword("verify", "--objectives", "wrong.Local", "wrong.ByWorldSize", "--ranks", "2")
    code, output = run(tmp_path, *command)
    assert code == 1, output
    flat = " ".join(output.split())
    assert "wrong.Local, 2 process(es), all_gather: loss" in flat
    assert "wrong.ByWorldSize, 2 process(es), ring: loss" in flat
    assert "gradient 5.0e-01" in flat
    assert "1 process(es)" not in flat, "both are right on one process"


def test_processes_of_torchrun_are_verified(tmp_path: Path) -> None:
    """Only the first rank prints the table."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port())]
    code, output = run(tmp_path, *torchrun, "-m", "patchword", "verify", "--objectives", "CLIP")
    assert code == 0, output
    assert output.count("no differences except rounding") == 1
    assert "N=2" in output


@pytest.mark.thorough
def test_processes_of_slurm_are_verified(tmp_path: Path) -> None:
    """The environment is that of `srun --ntasks 2`."""
    slurm = {
        "SLURM_NTASKS": "2",
        "SLURM_JOB_NAME": "verify",
        "SLURM_JOB_ID": str(port()),
        "SLURM_NODELIST": "localhost",
    }
    shared = {**os.environ, **slurm, "OMP_NUM_THREADS": "1", "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "2"}
    tasks = [
        subprocess.Popen(
            patchword("verify", "--objectives", "SigLIP"),
            cwd=tmp_path,
            env={**shared, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "MASTER_ADDR": "127.0.0.1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [task.communicate(timeout=180)[0] for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert "no differences except rounding" in outputs[0]
    assert "N=2" not in outputs[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objectives", "Sparc"], "--objectives Sparc: there is no objective 'Sparc'; did you mean SPARC"),
        (["--objectives", "os.path"], "--objectives os.path"),
        (["--ranks", "0"], "must be 1 or more"),
        (["--ranks", "two"], "must be an integer"),
        (["--batch", "-1"], "must be 1 or more"),
        (["--device", "tpu"], "--device tpu"),
        (["--device", "cuda:9"], "no such GPU"),
        (["--csv", "nowhere/found.csv"], "--csv nowhere/found.csv"),
        (["--rank", "2"], "there is no option 'rank'"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """User errors end with one line that names the option."""
    with pytest.raises(SystemExit) as ended:
        main(["verify", *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_file_with_other_columns_is_found_before_computing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unsuitable CSV file raises an error before the measurement and remains unchanged."""
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit) as ended:
        main(["verify", "--csv", str(tmp_path / "other.csv")])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert "has other columns" in told.err
    assert told.out == ""
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


def test_a_figure_that_is_not_a_number_is_wrong() -> None:
    """NaN is shown as wrong, although it compares as false with any tolerance."""
    from rich.console import Console

    console = Console(width=100, record=True)
    console.print(table([Difference("CLIP", "all_gather", 2, float("nan"), 0.0, "scale.log", False)], 4, "cpu"))
    assert "nan!" in console.export_text()


@pytest.mark.thorough
def test_every_objective_in_every_mode(tmp_path: Path) -> None:
    """The complete table has 10 objectives on 1, 2 and 3 processes."""
    code, output = run(tmp_path, *patchword("verify", "--csv", "found.csv"))
    assert code == 0, output
    found = pd.read_csv(tmp_path / "found.csv")
    assert len(found) == 10 * (3 + 4 + 4)
    assert set(found["ranks"]) == {1, 2, 3}


def port() -> int:
    """Return a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
