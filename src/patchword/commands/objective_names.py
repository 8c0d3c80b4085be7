"""Finds objectives by name, for commands that accept a list of objectives."""

from __future__ import annotations

import difflib
import importlib

import patchword.objectives
from patchword.errors import UserError
from patchword.objective import Objective
from patchword.objectives import CLIP, FILIP, Sum


def build(name: str) -> Objective:
    """Build one of our objectives by name, or another by the import path of its class or of a function that returns it.

    Raises:
        UserError: There is no such objective, or it cannot be built without arguments.
    """
    module, _, attribute = OURS.get(name, name).rpartition(".")
    if not module:
        close = difflib.get_close_matches(name.lower(), {n.lower() for n in OURS}, n=1)
        ours = [n for n in OURS if n.lower() in close]
        hint = f"did you mean {ours[0]}?" if ours else f"choose from {', '.join(OURS)}, or use my_module.MyObjective"
        raise UserError(f"there is no objective '{name}'; {hint}")
    try:
        make = getattr(importlib.import_module(module), attribute)
    except SystemExit as error:
        raise UserError(f"cannot be imported: {module} calls sys.exit") from error
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"cannot be imported: {error}") from error
    try:
        objective = make()
    except SystemExit as error:
        raise UserError(f"{attribute} calls sys.exit") from error
    except TypeError as error:
        raise UserError(f"{error}; use a function without arguments that builds it") from error
    if not isinstance(objective, Objective):
        raise UserError(f"returns {type(objective).__name__}, which is not a patchword.Objective")
    return objective


def clip_and_filip() -> Objective:
    """The sum of CLIP and FILIP, which SPARC's tables compare with."""
    return Sum({"clip": CLIP(), "filip": FILIP()})


OURS = {name: f"patchword.objectives.{name}" for name in patchword.objectives.__all__}
OURS["Sum"] = f"{__name__}.{clip_and_filip.__name__}"
