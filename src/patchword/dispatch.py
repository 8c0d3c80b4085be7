"""The command `lightning`: it runs patchword's sub-commands, and passes all others to another package.

Lightning itself no longer installs a command of this name, but other packages may. A sub-command that patchword does
not have is passed to the first of these packages, so that it still works after patchword is installed.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

from patchword.cli import SUBCOMMANDS
from patchword.cli import main as patchword


def main() -> None:
    """Run a sub-command of patchword, or pass the arguments to another package."""
    word = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
    if word is None or word in SUBCOMMANDS:
        patchword()
        return
    for entry in entry_points(group="console_scripts", name="lightning"):
        if entry.dist is not None and entry.dist.name.lower() != "patchword":
            entry.load()()
            return
    sys.exit(
        f"lightning: error: '{word}' is not a sub-command of patchword ({', '.join(SUBCOMMANDS)}), and no other "
        "installed package has a `lightning` command. See `lightning --help`."
    )
