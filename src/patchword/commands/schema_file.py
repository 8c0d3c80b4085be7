"""The sub-command `schema`: it prints the JSON Schema of the configurations, for editors."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from patchword.commands import remembered
from patchword.commands.options import Parser
from patchword.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(
        "schema",
        description="Print the JSON Schema of the configurations of a command. Begin a configuration with\n"
        "`# yaml-language-server: $schema=patchword.schema.json`, so that editors complete and check its keys.",
        epilog="  patchword schema > patchword.schema.json",
    )
    made.add_argument("command", nargs="?", default="fit", choices=["fit", "validate", "test", "predict"])
    return made


def main(arguments: list[str]) -> None:
    """Print the schema of a command.

    Raises:
        UserError: The installed jsonargparse makes no schemas, or the folder of the cache cannot be written to.
    """
    command = parser().parse_args(arguments[1:]).command
    if remembered.schema(command) is None:
        subprocess.run([sys.executable, "-m", "patchword", command, "--help"], stdout=subprocess.DEVNULL, check=False)
    found = remembered.schema(command)
    if found is None:
        place = remembered.folder()
        raise UserError(
            f"a schema needs jsonargparse 4.53 or later, and a cache folder that can be written to: {place}"
        )
    print(json.dumps(found, indent=2))
