"""The command `lightning`: ours for fit, validate, test and predict; somebody else's for the rest.

Lightning itself no longer installs a command of that name, other distributions may. Whatever is not ours is
handed to the first of them, so that installing patchword takes nothing away.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

from patchword.cli import SUBCOMMANDS
from patchword.cli import main as patchword


def main() -> None:
    """Run patchword's own sub-commands, or hand the arguments over."""
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
        "installed package offers a `lightning` command. `lightning --help` says what there is."
    )
