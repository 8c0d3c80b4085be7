"""`patchword bench` on the command line: its table, its file, its errors and its measurements."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import patchword.objectives
from patchword.bench import measure, peers
from patchword.bench.candidates import Implementation, Setting, candidates
from patchword.cli import main
from patchword.commands.objective_names import OURS
from tests.test_cli import refused

TINY = ("--batch", "3", "--patches", "6", "--tokens", "5", "--dim", "8", "--repeats", "2", "--threads", "1")
SETTING = Setting("train", 3, 3, 6, 5, 8, "float32", "cpu", 1)
OBJECTIVES = """
import os

import torch

from patchword import Objective
from patchword.errors import UserError
from patchword.objectives import CLIP


class Cheap(Objective):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, images, texts):
        return {"loss": self.weight * (images.pooled * texts.pooled).sum()}

    def score(self, images, texts):
        return images.pooled @ texts.pooled.T

    def align(self, images, texts):
        raise NotImplementedError


class Allocates(Cheap):
    def forward(self, images, texts):
        torch.ones(2**24)  # 64 MiB
        return super().forward(images, texts)


class Fails(Cheap):
    def forward(self, images, texts):
        raise RuntimeError("no kernel for this\\nand a second line")


class FailsLater(Cheap):
    calls = 0

    def forward(self, images, texts):
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("the third time")
        return super().forward(images, texts)


class Starves(Cheap):
    def forward(self, images, texts):
        return {"loss": torch.empty(2**50).sum()}


class Dies(Cheap):
    def forward(self, images, texts):
        os._exit(7)


class Heads(Cheap):
    def build(self, embed_dim):
        if embed_dim % 3:
            raise UserError(f"embed_dim must be a multiple of 3 heads, not {embed_dim}")


class Needs(Cheap):
    def __init__(self, width):
        super().__init__()


def cold():
    return CLIP(temperature=0.5)


nothing = 3
broken = dict
"""


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test runs in a folder with other objectives; the command line makes this folder importable."""
    (tmp_path / "mine.py").write_text(OBJECTIVES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield
    sys.modules.pop("mine", None)


def bench(*arguments: str) -> pd.DataFrame:
    """The rows of the CSV file of a tiny run."""
    main(["bench", *TINY, "--csv", "cost.csv", *arguments])
    return pd.read_csv("cost.csv")


def of(name: str) -> measure.Result:
    """The measured costs of one of the objectives above."""
    (result,) = measure.measure([Implementation(f"mine.{name}", "patchword")], SETTING, 2)
    return result


@pytest.mark.thorough
def test_every_objective_with_its_alternatives(capsys: pytest.CaptureFixture[str]) -> None:
    """All rows succeed, and all that compute one objective's loss compute the same number."""
    rows = bench()
    printed = capsys.readouterr().out
    assert "the loss, forward and backward, B=3 P=6 L=5 D=8 float32" in printed
    assert f"(1 thread), torch {torch.__version__}, median of 2" in " ".join(printed.split())
    assert (rows["status"] == "ok").all()
    assert set(rows["objective"]) == set(patchword.objectives.__all__)
    for name, of_one in rows.groupby("objective"):
        assert name in printed
        assert of_one["value"].max() - of_one["value"].min() < 1e-4 * of_one["value"].abs().max(), name
        assert {"patchword", "plain"} <= set(of_one["by"]), name
    assert (rows["seconds"] > 0).all()
    assert (rows["seconds_min"] <= rows["seconds"]).all()
    assert (rows["seconds"] <= rows["seconds_max"]).all()
    assert (rows["seconds_forward"] < rows["seconds_max"]).all()


@pytest.mark.thorough
@pytest.mark.skipif(not peers.installed(), reason="open_clip is not installed")
def test_open_clip_stands_beside_clip_and_siglip() -> None:
    """open_clip's losses are timed with ours, and the file has the version of open_clip."""
    rows = bench("--objectives", "CLIP", "SigLIP")
    assert list(rows["by"]) == ["patchword", "plain", "open_clip"] * 2
    assert rows[rows["by"] == "open_clip"]["open_clip"].notna().all()


def test_rows_of_several_runs_stand_in_one_file_with_what_they_depend_on() -> None:
    """A second run appends its rows to the file, and each row has its settings."""
    bench("--objectives", "CLIP", "--against", "plain")
    rows = bench("--objectives", "mine.cold", "--against", "--dtype", "float64", "--batch", "4")
    assert list(rows["objective"]) == ["CLIP", "CLIP", "mine.cold"]
    assert list(rows["batch"]) == [3, 3, 4]
    assert list(rows["dtype"]) == ["float32", "float32", "float64"]
    for name in ("patchword", "torch", "python", "device_name", "threads", "date", "seed", "repeats"):
        assert rows[name].notna().all(), name
    ratio = rows["seconds"][0] / rows["seconds"][1]
    assert rows["time_ratio"][1] == pytest.approx(ratio)


def test_scores_of_more_texts_than_images(capsys: pytest.CaptureFixture[str]) -> None:
    """Scores require no gradients and have no alternatives."""
    rows = bench("--pass", "score", "--texts", "7", "--objectives", "CLIP", "FILIP")
    assert "I=3 T=7" in capsys.readouterr().out
    assert (rows["by"] == "patchword").all()
    assert (rows["status"] == "ok").all()
    assert (rows["texts"] == 7).all()


def test_sampled_interactions_stand_beside_exact_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """Ten times as many samples give about a third of the error."""
    rows = bench("--pass", "interactions")
    assert list(rows["by"]) == ["exact", "100 samples", "1000 samples"]
    assert (rows["status"] == "ok").all()
    errors = rows["error"]
    assert errors.isna().tolist() == [True, False, False]
    assert 0 < errors[2] < 0.6 * errors[1] < 1
    assert f"{errors[1]:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str) -> None:
    """With half precision under autocast, every row runs, and our losses are finite."""
    setting = replace(SETTING, dtype=dtype)
    features = setting.features()
    for candidate in candidates(OURS, ["plain", "open_clip"], setting):
        step = candidate.step(setting, *features)
        value = step.forward()
        step.backward(value)
        assert value.isfinite() or candidate.by != "patchword", candidate
        assert features[0].pooled.dtype == setting.torch_dtype


def test_a_failure_is_a_row_and_not_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    """A candidate that raises, runs out of memory or ends its process does not end the benchmark."""
    names = ["Fails", "FailsLater", "Starves", "Dies", "Cheap"]
    rows = bench("--objectives", *(f"mine.{name}" for name in names)).set_index("objective")
    assert rows["status"]["mine.Fails"] == "RuntimeError: no kernel for this"
    assert rows["status"]["mine.FailsLater"] == "RuntimeError: the third time"
    assert rows["status"]["mine.Starves"] == "out of memory"
    assert rows["status"]["mine.Dies"] == "died with exit code 7"
    assert rows["status"]["mine.Cheap"] == "ok"
    assert rows["seconds"].notna().tolist() == [False, False, False, False, True]
    assert "out of memory" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's high-water mark")
def test_memory_is_what_was_allocated() -> None:
    """The peak includes 64 MiB that exist only during the forward pass, but not the features and their copies."""
    big, small = of("Allocates").peak, of("Cheap").peak
    assert big is not None
    assert small is not None
    assert big == pytest.approx(2**26, abs=3 * 2**20)  # the precision that measure.py states
    assert small < 3 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's high-water mark")
def test_memory_does_not_hide_in_what_the_imports_left() -> None:
    """Even a block of 2 MiB, which would fit into free resident memory of the heap, is measured."""
    setting = replace(SETTING, work="score", batch=4, texts=2048, tokens=1, dim=256)
    found = measure.measure(candidates(["CLIP", "MGCA"], [], setting), setting, 1)
    for result in found:  # the normalized texts
        assert result.peak is not None
        assert 0.85 * 2**21 < result.peak < 2**21 + 3 * 2**20, result.candidate.name


def test_features_are_those_of_encoders() -> None:
    """Features are the same for every call, with captions of different lengths, a square grid, and gradients."""
    setting = Setting("train", 16, 16, 196, 32, 8, "bfloat16", "cpu", 1)
    images, texts = setting.features()
    again = setting.features()
    assert torch.equal(images.patches, again[0].patches)
    assert torch.equal(texts.tokens, again[1].tokens)
    assert images.grid == (14, 14)
    lengths = texts.mask.sum(-1)
    assert lengths.max() == 32
    assert lengths.min() >= 8
    assert lengths.unique().numel() > 4
    assert (images.patches @ texts.tokens.mT).std().item() == pytest.approx(1, rel=0.2)
    assert images.patches.dtype == torch.bfloat16
    assert images.patches.requires_grad
    assert not Setting("score", 2, 3, 5, 4, 8, "float32", "cpu", 1).features()[0].patches.requires_grad


def test_a_run_starts_without_the_gradients_of_the_last() -> None:
    """Gradients of features are cleared, so that every run computes and allocates the same."""
    (candidate,) = candidates(["CLIP"], [], SETTING)
    step = candidate.step(SETTING, *SETTING.features())
    found = []
    for _ in range(2):
        step.clear()
        step.backward(step.forward())
        found.append(step.images.pooled.grad)
    assert torch.equal(found[0], found[1])


def test_threads_are_given_back() -> None:
    """The benchmark restores the number of threads."""
    before = torch.get_num_threads()
    bench("--objectives", "CLIP", "--threads", "2", "--against")
    assert torch.get_num_threads() == before


MISTAKES = {
    "unknown objective": (("--objectives", "CLPI"), "there is no objective 'CLPI'; did you mean CLIP?"),
    "nothing near": (("--objectives", "xyz"), "there is no objective 'xyz'; choose from CLIP"),
    "no such module": (("--objectives", "nowhere.Mine"), "No module named 'nowhere'"),
    "no such class": (("--objectives", "mine.Nothing"), "has no attribute 'Nothing'"),
    "not a class": (("--objectives", "mine.nothing"), "not callable"),
    "not an objective": (("--objectives", "mine.broken"), "dict, which is not a patchword.Objective"),
    "arguments needed": (("--objectives", "mine.Needs"), "'width'; use a function without arguments"),
    "a width that does not divide": (("--objectives", "mine.Heads", "--dim", "10"), "a multiple of 3 heads, not 10"),
    "no batch": (("--batch", "0"), "--batch: must be 1 or more, not 0"),
    "negative": (("--patches", "-5"), "--patches: must be 1 or more, not -5"),
    "not a number": (("--tokens", "many"), "--tokens: must be an integer, not 'many'"),
    "unknown type": (("--dtype", "int8"), "invalid choice: 'int8'"),
    "unknown device": (("--device", "abacus"), "--device abacus: torch knows no such device"),
    "a device that is not measured": (("--device", "meta"), "only cpu and cuda can be measured"),
    "no such GPU": (("--device", "cuda:64"), "--device cuda:64: there is no such GPU here"),
    "unknown option": (("--btach", "3"), "there is no option 'btach'; did you mean batch?"),
    "unknown pass": (("--pass", "backward"), "invalid choice: 'backward'"),
    "objectives of interactions": (("--pass", "interactions", "--objectives", "CLIP"), "--objectives"),
    "texts in training": (("--texts", "3"), "--pass score"),
    "no such folder": (("--csv", "nowhere/cost.csv"), "--csv nowhere/cost.csv: No such file or directory"),
    "a folder for a file": (("--csv", "."), "--csv .: Is a directory"),
    "a file of something else": (("--csv", "mine.py"), "--csv mine.py: the file has other columns"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_clear_message_before_anything_is_measured(
    mistake: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """User errors end with one line before the first measurement."""
    monkeypatch.setattr(measure, "measure", lambda *_: pytest.fail("measured"))
    arguments, expected = MISTAKES[mistake]
    assert expected in refused(capsys, "bench", *arguments)
    assert Path("mine.py").read_text() == OBJECTIVES


def test_help_answers_at_once() -> None:
    """`--help` does not import torch."""
    code = (
        "import sys; from patchword.cli import main\n"
        "try: main(['bench', '--help'])\n"
        "except SystemExit: assert not {'torch', 'lightning', 'jsonargparse', 'rich'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--objectives" in run.stdout
