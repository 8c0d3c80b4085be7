"""Lists the private names of Lightning that src uses, and checks each one against the installed Lightning.

Lightning offers no public name for them. If an upgrade changes one, the test of that name fails here.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.strategies import launchers

SOURCE = Path(__file__).parents[1] / "src" / "patchword"
NAMES = {
    "callbacks/checkpoint.py": (
        "ModelCheckpoint._every_n_train_steps",
        "ModelCheckpoint._train_time_interval",
        "ModelCheckpoint._last_global_step_saved",
        "ModelCheckpoint._monitor_candidates",
        "ModelCheckpoint._save_checkpoint",
        "ModelCheckpoint._save_last_checkpoint",
        "ModelCheckpoint._save_topk_checkpoint",
        "ModelCheckpoint._should_skip_saving_checkpoint",
        "FitLoop._data_fetcher",
        "EpochLoop._batches_that_stepped",
        "EpochLoop._should_check_val_fx",
        "Trainer._logger_connector",
        "LoggerConnector._first_loop_iter",
        "LoggerConnector.metrics",
        "LoggerConnector.update_train_step_metrics",
    ),
    "lightning_cli.py": ("Trainer._checkpoint_connector", "CheckpointConnector._hpc_resume_path"),
    "training/lr_schedule.py": ("LearningRateFinder._update_attr",),
    "training/resumable.py": ("LightningModule._trainer",),
    "training/loggers.py": (
        "CSVLogger._experiment",
        "CSVLogger._version",
        "TensorBoardLogger._version",
        "ExperimentWriter._check_log_dir_exists",
        "ExperimentWriter._rewrite_with_new_header",
    ),
    "training/processes.py": (
        "launchers._SubprocessScriptLauncher",
        "SubprocessScriptLauncher.procs",
        "SubprocessScriptLauncher.num_processes",
    ),
    "training/signals.py": (
        "Trainer._signal_connector",
        "SignalConnector._sigterm_notifier_fn",
        "SignalConnector._slurm_sigusr_handler_fn",
    ),
}
CASES = [(file, name) for file, names in NAMES.items() for name in names]


@pytest.fixture(scope="module")
def owners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[], Any]]:
    """Return a function per owner in `NAMES` that makes the object, because an upgrade may break only some of them."""
    folder = tmp_path_factory.mktemp("lightning")
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, default_root_dir=folder)
    return {
        "Trainer": lambda: trainer,
        "FitLoop": lambda: trainer.fit_loop,
        "EpochLoop": lambda: trainer.fit_loop.epoch_loop,
        "LoggerConnector": lambda: trainer._logger_connector,
        "CheckpointConnector": lambda: trainer._checkpoint_connector,
        "SignalConnector": lambda: trainer._signal_connector,
        "ModelCheckpoint": lambda: ModelCheckpoint(dirpath=folder),
        "LearningRateFinder": LearningRateFinder,
        "LightningModule": LightningModule,
        "CSVLogger": lambda: CSVLogger(folder),
        "TensorBoardLogger": lambda: TensorBoardLogger(folder),
        "ExperimentWriter": lambda: ExperimentWriter(str(folder / "csv")),
        "launchers": lambda: launchers,
        "SubprocessScriptLauncher": lambda: launchers._SubprocessScriptLauncher(LightningEnvironment(), 1, 1),
    }


@pytest.mark.parametrize(("file", "name"), CASES)
def test_lightning_has_the_name(owners: dict[str, Callable[[], Any]], file: str, name: str) -> None:
    """The installed Lightning has every private name that patchword uses."""
    owner, _, attribute = name.partition(".")
    try:
        found = attribute in names_of(owners[owner]())
    except AttributeError:  # the owner is reached through a private name that is gone
        found = False
    assert found, f"the installed Lightning has no {name}, which src/patchword/{file} uses"


def test_the_list_is_complete() -> None:
    """Every private name of Lightning in src is listed, and every listed name is in the file that it is listed for."""
    listed = {file: {name.rpartition(".")[2] for name in names} for file, names in NAMES.items()}
    used = {path.relative_to(SOURCE).as_posix(): set(private_names(path)) for path in SOURCE.rglob("*.py")}
    assert {file: names for file, names in used.items() if names} == {
        file: {name for name in names if name.startswith("_")} for file, names in listed.items()
    }
    for file, names in listed.items():
        text = (SOURCE / file).read_text()
        assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


def names_of(value: Any) -> set[str]:
    """Return the names of an object's attributes without evaluating its properties."""
    return {*dir(type(value)), *vars(value)}


def private_names(path: Path) -> Iterator[str]:
    """Return Lightning's private names in one file: imported, overridden, or used without a definition in the file."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    own = set()
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            own.add(node.name)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            own.add(node.attr)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lightning"):
            yield from (name.name for name in node.names if is_private(name.name))
        is_attribute = isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr in lightning_words()
        if is_attribute and (node.attr not in own or ast.unparse(node.value) == "super()"):
            yield node.attr
    if "lightning" in path.read_text():
        module = importlib.import_module(".".join(["patchword", *path.relative_to(SOURCE).with_suffix("").parts]))
        for cls in vars(module).values():
            if inspect.isclass(cls) and cls.__module__ == module.__name__:
                theirs = {
                    name for base in cls.__mro__ if base.__module__.startswith("lightning") for name in vars(base)
                }
                yield from (name for name in vars(cls) if is_private(name) and name in theirs - {"_abc_impl"})


@cache
def lightning_words() -> set[str]:
    """Return all private words in Lightning's source."""
    root = Path(inspect.getfile(Trainer)).parents[2]
    texts = (path.read_text(encoding="utf-8") for path in root.rglob("*.py"))
    return {word for text in texts for word in re.findall(r"\b_[A-Za-z]\w+", text)}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")
