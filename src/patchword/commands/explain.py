"""Turns errors that the user can fix into a message of one line without a traceback."""

from __future__ import annotations

import errno
import sys
import traceback
from typing import NoReturn

from patchword.errors import TrainingError, UserError
from patchword.files.printable import printable
from patchword.training import processes

LONGEST, LINES = 2000, 20  # maximum characters per line, and maximum lines of a message

EXIT_RIGHTLY = {"argparse", "jsonargparse", "lightning", "patchword"}


def fail(message: str) -> NoReturn:
    """Print a message and exit with code 2; control characters are removed and long lines are cut."""
    processes.let_the_first_speak()
    shown = "\n".join(printable(line, LONGEST) for line in message.split("\n")[:LINES])
    sys.stderr.write(f"patchword: error: {shown}\n")
    raise SystemExit(2)


def explain(error: BaseException) -> str | None:
    """A message for an error that the user can fix or that has an external cause; None for other errors."""
    if isinstance(error, OSError) and isinstance(error.__context__, (UserError, TrainingError)):
        return explain(error.__context__)  # closing the loggers on a full disk fails, too
    if isinstance(error, TrainingError):
        return str(error)
    if isinstance(error, UserError):
        # The message of a DataLoader's worker contains a traceback; the last line is patchword's message.
        return str(error).rpartition("UserError: ")[2].strip()
    # These imports take seconds, which the errors above do not need.
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from omegaconf.errors import OmegaConfBaseException

    if processes.has_lost_another(error):
        return f"another process of this run has ended or does not respond; see its message ({first_line(error)})"
    if isinstance(error, OmegaConfBaseException):
        return f"a reference in the configuration cannot be resolved: {first_line(error)}"
    if isinstance(error, MisconfigurationException):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error.strerror}: a file cannot be written. Fix this, then resume with --ckpt_path from last.ckpt"
    if isinstance(error, RuntimeError) and str(error).startswith("The sizes `data_parallel_size="):
        return str(error)
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader "):
        what = "does not respond" if "timed out" in str(error) else "has ended"
        return (
            f"a process that loads data {what}: {first_line(error)}. Lower data.num_workers if memory is short; with "
            "0, the original error is shown"
        )
    if isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict"):
        return "the checkpoint was made by another model than the configured one: " + _first_difference(error)
    return None


def foreign_exit(end: SystemExit) -> str | None:
    """The file and the line that ended the program, if it was the user's code, such as the module of an objective.

    None if a parser, Lightning or patchword ended it, whose exit codes are correct.
    """
    # A function `exit` does not decide to end the program: wandb, for example, replaces sys.exit by such a function.
    frame, line = [one for one in traceback.walk_tb(end.__traceback__) if one[0].f_code.co_name != "exit"][-1]
    ours = str(frame.f_globals.get("__name__")).partition(".")[0] in EXIT_RIGHTLY
    return None if ours else f"{frame.f_code.co_filename}, line {line},"


def first_line(error: BaseException) -> str:
    """The first line of the message, or the type of the error if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _first_difference(error: Exception) -> str:
    """The first difference between the weights that torch reports."""
    return " ".join(str(error).splitlines()[1:2]).strip()
