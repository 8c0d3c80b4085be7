"""Guards the direction of imports: a room of the package imports only rooms that come before it in `ORDER`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import patchword.objectives

SOURCE = Path(__file__).parents[1] / "src" / "patchword"
ORDER = (
    *(
        "version",
        "errors",
        "protocols",
        "files",
        "provenance",
        "features",
        "answers",
        "distributed",
        "masking",
        "late_interaction",
        "ops",
        "on_demand",
        "contrast",
    ),
    *("objective", "contract", "shapley", "objectives"),  # what an objective may import, and the objectives
    *("data", "encoders", "training", "cached", "maps", "metrics", "module", "detector", "suites"),
    *("commands", "viewer", "report", "callbacks", "compare", "bench", "verify", "check", "export"),
    *("lightning_cli", "cli", "dispatch", "__main__"),
)


def imports(path: Path) -> Iterator[str]:
    """The names that start with `patchword.`, except imports for annotations (`if TYPE_CHECKING`)."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return (name for name in visit(ast.parse(path.read_text())) if name.startswith("patchword."))


def test_no_import_runs_back_up() -> None:
    """Imports follow `ORDER`, so there are no circular imports. `__init__` loads public names only on first use."""
    wrong = []
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for name in imports(path):
            other = name.split(".")[1]
            if ORDER.index(other) > ORDER.index(room):
                wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert wrong == []


def test_every_room_has_a_place() -> None:
    """Every file and folder at the top of the package is in `ORDER`."""
    rooms = {path.name.removesuffix(".py") for path in SOURCE.iterdir() if path.suffix in (".py", "")}
    assert rooms - {"__init__", "__pycache__", "configs", "py.typed"} == set(ORDER)


def test_no_concrete_objective_is_named_below_the_command_line() -> None:
    """Code that works with objectives works with any objective, including those of other packages."""
    above = ("objectives", "commands", "bench", "verify", "export", "lightning_cli")
    for path in SOURCE.rglob("*.py"):
        if path.relative_to(SOURCE).parts[0].removesuffix(".py") not in above:
            named = {name.rpartition(".")[2] for name in imports(path) if name.startswith("patchword.objectives")}
            assert not named & {*patchword.objectives.__all__, "objectives"}, path
