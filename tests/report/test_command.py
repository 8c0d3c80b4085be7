"""`patchword report` on the command line: one line for an error, four files otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from patchword.cli import main
from tests.report import fake


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fake.comparison(tmp_path / "two", {"one": 0.5, "two": 0.6}, seeds=(0, 1), baseline="one")


def test_files_and_the_table_on_the_terminal(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the default folder, `--out`, `--title`, and a table whose numbers are not cut in 80 columns."""
    main(["report", str(folder), "--out", str(tmp_path / "new" / "place"), "--title", "My [bold] title"])
    names = {path.name for path in (tmp_path / "new" / "place").iterdir()}
    assert names >= {"report.html", "report.md", "report.csv", "report.tex", "report_curves_maps.png"}
    assert not [name for name in names if name.startswith(".")]
    assert not (folder / "report.html").exists()
    shown = capsys.readouterr().out
    assert "My [bold] title" in shown
    assert "…" not in shown
    assert max(map(len, shown.split("written:")[0].splitlines())) <= 80
    main(["report", str(folder / "two" / "seed_0" / "test" / "results.json")])
    assert (folder / "two" / "seed_0" / "test" / "report.html").exists()


def test_a_second_report_reads_the_same_runs(folder: Path) -> None:
    """A second report ignores the files of the first and gives the same page, byte for byte."""
    main(["report", str(folder)])
    first = (folder / "report.html").read_bytes()
    main(["report", str(folder)])
    assert (folder / "report.html").read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: "),
        (["."], "there is no results.json below ."),
        (["two", "--baseline", "three"], "--baseline three: "),
        (["two", "--out", "two/compare.yaml"], "--out two/compare.yaml: "),
        (["two", "--baselin", "one"], "there is no option 'baselin'; did you mean baseline?"),
        ([], "the following arguments are required: RUNS"),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path,
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Errors give exit code 2 and one line without a traceback."""
    monkeypatch.chdir(folder / "one" / "seed_0" / "fit" if arguments == ["."] else folder.parent)
    with pytest.raises(SystemExit) as caught:
        main(["report", *arguments])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"patchword: error: {words}")


def test_help_waits_for_no_library() -> None:
    """`--help` imports neither pandas, matplotlib nor torch, which take seconds."""
    code = (
        "import sys; from patchword.report.command import parser; parser().format_help();"
        "sys.exit(', '.join({'torch', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules)) or 0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
