"""The script and the command on docs/search.md run, on less data and with fewer trials."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_search_runs_and_resumes(tmp_path: Path) -> None:
    """Each run of the script adds a trial to the study, with its recall on the validation split."""
    page = (ROOT / "docs/search.md").read_text()
    (code,) = re.findall(r"^```python\n(# search\.py\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    (command,) = re.findall(r"^```bash\n(.*?)\n```", page, re.MULTILINE | re.DOTALL)
    assert code.count("n_trials=20") == 1
    (tmp_path / "search.py").write_text(code.replace("n_trials=20", "n_trials=1"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    config = yaml.safe_load((tmp_path / "configs/sparc.yaml").read_text())
    config["data"]["init_args"] |= {"batch_size": 16, "train_size": 32, "val_size": 16, "num_workers": 0}
    config["trainer"] |= {"max_epochs": 1, "enable_progress_bar": False}
    (tmp_path / "configs/sparc.yaml").write_text(yaml.safe_dump(config))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    for words in (["python", "search.py"], ["python", "search.py"], shlex.split(command)):
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        if "search.py" in words:
            assert "local_weight" in done.stdout.splitlines()[-1]
    with sqlite3.connect(tmp_path / "search.db") as database:
        values = [value for (value,) in database.execute("SELECT value FROM trial_values")]
    assert len(values) == 2
    assert all(0 <= value <= 1 for value in values)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"search_0", "search_1", "sparc"}
