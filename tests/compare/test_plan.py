"""Plans: their meaning, their errors, and the plans in `configs`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from patchword.cli import main
from patchword.compare.command import every_run, planned
from patchword.compare.command import main as compare
from patchword.compare.plan import Plan, as_argument, folder_name
from patchword.compare.run import Run
from patchword.errors import UserError

ROOT = Path(__file__).parents[2]
PLANS = sorted(p for p in ROOT.glob("configs/**/*.yaml") if "claim:" in p.read_text())
VARIANTS = [
    pytest.param(path, variant, id=f"{path.stem}-{variant}") for path in PLANS for variant in Plan.read(path).variants
]


def plan_of(folder: Path, content: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_a_variant_is_its_files_and_keys(tmp_path: Path) -> None:
    """Shared files come before those of a variant, keys come after files, and the seed comes last."""
    plan = Plan.read(
        plan_of(
            tmp_path,
            {
                "name": "x",
                "claim": "Something.",
                "config": "configs/sparc.yaml",
                "seeds": [3],
                "variants": {
                    "sharp": {"config": "mine.yaml", "model.objective.threshold": None},
                    "plain": None,
                },
            },
        )
    )
    files = ["--config", "configs/sparc.yaml"]
    assert plan.arguments("plain", 3) == [*files, "--seed_everything", "3"]
    own = ["--config", "mine.yaml", "--model.objective.threshold", "null"]
    assert plan.arguments("sharp", 3) == [*files, *own, "--seed_everything", "3"]


def test_a_grid_multiplies_the_variants(tmp_path: Path) -> None:
    content = {
        "name": "x",
        "claim": "y",
        "config": "a.yaml",
        "grid": {"m.threshold": [0, 0.5], "m.weights": ["minmax"]},
    }
    assert list(Plan.read(plan_of(tmp_path, content)).variants) == [
        "threshold=0, weights=minmax",
        "threshold=0.5, weights=minmax",
    ]
    content |= {"variants": {"A": {"config": "a.yaml"}, "B": {"config": "b.yaml"}}, "grid": {"m.threshold": [0, 1]}}
    plan = Plan.read(plan_of(tmp_path, content))
    assert list(plan.variants) == ["A, threshold=0", "A, threshold=1", "B, threshold=0", "B, threshold=1"]
    assert plan.variants["B, threshold=1"] == {"config": ["b.yaml"], "m.threshold": 1}


@pytest.mark.parametrize("plan", PLANS, ids=lambda path: path.stem)
def test_shipped_plans_name_a_claim_and_a_baseline(plan: Path) -> None:
    """Each plan states its claim and baseline, and contains the command that runs it."""
    read = Plan.read(plan)
    assert len(read.claim) > 30
    assert read.baseline in read.variants
    assert len(read.variants) > 1 or plan.stem == "compare_start"  # it only makes models for another plan
    assert f"patchword compare --config {plan.relative_to(ROOT)}" in plan.read_text()
    assert list(map(folder_name, read.variants)) == list(read.variants)


def test_trained_towers_start_from_the_models_of_the_other_plan() -> None:
    """The path and the resolution of trained.yaml are those of the models that compare_start.yaml makes."""
    start = Plan.read(ROOT / "configs/natural/compare_start.yaml")
    model = yaml.safe_load((ROOT / "configs/natural/trained.yaml").read_text())["model"]
    path = f"runs/{start.name}/CLIP/seed_${{seed_everything}}/fit/checkpoints/last.ckpt"
    assert model["fine_tuning"]["start_from"] == path
    size = model["encoder"]["init_args"]["image"]["init_args"]["image_size"]
    assert start.variants["CLIP"]["model.encoder.image.image_size"] == size


@pytest.mark.parametrize(("path", "variant"), VARIANTS)
def test_every_shipped_variant_is_a_configuration(
    path: Path, variant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The keys and files of each variant are accepted, and its keys are set in the configuration."""
    monkeypatch.chdir(ROOT)
    arguments = Plan.read(path).arguments(variant, 0)
    with pytest.raises(SystemExit) as ended:
        main(["fit", *arguments, "--print_config"])
    assert ended.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    given = zip(arguments[::2], arguments[1::2], strict=True)
    for key, value in ((k[2:], v) for k, v in given if k.startswith("--model.objective.")):
        found = config["model"]["objective"]["init_args"][key.rpartition(".")[2]]
        assert found == yaml.safe_load(value), key


def test_runs_come_seed_by_seed_and_every_run_has_its_own_folder(tmp_path: Path) -> None:
    plan = Plan.read(ROOT / "configs/compare.yaml")
    runs = planned(plan, ["CLIP", "CLIP + FILIP"], tmp_path, ["--trainer.max_epochs", "1"])
    assert [(run.variant, run.seed) for run in runs][:3] == [("CLIP", 0), ("CLIP + FILIP", 0), ("CLIP", 1)]
    assert len({run.folder for run in runs}) == 6
    assert runs[1].folder == tmp_path / "CLIP + FILIP" / "seed_0"
    assert runs[0].arguments[-2:] == ("--trainer.max_epochs", "1")


def test_dry_run_prints_lines_that_a_shell_understands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is one quoted line per run with fit and test of the same folder, and no file is written."""
    monkeypatch.chdir(tmp_path)
    compare(["compare", "--config", "configs/compare.yaml", "--only", "CLIP + FILIP", "--dry-run"])
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 3
    assert "3 of 3 runs" in printed.err
    fit, test = (shlex.split(part) for part in lines[2].split(" && "))
    assert fit[:4] == ["patchword", "fit", "--config", "configs/clip_filip.yaml"]
    assert fit[fit.index("--trainer.logger.name") + 1] == "CLIP + FILIP/seed_2"
    assert test[-2:] == ["--ckpt_path", "runs/compare/CLIP + FILIP/seed_2/fit/checkpoints/last.ckpt"]
    assert not list(tmp_path.iterdir())


BAD = {
    "not YAML": ("a: [", "cannot be read as YAML"),
    "a list": ([1, 2], "not a plan: it must have"),
    "a configuration": ({"model": {}, "trainer": {}}, "configures one run; a plan of compare has the keys"),
    "an unknown key": ({"name": "x", "claim": "y", "variant": {}}, "unknown key 'variant'"),
    "no claim": ({"name": "x", "variants": {"a": {}}}, "'claim' must be a sentence"),
    "a name that is a path": ({"name": "../x", "claim": "y", "variants": {"a": {}}}, "'name' must be a folder name"),
    "seeds that are no numbers": (
        {"name": "x", "claim": "y", "variants": {"a": {}}, "seeds": ["one"]},
        "'seeds' must be",
    ),
    "no seeds": ({"name": "x", "claim": "y", "variants": {"a": {}}, "seeds": []}, "'seeds' must be"),
    "variants in a list": ({"name": "x", "claim": "y", "variants": ["a"]}, "'variants' must be"),
    "a variant without keys": (
        {"name": "x", "claim": "y", "variants": {"a": "CLIP"}},
        "the variant 'a' must be a mapping",
    ),
    "nothing to compare": ({"name": "x", "claim": "y", "config": "a.yaml"}, "must have 'variants', or"),
    "a grid of nothing": ({"name": "x", "claim": "y", "grid": {"a.b": [1]}}, "must have 'variants', or"),
    "a grid without lists": ({"name": "x", "claim": "y", "config": "a", "grid": {"a.b": 1}}, "must have a list"),
    "a baseline that is not there": (
        {"name": "x", "claim": "y", "variants": {"a": {}}, "baseline": "b"},
        "the baseline 'b' is not one of the variants",
    ),
    "a name that is no folder's": (
        {"name": "x", "claim": "y", "variants": {"1/P": {}}},
        "the variant '1/P' must have .*'1_P'",
    ),
    "variants in one folder": (
        {"name": "x", "claim": "y", "config": "a", "grid": {"a.b": ["x/y", "x_y"]}},
        "the same folder",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_plan_is_refused(case: str, tmp_path: Path) -> None:
    content, message = BAD[case]
    path = plan_of(tmp_path, content)
    with pytest.raises(UserError, match=message) as refused:
        Plan.read(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--trainer.max_epochs"], "pairs of --KEY VALUE"),
        (["CLIP"], "pairs of --KEY VALUE"),
        (["--seed", "1"], "pairs of --KEY VALUE"),
        (["--trainer.logger.name", "x"], "--out"),
    ],
)
def test_what_no_run_can_be_given_is_refused(typed: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        every_run(typed)
    assert every_run(["--a.b=1", "--c.d", "x"]) == ["--a.b", "1", "--c.d", "x"]


def test_without_a_plan_it_is_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    compare(["compare", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all("--trainer.max_epochs 1" in line and "runs/compare_small" in line for line in lines)


def test_options_name_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--config nowhere.yaml: there is no such file"):
        compare(["compare", "--config", "nowhere.yaml"])
    with pytest.raises(UserError, match="--only CLOP: the plan has the variants CLIP, "):
        compare(["compare", "--config", "configs/compare.yaml", "--only", "CLOP"])
    plan_of(tmp_path, {"name": "x", "claim": "y", "variants": {"a": {"config": "lost.yaml"}}})
    with pytest.raises(UserError, match=r"the variant 'a' names the file lost.yaml"):
        compare(["compare", "--config", "plan.yaml"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out file/x: Not a directory"):
        compare(["compare", "--config", "configs/compare.yaml", "--out", "file/x"])


def test_values_are_typed_as_yaml_reads_them() -> None:
    for value in (None, 0.5, 3, True, "minmax", [1, 2], {"filip": 0.5}):
        assert yaml.safe_load(as_argument(value)) == value


def test_a_comment_is_no_other_setting_and_a_value_is(tmp_path: Path) -> None:
    """A folder is refused if the content of its configuration differs, but not if only the layout differs."""
    config = tmp_path / "mine.yaml"
    config.write_text("model: {tokens: all}\n")
    run = Run("a", 0, tmp_path / "a" / "seed_0", ("--config", str(config), "--seed_everything", "0"))
    run.note()
    config.write_text("# words\nmodel:\n  tokens: all\n")
    run.require_same()
    config.write_text("model: {tokens: content}\n")
    with pytest.raises(UserError, match=r"a run that was started before .*mine.yaml changed"):
        run.require_same()
    config.write_text("model: {")
    with pytest.raises(UserError, match=r"mine.yaml cannot be read as YAML"):
        run.require_same()


def test_progress_of_a_run(tmp_path: Path) -> None:
    """Steps and epochs come from the files of the training; before they are written, nothing is known."""
    run = Run("CLIP", 0, tmp_path, ())
    assert run.progress() == (0, 0, None)
    (tmp_path / "fit").mkdir()
    (tmp_path / "fit/config.yaml").write_text("trainer: {max_epochs: 20}")
    (tmp_path / "fit/metrics.csv").write_text("epoch,step,train/loss\n0,49,2.5\n3,299,1.5\n")
    assert run.progress() == (300, 3, 20)
    (tmp_path / "fit/config.yaml").write_text("trainer: {max_epochs: -1}")
    assert run.progress() == (300, 3, None)
