"""torch.compile traces every objective without a graph break and changes neither loss nor gradient."""

import subprocess
import sys

import pytest

from tests.objectives.variants import VARIANTS


@pytest.mark.thorough
def test_every_objective_compiles_to_the_same_values() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.objectives.compile_all"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert [line.removeprefix("same when compiled: ") for line in run.stdout.splitlines()] == list(VARIANTS)
