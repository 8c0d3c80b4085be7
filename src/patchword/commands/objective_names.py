"""Finds objectives by name, for commands that accept a list of objectives."""

from __future__ import annotations

import difflib
import importlib
import inspect

import patchword.objectives
from patchword.commands.blame import described, line_of_user
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
    except Exception as error:  # a module may raise anything
        raise UserError(f"cannot be imported: {described(error)}") from error
    if inspect.isabstract(make):
        raise UserError(f"{attribute} lacks the method {' and '.join(sorted(make.__abstractmethods__))}")
    try:
        objective = make()
    except SystemExit as error:
        raise UserError(f"{attribute} calls sys.exit") from error
    except UserError:
        raise
    except Exception as error:
        if "before Module.__init__() call" in str(error):
            raise UserError(
                f"{attribute}.__init__ must begin with super().__init__() ({line_of_user(error)})"
            ) from error
        needs_arguments = isinstance(error, TypeError) and line_of_user(error) is None
        hint = "; use a function without arguments that builds it" if needs_arguments else ""
        raise UserError(f"{attribute} cannot be built: {described(error)}{hint}") from error
    if not isinstance(objective, Objective):
        raise UserError(f"returns {type(objective).__name__}, which is not a patchword.Objective")
    if "_modules" not in vars(objective):
        raise UserError(f"{attribute}.__init__ must begin with super().__init__()")
    return objective


def clip_and_filip() -> Objective:
    """The sum of CLIP and FILIP, which SPARC's tables compare with."""
    return Sum({"clip": CLIP(), "filip": FILIP()})


OURS = {name: f"patchword.objectives.{name}" for name in patchword.objectives.__all__}
OURS["Sum"] = f"{__name__}.{clip_and_filip.__name__}"
