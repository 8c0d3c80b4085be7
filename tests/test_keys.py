"""Misspelled keys, help and configurations are answered before torch is imported, from a schema that is remembered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from patchword.commands import remembered
from patchword.commands.config_files import PACKAGED
from patchword.commands.keys import Keys
from patchword.errors import UserError

ROOT = Path(__file__).parents[1]
SPARC = ["fit", "--config", "configs/sparc.yaml"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder in which the first command has left the schema of `fit`."""
    folder = tmp_path_factory.mktemp("cache")
    patchword(folder, "fit", "--help")
    return folder


@pytest.fixture(scope="module")
def schema(cache: Path) -> dict[str, Any]:
    (file,) = cache.rglob("fit.json")
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema)


def patchword(
    cache: Path, *arguments: str, without_torch: bool = False, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a new process, in which `import torch` fails if it is to be without torch."""
    start = "import sys; sys.modules['torch'] = None; " if without_torch else ""
    code = f"{start}from patchword.cli import main; main()"
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), **more}
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env, cwd=ROOT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.objetive", "CLIP"], "there is no option 'model.objetive'; did you mean model.objective"),
        (
            ["--model.objective.treshold", "0.3"],
            "model.objective: SPARC has no option 'treshold'; did you mean threshold?",
        ),
        (
            ["--model.objective.init_args.treshold=0.3"],
            "model.objective: SPARC has no option 'treshold'; did you mean threshold?",
        ),
        (
            ["--model.objective=CLIP", "--model.objective.threshold=1"],
            "model.objective: CLIP has no option 'threshold'",
        ),
        (["--model.encoder.image.nane", "x"], "model.encoder.image: TimmImage has no option 'nane'; did you mean name"),
        (["--data.batchsize", "4"], "data: Scenes has no option 'batchsize'; did you mean batch_size"),
        (["--model.optimizer.lrr", "4"], "model.optimizer: AdamW has no option 'lrr'; did you mean lr"),
        (["--trainer.max_epoch", "4"], "there is no option 'trainer.max_epoch'; did you mean trainer.max_epochs"),
        (
            ["--data", "{class_path: Scenes, init_args: {sead: 1}}"],
            "data: Scenes has no option 'sead'; did you mean seed",
        ),
        (
            ["--trainer.callbacks+", "{class_path: EarlyStopping, init_args: {monitr: loss}}"],
            "trainer.callbacks: EarlyStopping has no option 'monitr'; did you mean monitor?",
        ),
        (["--lr", "1e-3"], "there is no option 'lr'; did you mean model.optimizer.lr?"),
        (["--seed=1"], "there is no option 'seed'; did you mean seed_everything or data.seed?"),
        (["--model.objective", "SPARK"], "model.objective: there is no class 'SPARK'; did you mean SPARC?"),
        (["--model.encoder.image", "TimImage"], "model.encoder.image: there is no class 'TimImage'; did you mean Timm"),
        (["--model.optimizer", "{class_path: Adamm}"], "model.optimizer: there is no class 'Adamm'; did you mean Adam"),
        (
            ["--model.objective", "{class_path: sparc}"],
            "model.objective: there is no class 'sparc'; did you mean SPARC",
        ),
        (
            ["--trainer.callbacks", "[{class_path: EarlyStopping, init_args: {monitr: loss}}]"],
            "trainer.callbacks: EarlyStopping has no option 'monitr'; did you mean monitor?",
        ),
    ],
)
def test_a_misspelled_option_needs_no_torch(cache: Path, arguments: list[str], message: str) -> None:
    """The first command of an installation builds the parser; later ones know its keys."""
    done = patchword(cache, *SPARC, *arguments, without_torch=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"patchword: error: {message}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: {objective: CLIP}", "line 1: there is no option 'modle'; did you mean model"),
        (
            "model:\n  objective:\n    class_path: SPARC\n    init_args: {treshold: 1}",
            "line 4: model.objective: SPARC has no option 'treshold'",
        ),
        ("model:\n  objective: SPARK", "line 2: model.objective: there is no class 'SPARK'; did you mean SPARC"),
        ("model: {objective: sparc}", "line 1: model.objective: there is no class 'sparc'; did you mean SPARC"),
        ("trainer: {max_epoch: 1}", "line 1: there is no option 'trainer.max_epoch'; did you mean trainer.max_epochs"),
        (
            "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitr: x}}]}",
            "line 1: trainer.callbacks: EarlyStopping has no option 'monitr'",
        ),
    ],
)
def test_a_misspelled_key_is_reported_with_its_file(cache: Path, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    done = patchword(cache, *SPARC, "--config", str(file), without_torch=True)
    assert done.stderr.startswith(f"patchword: error: {file}, {message}")


def test_the_first_command_reports_the_same(cache: Path, tmp_path: Path) -> None:
    """The message does not depend on whether the schema was remembered."""
    wrong = [*SPARC, "--model.objective.treshold", "0.3"]
    assert patchword(tmp_path, *wrong).stderr == patchword(cache, *wrong, without_torch=True).stderr


def test_the_first_help_of_an_installation_is_remembered(tmp_path: Path) -> None:
    """The command that makes the schema also keeps what it prints."""
    first = patchword(tmp_path, "fit", "--model.objective.help", "sparc")
    again = patchword(tmp_path, "fit", "--model.objective.help", "sparc", without_torch=True)
    assert again.stdout == first.stdout != "", again.stderr


@pytest.mark.parametrize(
    "arguments",
    [["fit", "--model.objective.help", "SPARC"], [*SPARC, "--model.objective", "CLIP", "--print_config"]],
)
def test_what_was_printed_once_is_printed_again_without_torch(cache: Path, arguments: list[str]) -> None:
    first = patchword(cache, *arguments)
    again = patchword(cache, *arguments, without_torch=True)
    assert first.returncode == again.returncode == 0
    assert again.stdout == first.stdout != ""


def test_what_was_printed_is_remembered_for_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed configuration, and a reference to the environment, are not answered from memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "mine.yaml"
    arguments = ["fit", "--config", str(file), "--print_config"]
    file.write_text("model: {objective: SPARC}")
    with pytest.raises(SystemExit), remembered.kept(lambda: (arguments, True)):
        sys.exit(print("printed"))
    assert remembered.answer(arguments) == "printed\n"
    assert remembered.only_prints(arguments)
    file.write_text("model: {objective: CLIP}")
    assert remembered.answer(arguments) is None
    file.write_text("model: {objective: '${oc.env:OBJECTIVE}'}")
    assert not remembered.only_prints(arguments)
    assert not remembered.only_prints([*arguments, "--ckpt_path", "last.ckpt"])
    assert not remembered.only_prints(["fit", "--config", "configs/sparc.yaml"])


def test_an_error_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SystemExit), remembered.kept(lambda: (["fit", "--help"], True)):
        raise SystemExit(2)
    assert remembered.answer(["fit", "--help"]) is None


def test_the_users_own_classes_are_not_checked(schema: dict[str, Any], tmp_path: Path) -> None:
    """A class outside the libraries may change at any time, so what it has printed is not remembered, either."""
    file = tmp_path / "mine.yaml"
    file.write_text("model: {objective: {class_path: mine.CLIP, init_args: {a: 3}}}")
    for arguments in (["--model.objective=mine.CLIP", "--model.objective.a=3"], ["--config", str(file)]):
        keys = Keys(schema)
        assert keys.check(["fit", *arguments]) == ["fit", *arguments]
        assert keys.has_foreign


def test_class_names_may_be_written_in_any_case(schema: dict[str, Any]) -> None:
    keys = Keys(schema)
    arguments = [*SPARC, "--model.objective", "clip", "--model.optimizer=adamw", "--data.class_path", "imagetext"]
    assert keys.check(arguments)[3:] == [
        "--model.objective", "CLIP", "--model.optimizer=AdamW", "--data.class_path", "ImageText",
    ]  # fmt: skip
    assert not keys.has_foreign


def test_a_later_file_or_checkpoint_may_choose_another_class(schema: dict[str, Any], tmp_path: Path) -> None:
    """Options belong to the class that is chosen before them; the class in a checkpoint is not known here."""
    file = tmp_path / "mine.yaml"
    file.write_text("model: {optimizer: {class_path: SGD}, objective: {class_path: SPARC}}")
    momentum = ["--model.optimizer.momentum", "0.9"]
    for arguments in (["--model.optimizer=AdamW", "--config", str(file), *momentum], [*momentum, "--ckpt_path=x.ckpt"]):
        assert Keys(schema).check(["fit", *arguments]) == ["fit", *arguments]
    for arguments in (momentum, ["--config", str(file), "--model.optimizer=AdamW", *momentum]):
        with pytest.raises(UserError, match="AdamW has no option 'momentum'"):
            Keys(schema).check(["fit", *arguments])


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ("{model: other.yaml}", ["--model.optimizer.momentum", "0.9"]),
        ("{model: {optimizer: other.yaml}}", ["--model.optimizer.momentum", "0.9"]),
        ("{model.token_selection: all, trainer.max_epochs: 2}", []),
        ("{trainer: {1: 2}}", []),
        ("{model: {objective: {class_path: SPARC, init_args: {1: 2}}}}", []),
        ("{trainer: {callbacks: &a [*a]}}", []),
        ("{}", ["--model", "other.yaml", "--model.objective.threshold", "0.3"]),
        ("{}", ["--model", "{objective: SPARC}", "--model.objective.threshold", "0.3"]),
        ("{}", ["--config", "{model: {objective: SPARC}}", "--model.objective.threshold=0.3"]),
        ("{}", ["--config", "https://host/x.yaml", "--model.objective.threshold=0.3"]),
        ("{vars: {x: 1}}", ["--vars.y", "2"]),
        ("{}", ["--trainer.profiler", "simple"]),
        ("{trainer: {profiler: advanced, strategy: ddp_spawn}}", []),
        ("{}", ["--trainer.callbacks", "[{class_path: mine.Callback}]", "--model.objective", "Own"]),
        ("{}", ["--model.objective", "Sum", "--model.objective.objectives", "{a: mine.Own}", "--data", "Own"]),
        ("{}", ["--import", "mine", "--model.objective", "Clip"]),
        ("{}", ["--import=mine", "--model.objective", "sparc", "--model.objective.own", "1"]),
    ],
)
def test_what_is_not_known_here_is_left_to_the_parser(
    schema: dict[str, Any], tmp_path: Path, config: str, arguments: list[str]
) -> None:
    """Other files, dotted keys and the user's modules: nothing is refused or changed."""
    file = tmp_path / "mine.yaml"
    file.write_text(config)
    typed = ["fit", "--config", str(ROOT / "configs/clip.yaml"), "--config", str(file), *arguments]
    assert Keys(schema).check(typed) == typed


def test_a_plan_is_for_another_command(schema: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"compare\.yaml is a plan of several runs: use it with `patchword compare"):
        Keys(schema).check(["fit", "--config", "configs/compare.yaml"])


def test_a_group_inside_a_class_has_hints(schema: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"no option 'data\.views\.crops'; did you mean data\.views\.local_crops"):
        Keys(schema).check([*SPARC, "--data.views.crops", "3"])


def test_a_value_that_looks_like_help_is_no_request_for_help() -> None:
    """Otherwise the output of a training would be held back until its end."""
    assert not remembered.only_prints([*SPARC, "--trainer.logger.name", "run.help"])
    assert not remembered.only_prints([*SPARC, "--data.root=x.help"])


def test_without_a_home_nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    remembered.folder.cache_clear()
    remembered.keep_schema("fit", {})
    assert remembered.schema("fit") is None
    assert remembered.answer(["fit", "--help"]) is None
    remembered.folder.cache_clear()


def test_another_process_of_the_run_checks_the_same(tmp_path: Path) -> None:
    """Rank 1 keeps nothing, but accepts the same class names as rank 0."""
    rank = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    done = patchword(tmp_path, *SPARC, "--model.objective", "clip", "--print_config", **rank)
    assert "class_path: patchword.objectives.CLIP" in done.stdout, done.stderr
    assert not list(tmp_path.rglob("fit.json"))


@pytest.mark.parametrize("file", sorted(PACKAGED.rglob("*.yaml")), ids=lambda file: str(file.relative_to(PACKAGED)))
def test_packaged_configurations_follow_the_schema(
    validator: jsonschema.Draft202012Validator, schema: dict[str, Any], file: Path
) -> None:
    """An editor that reads the schema marks nothing in our own files, and no key of theirs is refused."""
    config = yaml.safe_load(file.read_text())
    if "variants" in config or "name" in config or "grid" in config or file.parent.name == "detector":
        pytest.skip("a plan of `compare`, or the configuration of another command")
    validator.validate(config)
    assert not Keys(schema).check(["--config", str(file)])[2:]


def test_the_schema_refuses_wrong_keys_and_types(validator: jsonschema.Draft202012Validator) -> None:
    validator.validate({"vars": {"x": 1}, "model": {"encoder": {"class_path": "mine.Encoder", "init_args": {"a": 1}}}})
    for wrong in (
        {"modle": 1},
        {"trainer": {"max_epochs": "many"}},
        {"model": {"objective": {"class_path": "SPARC", "init_args": {"treshold": 1}}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(wrong)


def test_the_command_schema_prints_it(cache: Path, schema: dict[str, Any]) -> None:
    assert json.loads(patchword(cache, "schema", without_torch=True).stdout) == schema


def test_a_cache_that_cannot_be_written_only_makes_commands_slower(tmp_path: Path) -> None:
    (tmp_path / "patchword").write_text("a file, not a folder")
    assert "cache folder that can be written to" in patchword(tmp_path, "schema").stderr


def test_another_installation_has_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    remembered.folder.cache_clear()
    here = remembered.folder()
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda place: [*listed(place), "torch-9.9.dist-info"])
    remembered.folder.cache_clear()
    assert remembered.folder() != here
    remembered.folder.cache_clear()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("patchword in", ["inspect"]),
        ("patchword fit --config configs/sparc.yaml --model.text_", ["--model.text_exchange"]),
        ("patchword fit --config configs/sparc.yaml --model.objective.thr", ["--model.objective.threshold"]),
        ("patchword fit --config configs/sparc.yaml --model.objective SPA", ["SPARC"]),
        ("patchword fit --model.objective CLIP --model.objective.temp", ["--model.objective.temperature"]),
        ("patchword fit --model.text_exchange ", ["all_gather", "ring"]),
        ("patchword fit --config configs/spa", ["configs/sparc.yaml"]),
        ("patchword report --o", ["--out"]),
        ("patchword compare --dry", ["--dry-run"]),
        ("patchword configs --h", ["--help"]),
    ],
)
def test_the_shell_completes_commands_keys_and_values(
    cache: Path, tmp_path: Path, line: str, expected: list[str]
) -> None:
    """As bash asks for it: the line in COMP_LINE, the answer in a file."""
    answer = tmp_path / "answer"
    shell = {
        "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
    }  # fmt: skip
    done = patchword(cache, without_torch=True, **shell)
    assert done.returncode == 0, done.stderr
    assert [word.strip() for word in answer.read_text().split("\n")] == expected


def test_a_user_error_is_raised_in_python(schema: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"there is no option 'trainer.max_epoch'"):
        Keys(schema).check(["fit", "--trainer.max_epoch", "1"])
