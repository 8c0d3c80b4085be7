"""`patchword check` and the check before the first step: one clear line for each mistake in an objective."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from patchword.cli import main
from patchword.errors import UserError
from patchword.objectives import SuperCLIP
from patchword.training.batch_checks import require_right_form
from tests import tiny

RIGHT = """
import torch
from patchword import Objective
from patchword.contrast import LogitScale, info_nce
from patchword.ops import cosine, masked_mean, normalize


class Mine(Objective):
    def __init__(self):
        super().__init__()
        self.scale = LogitScale()

    def forward(self, images, texts):
        return {"words": info_nce(self.score, images, texts, self.scale())}

    uses_local_features = True

    def score(self, images, texts):
        words = torch.einsum("id,tld->itl", normalize(images.pooled), normalize(texts.tokens))[..., None]
        return masked_mean(words, texts.mask.expand(len(images), -1, -1))[..., 0]

    def align(self, images, texts):
        return cosine(texts.tokens, images.patches).masked_fill(~texts.mask[..., None], 0)
"""
# What is replaced by what, and the line that is expected.
LOSS, SCORE = (
    "info_nce(self.score, images, texts, self.scale())",
    "masked_mean(words, texts.mask.expand(len(images), -1, -1))[..., 0]",
)
MAP = "cosine(texts.tokens, images.patches).masked_fill(~texts.mask[..., None], 0)"
MISTAKES = {
    "a tensor as loss": (
        (f'{{"words": {LOSS}}}', LOSS),
        "FAILED    answers: Mine: forward returned []; expected named scalar terms, such as {'global': loss}",
    ),
    "a loss for each pair": (
        (LOSS, f"{LOSS}.expand(5)"),
        "FAILED    answers: Mine: forward returned the term 'words' as [5]; expected a name and a scalar, []",
    ),
    "a map without tokens": (
        (MAP, "cosine(texts.tokens, images.patches).mean(1)"),
        "FAILED    answers: Mine: align returned [5, 20]; expected [B, L, P] = [5, 4, 20]",
    ),
    "a transposed map": (
        (MAP, f"{MAP}.mT"),
        "FAILED    answers: Mine: align returned [5, 20, 4]; expected [B, L, P] = [5, 4, 20]",
    ),
    "a score with one dimension more": (
        (SCORE, SCORE.removesuffix("[..., 0]")),
        "FAILED    answers: Mine: score returned [4, 5, 1]; expected [I, T] = [4, 5]",
    ),
    "a transposed score": (
        (SCORE, f"{SCORE}.T"),
        "FAILED    answers: Mine: score returned [5, 4]; expected [I, T] = [4, 5]",
    ),
    "a method missing": (("def align", "def aligned"), "error: mine.Mine: Mine lacks the method align"),
    "no call of the base class": (
        ("        super().__init__()\n", ""),
        "error: mine.Mine: Mine.__init__ must begin with super().__init__() (FOLDER/mine.py, line 10)",
    ),
    "no call of the base class, and no parameters": (
        ("        super().__init__()\n        self.scale = LogitScale()", "        pass"),
        "error: mine.Mine: Mine.__init__ must begin with super().__init__()",
    ),
    "a syntax error": (
        ("def score(self, images, texts):", "def score(self, images, texts)"),
        "error: mine.Mine: cannot be imported: SyntaxError: expected ':' (FOLDER/mine.py, line 18)",
    ),
    "a wrong import": (
        ("import cosine, masked_mean", "import cosin, masked_mean"),
        "error: mine.Mine: cannot be imported: ImportError: cannot import name 'cosin' from 'patchword.ops'",
    ),
    "an error in a method": (
        (SCORE, "images.nothing"),
        "FAILED    answers: AttributeError: 'Images' object has no attribute 'nothing' (FOLDER/mine.py, line 20)",
    ),
    "nan in the loss": (
        (LOSS, f'{LOSS} * float("nan")'),
        "FAILED    answers: Mine: forward returned the term 'words' = nan; expected a finite number",
    ),
    "inf in the score": (
        (SCORE, f"{SCORE} / 0"),
        "FAILED    answers: Mine: score returned 20 of 20 values that are nan or inf; expected finite ones",
    ),
    "a mean over padding": (
        (SCORE, "words.mean(2)[..., 0]"),
        "FAILED    padding: the loss term 'words' with more padding of captions is ",
    ),
}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Import each `mine` anew from an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("mine", None)
    yield
    sys.modules.pop("mine", None)


def write(old: str = "", new: str = "") -> None:
    assert old in RIGHT
    Path("mine.py").write_text(RIGHT.replace(old, new))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line(mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first cause has one line, and properties that fail because of it have none."""
    change, line = MISTAKES[mistake]
    write(*change)
    with pytest.raises(SystemExit) as ended:
        main(["check", "mine.Mine", "--without", "ranks"])
    told = capsys.readouterr()
    (said,) = [one for one in (told.out + told.err).splitlines() if not one.startswith(("ok", "left out"))]
    assert line in said.replace(str(tmp_path), "FOLDER")
    assert ended.value.code == (2 if "error: " in line else 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Sparc"], "error: Sparc: there is no objective 'Sparc'; did you mean SPARC?"),
        (["CLIP", "--without", "speed"], "error: --without speed: there is no such property; choose from answers, "),
        ([], "error: the following arguments are required: NAME"),
    ],
)
def test_mistakes_in_options_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors of the command line name the option and what it accepts."""
    with pytest.raises(SystemExit) as ended:
        main(["check", *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_right_objective_passes() -> None:
    """Every property has its line, also that of two processes, and the exit code is 0."""
    write()
    run = subprocess.run(
        [sys.executable, "-m", "patchword", "check", "mine.Mine"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 17
    assert all(line.startswith("ok ") for line in lines)
    assert lines[-1].startswith("ok        ranks: ")


def test_a_loss_of_one_rank_fails_on_two(capsys: pytest.CaptureFixture[str]) -> None:
    """A loss without the texts of other ranks is right on one process, and only the last property fails."""
    write(LOSS, "torch.nn.functional.cross_entropy(self.score(images, texts), torch.arange(len(images)))")
    with pytest.raises(SystemExit) as ended:
        main(["check", "mine.Mine"])
    assert ended.value.code == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("ok ")]
    assert line.startswith("FAILED    ranks: the loss term 'words' on 2 processes (not one with all pairs) is ")


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_the_form_is_checked_before_the_first_step(command: str, tmp_path: Path) -> None:
    """Each command refuses maps of a wrong shape before it sees a batch, and says what is expected."""
    write(MAP, f"{MAP}.mT")
    module, data = tiny.module(importlib.import_module("mine").Mine()), tiny.data()
    with pytest.raises(UserError, match=r"Mine: align returned \[3, 64, 4\]; expected \[B, L, P\] = \[3, 4, 64\]"):
        getattr(tiny.trainer(tmp_path), command)(module, data)
    assert module.global_step == 0


def test_the_check_before_the_first_step_changes_nothing() -> None:
    """Weights, counts, modes and the random state are those from before."""
    module = tiny.module(SuperCLIP(vocabulary=300)).train()
    module.objective.scale.eval()
    before, state = {n: x.clone() for n, x in module.state_dict().items()}, torch.get_rng_state()
    require_right_form(module.objective, module.encoder)
    assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.objective.training
    assert not module.objective.scale.training
