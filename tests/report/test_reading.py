"""Finding runs, grouping them into variants, and refusing runs that cannot be compared."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from patchword.errors import UserError
from patchword.report import read_runs, summary
from patchword.report.former_names import present_name
from tests.report import fake


def by_hand(folder: Path, name: str, quality: float = 0.5, **about: Any) -> Path:
    """Write a run as `patchword test` does."""
    return fake.write(folder / name / "test" / "results.json", fake.metrics(quality), fake.measured(**about))


def change(path: Path, *keys: str, value: Any) -> None:
    """Set one key of the record of a run, or remove it if the value is `...`."""
    found = json.loads(path.read_text())
    inner = found["measured"]
    for key in keys[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path.write_text(json.dumps(found))


def old(path: Path) -> Path:
    """Change a run to the format of an older version of patchword."""
    about = json.loads(path.read_text())["measured"]
    for key in ("definition", "commit", "hardware"):
        change(path, key, value=...)
    change(path, "trained", value={"steps": 300, "seed": about["trained"]["seed"], "patchword": "0.1.0"})
    change(path, "machine", value="x86_64, CPython 3.11")
    return path


def test_a_comparison_is_read_by_its_folders(tmp_path: Path) -> None:
    """The names of variants, their order and the baseline are those of the plan."""
    folder = fake.comparison(tmp_path / "four", {"zeta": 0.5, "alpha": 0.6}, baseline="zeta", claim="One is better.")
    found = read_runs(folder)
    assert found.variants == ("zeta", "alpha")
    assert (found.name, found.baseline, found.claims) == ("four", "zeta", ("One is better.",))
    assert [(run.variant, run.seed) for run in found.runs] == [(n, s) for n in ("zeta", "alpha") for s in range(3)]
    assert read_runs(folder / "alpha", folder / "zeta" / "seed_0" / "test" / "results.json").baseline == "zeta"


def test_runs_by_hand_are_named_by_their_objective(tmp_path: Path) -> None:
    """Runs that differ only in their seed are one variant, whatever their folders are."""
    for seed in (0, 1):
        by_hand(tmp_path, f"a{seed}", seed=seed, objective="CLIP")
        by_hand(tmp_path, f"b{seed}", seed=seed, objective="SPARC")
    found = read_runs(tmp_path, baseline="CLIP")
    assert found.variants == ("CLIP", "SPARC")
    assert [run.seed for run in found.of("SPARC")] == [0, 1]


def test_two_configurations_of_a_name_are_never_averaged(tmp_path: Path) -> None:
    """Options that differ, or the length of training, are appended to the name, also for runs of `compare`."""
    by_hand(tmp_path, "a", seed=0, objective="SPARC", threshold=0.1, weights="sparse")
    by_hand(tmp_path, "b", seed=1, objective="SPARC", threshold=0.3, weights="sparse")
    assert read_runs(tmp_path).variants == ("SPARC (threshold=0.1)", "SPARC (threshold=0.3)")
    change(
        by_hand(tmp_path, "b", seed=1, objective="SPARC", threshold=0.1, weights="sparse"), "trained", "steps", value=9
    )
    assert read_runs(tmp_path).variants == ("SPARC (steps=300)", "SPARC (steps=9)")

    folder = fake.comparison(tmp_path / "four", {"one": 0.5})
    change(folder / "one" / "seed_1" / "test" / "results.json", "model", "objective", "init_args", value={"lr": 1})
    assert len(read_runs(folder).variants) == 2


def test_number_of_workers_makes_no_variant(tmp_path: Path) -> None:
    """It changes no number."""
    for seed in (0, 1):
        change(by_hand(tmp_path, f"{seed}", seed=seed), "data", "init_args", "num_workers", value=seed)
    assert read_runs(tmp_path).variants == ("CLIP",)


def test_seeds_of_wrapped_data_make_no_variants(tmp_path: Path) -> None:
    """Cached features have the data and its seed one level deeper; another option there gives another variant."""
    for seed in (0, 1):
        wrapped = {"class_path": "Scenes", "init_args": {"seed": seed, "train_size": 100, "num_workers": seed}}
        change(by_hand(tmp_path, f"{seed}", seed=seed), "data", "init_args", value={"folder": "f", "data": wrapped})
    assert read_runs(tmp_path).variants == ("CLIP",)
    wrapped = {"class_path": "Scenes", "init_args": {"seed": 2, "train_size": 50, "num_workers": 0}}
    change(by_hand(tmp_path, "2", seed=2), "data", "init_args", value={"folder": "f", "data": wrapped})
    assert len(read_runs(tmp_path).variants) == 2


def test_one_variant_and_seed_twice_is_refused_or_the_same_run(tmp_path: Path) -> None:
    """A run is not counted twice, and the choice between two results is reported."""
    first, second = by_hand(tmp_path, "a", 0.5, seed=0), by_hand(tmp_path, "b", 0.5, seed=0)
    os.utime(first, (1, 1))
    found = read_runs(tmp_path)
    assert [run.path for run in found.runs] == [second]
    assert str(first) in found.notes[0]
    assert str(second) in found.notes[0]
    by_hand(tmp_path, "b", 0.6, seed=0)
    with pytest.raises(
        UserError, match=r"a/test/results.json and .*b/test/results.json are both runs of CLIP with seed 0"
    ):
        read_runs(tmp_path)
    assert len(read_runs(tmp_path / "a", tmp_path / "a" / "test", tmp_path / "a" / "test" / "results.json").runs) == 1


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("query",), "span", 'query is "content" in .*a/.*"span" in .*b/'),
        (("image_size",), [96, 96], r"image_size is \[64, 64\] in .*\[96, 96\] in"),
        (("splits", "test", "checksum"), "x", r"splits.test.checksum is \"0011aabb\" in .*\"x\" in"),
        (("splits", "test"), ..., r"splits.test.samples is 64 in .*absent in"),
        (("extra",), 1, "extra is absent in .* but 1 in"),
    ],
)
def test_runs_that_measured_different_things_are_refused(
    tmp_path: Path, keys: tuple[str, ...], value: Any, words: str
) -> None:
    """The message names the key, both values and a run with each value."""
    by_hand(tmp_path, "a", seed=0)
    change(by_hand(tmp_path, "b", seed=1), "definition", *keys, value=value)
    with pytest.raises(UserError, match=words):
        read_runs(tmp_path)


def test_old_runs_are_compared_by_what_they_say(tmp_path: Path) -> None:
    """Old runs can be compared with each other if their data, query and counts agree, but not with new runs."""
    first, second = old(by_hand(tmp_path, "a", seed=0)), old(by_hand(tmp_path, "b", seed=1))
    found = read_runs(tmp_path)
    assert len(found.runs) == 2
    assert found.runs[0].provenance["commit"] == "not recorded"
    assert found.runs[0].provenance["hardware"] == "x86_64, CPython 3.11"
    change(second, "data", "init_args", "image_size", value=96)
    with pytest.raises(UserError, match=r"data.init_args.image_size is 64 in .* but 96 in"):
        read_runs(tmp_path)
    change(second, "data", "init_args", "image_size", value=64)
    by_hand(tmp_path, "c", seed=2)
    with pytest.raises(UserError, match=f"{first} .*'definition'"):
        read_runs(tmp_path)


def test_counts_of_old_runs_must_agree(tmp_path: Path) -> None:
    """Two test sets of one configuration are distinguished by their sizes."""
    old(by_hand(tmp_path, "a", seed=0))
    second = old(by_hand(tmp_path, "b", seed=1))
    found = json.loads(second.read_text())
    found["metrics"]["test/retrieval/images"] = 65.0
    second.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"test/retrieval/images is 64.0 in .* but 65.0 in"):
        read_runs(tmp_path)


@pytest.mark.parametrize(
    "missing", ["model", "data", "trained", "versions", "commit", "hardware", "checkpoint", "config_hash"]
)
def test_a_missing_key_is_not_recorded(tmp_path: Path, missing: str) -> None:
    """Files of other versions that lack keys do not cause a traceback."""
    path = by_hand(tmp_path, "a", seed=0)
    for value in (None, ...):
        change(path, missing, value=value)
        found = read_runs(tmp_path)
        summary(found)
        lost = {"model": "steps", "data": "steps", "trained": "steps"}.get(missing, missing)
        recorded = missing in ("model", "data", "commit", "hardware")  # training's commit and hardware are still there
        assert (found.runs[0].provenance[lost] == "not recorded") != recorded


def test_what_is_not_finished_is_listed(tmp_path: Path) -> None:
    """Unfinished runs are listed, so that a table does not look complete."""
    folder = fake.comparison(tmp_path / "four", {"one": 0.5, "two": 0.6}, baseline="two")
    for seed in range(3):
        (folder / "two" / f"seed_{seed}" / "test" / "results.json").unlink()
    (folder / "two" / "seed_0" / "fit.log").write_text("step 1\npatchword: error: disk full\n")
    (folder / "two" / "seed_1" / "fit" / "checkpoints").mkdir()
    (folder / "two" / "seed_1" / "fit" / "checkpoints" / "last.ckpt").touch()
    plan = folder / "compare.yaml"
    plan.write_text(plan.read_text().replace("- 2", "- 2\n- 9"))
    found = read_runs(folder)
    states = {(run.variant, run.seed): run.state for run in found.unfinished}
    assert states == {
        ("one", 9): "not started",
        ("two", 0): "training failed: disk full",
        ("two", 1): "has a checkpoint but no test results",
        ("two", 2): "has no checkpoint",
        ("two", 9): "not started",
    }
    assert found.baseline is None
    assert "two, has no finished run" in found.notes[0]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Every invalid file gives one line that names the file."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there is no results.json below .*empty"):
        read_runs(tmp_path / "empty")
    with pytest.raises(UserError, match="nowhere: "):
        read_runs(tmp_path / "nowhere")
    path = by_hand(tmp_path, "a", seed=0)
    with pytest.raises(UserError, match="--baseline CLIP2: "):
        read_runs(tmp_path, baseline="CLIP2")
    other = tmp_path / "notes.txt"
    other.touch()
    with pytest.raises(UserError, match=r"notes.txt: "):
        read_runs(other)
    for text, words in {
        '{"metrics": {': "cannot be read as JSON",
        "[]": "not written by `patchword test`",
        '{"metrics": {"test/loss": "low"}, "measured": {"x": 1}}': 'metrics.test/loss must be a number, not "low"',
        '{"metrics": {"val/loss": 1.0}, "measured": {"x": 1}}': "only validation metrics",
    }.items():
        path.write_text(text)
        with pytest.raises(UserError, match=words) as caught:
            read_runs(tmp_path)
        assert "results.json" in str(caught.value)


def test_broken_results_of_a_comparison_are_listed(tmp_path: Path) -> None:
    """A run with a truncated results file is listed as unfinished, and the others are reported."""
    folder = fake.comparison(tmp_path / "two", {"one": 0.5, "two": 0.6})
    broken = folder / "one" / "seed_0" / "test" / "results.json"
    broken.write_text(broken.read_text()[:100])
    found = read_runs(folder)
    assert [(run.variant, run.seed) for run in found.unfinished] == [("one", 0)]
    assert f"{broken} cannot be read as JSON" in found.unfinished[0].state
    assert ("one", 0) not in {(run.variant, run.seed) for run in found.runs}


def test_a_broken_plan_is_named(tmp_path: Path) -> None:
    """A plan that is not YAML, or not a plan, raises an error."""
    folder = fake.comparison(tmp_path / "four", {"one": 0.5})
    for text, words in {"a: [": "cannot be read as YAML", "- 1": "is not a plan"}.items():
        (folder / "compare.yaml").write_text(text)
        with pytest.raises(UserError, match=words):
            read_runs(folder)


@pytest.mark.parametrize(
    ("former", "present"),
    {
        "test/grounding/content/centre/pointing_box": "test/grounding/content/center_prior/pointing_game_box",
        "test/grounding/span/align/choice_chance": "test/grounding/span/align/object_choice_chance",
        "flickr30k_entities_test/grounding/content/align/chance_pointing": (
            "flickr30k_entities_test/grounding/content/align/chance_pointing_game"
        ),
        "test/grounding/content/dot/pointing_game": "test/grounding/content/dot/pointing_game",
        "test/retrieval/image_to_text/r@1": "test/retrieval/image_to_text/r@1",
    }.items(),
)
def test_results_with_former_names_are_read(former: str, present: str) -> None:
    """The recorded benchmark has the former names."""
    assert present_name(former) == present
