"""Checkpoints run no code, and a configuration can name only optimizers as its optimizer; see docs/security.md."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of its first import
import pytest
import torch

from patchword import AlignmentModule
from patchword.cli import main
from patchword.encoders.base import Encoder
from patchword.errors import UserError
from patchword.objectives import CLIP, SPARC, Sum
from patchword.provenance import rebuild
from patchword.training import checkpoint_file
from patchword.training.checkpoint_io import WholeFileIO
from patchword.viewer import runs
from tests import tiny

ROOT = Path(__file__).parents[1]
COMMAND = "echo > OWNED"
SYSTEM = {"class_path": "os.system", "init_args": {"command": COMMAND}}
EVIL = {"class_path": "evilmod.X", "init_args": {}}
OWN = """
from patchword.objectives import CLIP
from patchword.objective import Objective

class BestPatch(Objective):
    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.inner = CLIP(temperature)
        self.forward, self.score, self.align = self.inner.forward, self.inner.score, self.inner.align
    forward = score = align = lambda self, images, texts: None
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint after one training step."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = tiny.trainer(folder / "logs", max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(tiny.module(SPARC(threshold=0.3), phrase_query="span"), tiny.data())
    trainer.save_checkpoint(folder / "good.ckpt")
    return folder / "good.ckpt"


@pytest.fixture(autouse=True)
def _in_a_hostile_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test in a folder with a module that writes the file OWNED if it is imported."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("evilmod.py").write_text("open('OWNED', 'w').close()\nclass X: pass\n")
    yield
    sys.modules.pop("evilmod", None)
    os.environ.clear()
    os.environ.update(before)


def changed(trained: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Return a changed copy of the checkpoint, written by torch.save."""
    saved = torch.load(trained, weights_only=True)
    change(saved)
    torch.save(saved, "changed.ckpt")
    return Path("changed.ckpt")


def put(value: Any, *keys: str) -> Callable[[dict[str, Any]], None]:
    """Return a function that sets the hyperparameter at these keys."""

    def change(saved: dict[str, Any]) -> None:
        place = saved["hyper_parameters"]
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = copy.deepcopy(value)

    return change


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must end with code 2, and return its one-line message."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("patchword: error: ")]
    return line


PLACES = {
    "encoder": ("encoder",),
    "tower": ("encoder", "init_args", "image"),
    "option of a tower": ("encoder", "init_args", "text", "init_args", "model"),
    "free option": ("encoder", "init_args", "image", "init_args", "model_args"),
    "objective": ("objective",),
    "schedule": ("schedule",),
    "option of the schedule": ("schedule", "warmup_steps"),
    "fine_tuning": ("fine_tuning",),
    "tokens": ("token_selection",),
    "optimizer": ("optimizer",),
    "chunk_size": ("chunk_size",),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", [SYSTEM, EVIL, "os.system", "evilmod.X"], ids=["system", "evil", "name", "evil name"])
def test_nothing_that_a_checkpoint_names_runs(trained: Path, place: str, what: Any) -> None:
    """A foreign name in any setting runs neither in the check of the command line nor when the model is built."""
    path = changed(trained, put(what, *PLACES[place]))
    if (place == "option of a tower" and isinstance(what, str)) or (place == "optimizer" and isinstance(what, dict)):
        return  # a string here is the name of a model, and optimizers have their own test
    for load in (AlignmentModule.load_from_checkpoint, lambda p: check(p)):
        with pytest.raises(UserError, match=r"changed\.ckpt"):
            load(path)
    assert not Path("OWNED").exists()
    assert "evilmod" not in sys.modules


def check(path: Path) -> None:
    """Check the hyperparameters of a checkpoint as the command line does."""
    rebuild.check(AlignmentModule, checkpoint_file.read(path)["hyper_parameters"], str(path))


@pytest.mark.parametrize("path", ["torch.hub.load", "timm.create_model", "torch.nn.Linear", "patchword.cli.main"])
def test_functions_and_other_classes_of_trusted_packages_are_refused(path: str) -> None:
    """A package that may be imported has functions that download or run code; a name must be an expected class."""
    with pytest.raises(UserError, match=f"{path} is no subclass of Encoder"):
        rebuild.find(path, (Encoder,), "evil.ckpt")


@pytest.mark.parametrize("what", [SYSTEM, EVIL], ids=["system", "evil"])
def test_a_foreign_optimizer_is_refused_when_it_is_needed(trained: Path, what: Any) -> None:
    """Loading a model for inspection builds no optimizer. Training and the command line refuse a foreign one."""
    path = changed(trained, put(what, "optimizer"))
    (module,) = runs.load([str(path)], "cpu").values()
    module._trainer = tiny.trainer(Path("."), logger=False)
    with pytest.raises(UserError, match=r"changed.ckpt: model.optimizer"):
        module.configure_optimizers()
    with pytest.raises(UserError, match=r"changed.ckpt: model.optimizer"):
        check(path)
    assert not Path("OWNED").exists()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_the_exploit_on_the_command_line(trained: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint whose optimizer is os.system is refused by every command of Lightning, and nothing runs."""
    path = changed(trained, put(SYSTEM, "optimizer"))
    line = failed(capsys, command, "--data", "Scenes", "--ckpt_path", str(path))
    assert "model.optimizer: os.system is no subclass of" in line
    assert not Path("OWNED").exists()


def test_inspect_and_export_ignore_the_optimizer(trained: Path) -> None:
    """They build no optimizer, so they work on a checkpoint with a foreign optimizer, and nothing runs."""
    path = str(changed(trained, put(SYSTEM, "optimizer")))
    main(["inspect", "--ckpt", path, "--sample", "0"])
    main(["export", "--ckpt", path, "--out", "exported"])
    assert not Path("OWNED").exists()


def test_the_optimizer_of_a_checkpoint_is_rebuilt(trained: Path) -> None:
    """A module loaded in Python has the same class and options of the optimizer, and the same hyperparameters."""
    module = AlignmentModule.load_from_checkpoint(trained)
    module._trainer = tiny.trainer(Path("."), logger=False)
    optimizer = module.configure_optimizers()["optimizer"]
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["lr"] == 3e-3
    assert module.hparams["optimizer"]["class_path"] == "torch.optim.adamw.AdamW"
    again = changed(trained, put(None, "optimizer"))
    with pytest.raises(UserError, match="does not name an optimizer"):
        AlignmentModule.load_from_checkpoint(again).optimizer([])


def test_package_metadata_in_the_current_folder_is_ignored(trained: Path) -> None:
    """Otherwise a downloaded folder could claim that `evilmod` belongs to a package that requires patchword."""
    info = Path("evil-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\nRequires-Dist: patchword\n")
    (info / "top_level.txt").write_text("evilmod\n")
    with pytest.raises(UserError, match="evilmod is neither part of patchword"):
        check(changed(trained, put(EVIL, "objective")))
    assert not Path("OWNED").exists()


def test_a_package_that_requires_patchword_is_imported(
    trained: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed package that depends on patchword may provide the objective of a checkpoint."""
    site = tmp_path_factory.mktemp("site")
    info = site / "own-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\nRequires-Dist: patchword>=0.1\n")
    (info / "RECORD").write_text("installed_own.py,,\n")
    (site / "installed_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(site)
    path = changed(trained, put({"class_path": "installed_own.BestPatch", "init_args": {}}, "objective"))
    check(path)
    monkeypatch.delitem(sys.modules, "installed_own")


def test_your_own_objective(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The module of an objective is imported only if the user names it: on the command line, in YAML or in Python."""
    Path("own_for_test.py").write_text(OWN)
    path = changed(trained, put({"class_path": "own_for_test.BestPatch", "init_args": {}}, "objective"))
    line = failed(capsys, "inspect", "--ckpt", str(path), "--sample", "0")
    assert "add --import own_for_test (in Python: import own_for_test first)" in line
    assert "own_for_test" not in sys.modules
    Path("own.yaml").write_text("model: {objective: {class_path: own_for_test.BestPatch}}")
    for named in (
        ["--model.objective", "own_for_test.BestPatch"],
        ["--config", "own.yaml"],
        ["--import", "own_for_test"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(["test", "--data", "Scenes", *named, "--ckpt_path", str(path), "--print_config"])
        assert ended.value.code == 0
        assert "own_for_test.BestPatch" in capsys.readouterr().out
        if named[0] != "--import":
            del sys.modules["own_for_test"]
            for cls in list(rebuild._below(rebuild.Configurable)):
                if cls.__module__ == "own_for_test":
                    cls.__module__ = "forgotten"
    assert "cannot be imported (ModuleNotFoundError" in failed(capsys, "inspect", "--import", "nowhere", "--ckpt", "x")
    module = AlignmentModule.load_from_checkpoint(trained, objective=CLIP(), strict=False)  # arguments have priority
    assert isinstance(module.objective, CLIP)
    del sys.modules["own_for_test"]


OPTIMIZERS = {
    "os.system": (
        "{class_path: os.system, init_args: {command: 'echo > OWNED'}}",
        "os.system is neither a subclass of",
    ),
    "a class": ("{class_path: pathlib.Path}", "to be a subclass of"),
    "another class": ("evilmod2.X", "to be a subclass of"),
    "a function": ("{class_path: shutil.rmtree}", "shutil.rmtree is neither a subclass of"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_configuration_can_name_only_optimizers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Another function or class as the optimizer is refused, and does not run."""
    Path("evilmod2.py").write_text("class X: pass")
    value, message = OPTIMIZERS[name]
    Path("evil.yaml").write_text(f"model: {{optimizer: {value}}}")
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(ROOT / "configs/clip.yaml"), "--config", "evil.yaml"])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not Path("OWNED").exists()


def test_functions_that_return_an_optimizer_are_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    """The check of optimizers accepts classes, and functions with an optimizer as their return annotation."""
    Path("own_optimizer.py").write_text(
        "import torch\n"
        "def make(parameters, lr: float = 0.5) -> torch.optim.SGD:\n    return torch.optim.SGD(parameters, lr)\n"
    )
    for value in ("torch.optim.SGD", "own_optimizer.make", "{class_path: own_optimizer.make, init_args: {lr: 0.1}}"):
        Path("optimizer.yaml").write_text(f"model: {{optimizer: {value}}}")
        arguments = ["--config", str(ROOT / "configs/clip.yaml"), "--config", "optimizer.yaml", "--print_config"]
        with pytest.raises(SystemExit) as ended:
            main(["fit", *arguments])
        assert ended.value.code == 0, capsys.readouterr().err


class Pickled:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, (COMMAND,)


def test_pickles_are_refused_without_a_hint_to_run_them(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle that would run code is refused, even if a configuration or a caller sets weights_only to False."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = changed(trained, lambda saved: saved.update(more=Pickled()))
    Path("off.yaml").write_text("weights_only: false")
    data = ["--data", "Scenes", "--ckpt_path", str(path)]
    for arguments in (["test", *data], ["inspect", "--ckpt", str(path), "--sample", "0"]):
        line = failed(capsys, *arguments)
        assert "asks for posix.system, which could run code" in line
        assert "weights_only" not in line
    data = ["--data", "Scenes", "--ckpt_path", str(trained)]
    assert "would run code" in failed(capsys, "test", "--config", "off.yaml", *data)
    for load in (WholeFileIO().load_checkpoint, AlignmentModule.load_from_checkpoint):
        with pytest.raises(UserError, match="would run code"):
            load(path, weights_only=False)
    with pytest.raises(UserError, match=r"posix\.system"):
        tiny.trainer(Path("."), logger=False).test(tiny.module(SPARC()), tiny.data(), ckpt_path=path, verbose=False)
    assert not Path("OWNED").exists()


def test_damage_is_found(trained: Path) -> None:
    """A flipped bit in tensors, plain data or the index of the file is found, or does not change what is read."""
    content, whole = trained.read_bytes(), checkpoint_file.read(trained)
    found = 0
    generator = random.Random(0)
    for _ in range(40):
        damaged = bytearray(content)
        place = generator.randrange(len(content))
        damaged[place] ^= 1 << generator.randrange(8)
        Path("damaged.ckpt").write_bytes(damaged)
        with contextlib.suppress(UserError):
            assert repr(checkpoint_file.read(Path("damaged.ckpt"))) == repr(whole), place
            continue
        found += 1
    assert found > 30


@pytest.mark.parametrize("length", [0, 10, 5_000, -1])
def test_a_truncated_file_is_refused(trained: Path, length: int) -> None:
    """A truncated checkpoint gives one message that names the file."""
    Path("cut.ckpt").write_bytes(trained.read_bytes()[:length])
    with pytest.raises(
        UserError, match=r"cut\.ckpt: (not a checkpoint of patchword, or truncated|the file is damaged)"
    ):
        checkpoint_file.read(Path("cut.ckpt"))


def test_damage_is_found_by_every_way_of_loading(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All commands and the trainer check the checksums of a checkpoint."""
    damaged = bytearray(trained.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    Path("damaged.ckpt").write_bytes(damaged)
    for arguments in (
        ["test", "--data", "Scenes", "--ckpt_path", "damaged.ckpt"],
        ["inspect", "--ckpt", "damaged.ckpt", "--sample", "0"],
        ["export", "--ckpt", "damaged.ckpt", "--out", "exported"],
    ):
        assert "damaged.ckpt: the file is damaged (the checksum of " in failed(capsys, *arguments)
    with pytest.raises(UserError, match=r"damaged\.ckpt: the file is damaged"):
        tiny.trainer(Path("."), logger=False).test(tiny.module(SPARC()), tiny.data(), ckpt_path="damaged.ckpt")


def test_a_file_without_checksums_is_read_with_a_warning(trained: Path) -> None:
    """Other tools may write checkpoints without checksums."""
    torch.serialization.set_crc32_options(False)
    try:
        path = changed(trained, lambda saved: None)
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.warns(UserWarning, match="changed.ckpt has no checksums"):
        checkpoint_file.read(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    trained: Path, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint with NaN or plus infinity is refused. Minus infinity is allowed, because masks use it."""
    path = changed(trained, lambda saved: next(iter(saved["state_dict"].values())).fill_(value))
    for arguments in (["test", "--data", "Scenes", "--ckpt_path"], ["inspect", "--sample", "0", "--ckpt"]):
        assert "are not finite" in failed(capsys, *arguments, str(path))
    masked = changed(trained, lambda saved: saved["state_dict"].update(mask=torch.tensor([0, -torch.inf])))
    checkpoint_file.read(masked)


def test_not_only_the_averaged_weights_must_be_finite(trained: Path) -> None:
    """`WeightAveraging` saves averages as `state_dict` and trained weights elsewhere, and both must be finite."""

    def average(saved: dict[str, Any]) -> None:
        weights = saved["state_dict"]
        saved["current_model_state"] = {key: torch.full_like(weights[key], torch.nan) for key in [*weights][:1]}

    with pytest.raises(UserError, match=r"changed\.ckpt: .* in current_model_state are not finite"):
        checkpoint_file.read(changed(trained, average))


FOREIGN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown key": (put(1, "color"), "model: AlignmentModule has no option 'color': the checkpoint is of another"),
    "unknown option": (put(1, "objective", "init_args", "hue"), "model.objective: SPARC has no option 'hue'"),
    "unknown class": (put("patchword.objectives.Gone", "objective", "class_path"), "no subclass of Objective"),
    "unknown module": (put("patchword.gone.Gone", "objective", "class_path"), "patchword.gone cannot be imported"),
    "unknown choice": (
        put("some", "token_selection"),
        "model.token_selection: 'some' is not expected here: choose from all, words",
    ),
    "no Lightning": (lambda saved: saved.pop("pytorch-lightning_version"), "pytorch-lightning_version is None"),
    "odd Lightning": (
        lambda saved: saved.update({"pytorch-lightning_version": "x\x1b[2J"}),
        r"its pytorch-lightning_version is x\x1b[2J, which is not a version",
    ),
    "no weights": (lambda saved: saved.pop("state_dict"), "it has no state_dict"),
    "no model": (lambda saved: saved["hyper_parameters"].pop("encoder"), "name no encoder and objective"),
    "no settings": (lambda saved: saved.pop("hyper_parameters"), "it has no hyper_parameters"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_checkpoints_of_other_versions_and_tools(trained: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint of another version or tool gives a one-line message in every command."""
    change, message = FOREIGN[name]
    path = str(changed(trained, change))
    for arguments in (["test", "--data", "Scenes", "--ckpt_path", path], ["inspect", "--ckpt", path, "--sample", "0"]):
        assert message in failed(capsys, *arguments)


def test_weights_of_another_model_are_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing weights give a one-line message."""
    path = changed(trained, lambda saved: saved["state_dict"].popitem())
    assert "the weights do not fit the model" in failed(capsys, "inspect", "--ckpt", str(path), "--sample", "0")


def test_what_is_built_is_what_was_saved() -> None:
    """Nested objectives, dataclasses, tuples and paths are rebuilt from a checkpoint as they were given."""
    module = tiny.module(Sum({"clip": CLIP(), "sparc": SPARC(threshold=0.3)}, weights={"sparc": 0.5}))
    again = AlignmentModule(**rebuild.arguments(AlignmentModule, module.hparams, "x"))
    assert again.objective.spec == module.objective.spec
    assert again.encoder.spec == module.encoder.spec
    assert again.schedule == module.schedule
    assert dict(again.hparams) == dict(module.hparams)
    rebuild.check(AlignmentModule, module.hparams, "x")


YAML = {
    "duplicate": ("model: {objective: CLIP}\nmodel: {objective: SPARC}", "the key model"),
    "nested duplicate": ("model:\n  tokens: all\n  tokens: words", "the key tokens"),
    "tagged": ("model: !!python/object/apply:os.system ['echo > OWNED']", "could not determine a constructor"),
    "deep": ("model: " + "[" * 1000 + "]" * 1000, "nested too deeply"),
    "no date": ("model: 2020-13-45", "month must be in 1..12"),
}


@pytest.mark.parametrize("name", YAML)
@pytest.mark.parametrize("command", ["fit", "compare"])
def test_invalid_yaml_is_refused(name: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Ambiguous, unsafe or invalid YAML gives a one-line message that names the file, and runs nothing."""
    content, message = YAML[name]
    Path("odd.yaml").write_text(content)
    line = failed(capsys, command, "--config", "odd.yaml")
    assert "odd.yaml" in line
    assert message in line
    assert not Path("OWNED").exists()


def test_the_configuration_beside_a_checkpoint_cannot_harm_an_export(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Export reads the configuration next to a checkpoint without running its YAML tags."""
    shutil.copy(trained, "last.ckpt")
    Path("config.yaml").write_text(YAML["tagged"][0])
    assert "config.yaml cannot be read as YAML" in failed(capsys, "export", "--ckpt", "last.ckpt", "--out", "exported")
    assert not Path("exported").exists()
    assert not Path("OWNED").exists()
