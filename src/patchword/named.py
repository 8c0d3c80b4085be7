"""Objectives by name, for commands that take a list of them."""

from __future__ import annotations

import difflib
import importlib

import patchword.objectives
from patchword.errors import InputError
from patchword.objective import Objective
from patchword.objectives import CLIP, FILIP, Sum


def build(path: str) -> Objective:
    """The objective whose class, or a function that builds it, is imported from `path`.

    Raises:
        InputError: If there is none, or it cannot be built without arguments.
    """
    module, _, name = path.rpartition(".")
    if not module:
        close = difflib.get_close_matches(path.lower(), {n.lower() for n in OURS}, n=1)
        ours = [n for n in OURS if n.lower() in close]
        hint = f"did you mean {ours[0]}?" if ours else f"choose from {', '.join(OURS)}, or say my_module.MyObjective"
        raise InputError(f"there is no objective '{path}'; {hint}")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot be imported: {error}") from error
    try:
        objective = make()
    except TypeError as error:
        raise InputError(f"{error}; name a function without arguments that builds it") from error
    if not isinstance(objective, Objective):
        raise InputError(f"makes {type(objective).__name__}, which is no patchword.Objective")
    return objective


def clip_and_filip() -> Objective:
    """The sum that SPARC's tables compare with."""
    return Sum({"clip": CLIP(), "filip": FILIP()})


OURS = {name: f"patchword.objectives.{name}" for name in patchword.objectives.__all__}
OURS["Sum"] = f"{__name__}.{clip_and_filip.__name__}"
